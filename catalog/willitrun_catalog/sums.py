"""Weights of the shipped models by quantization, summed when the catalog is compiled: a ranking looks at hundreds.

`willitrun_estimator.weights` makes these sums and reads them back. `data/sums.msgpack` has them by model name, each
with a checksum of the entry they were made from: an entry that has changed since has none.
"""

from __future__ import annotations

import os
from functools import lru_cache
from zlib import crc32

import msgspec
from msgspec import Struct

COMPILED = os.path.join(os.path.dirname(__file__), "data", "sums.msgpack")  # noqa: PTH118,PTH120


class QuantSums(Struct, frozen=True, array_like=True):
    """A model's weights in one quantization; the names are those of `WeightProfile`."""

    kinds: tuple[tuple[int, int, int, int, int], ...]
    """Blocks that differ: resident, expert and active expert bytes, the largest resident and expert tensor."""
    runs: tuple[int, ...]
    """Alternates counts of blocks and indexes into `kinds`."""
    embedding_bytes: int
    output_bytes: int
    host_extra_bytes: int
    tensor_bytes: int
    unloaded_bytes: int
    file_bytes: int
    bits_per_weight: float
    matmul_type: str
    type_bytes: tuple[tuple[str, int], ...]


class ModelSums(Struct, frozen=True, array_like=True):
    """A model's weights."""

    checksum: int
    """Of the encoded entry."""
    params: int
    active_params: int
    quants: dict[str, msgspec.Raw]
    """Each a `QuantSums`."""

    def of(self, quant: str) -> QuantSums | None:
        """Return the sums of a quantization, None for one that is not in the ladder of the model."""
        found = self.quants.get(quant)
        return None if found is None else _decoder().decode(found)


@lru_cache(maxsize=1)
def _decoder() -> msgspec.msgpack.Decoder[QuantSums]:
    return msgspec.msgpack.Decoder(QuantSums)


@lru_cache(maxsize=1)
def _model_decoder() -> msgspec.msgpack.Decoder[ModelSums]:
    return msgspec.msgpack.Decoder(ModelSums)


@lru_cache(maxsize=1)
def _compiled() -> dict[str, bytes]:
    with open(COMPILED, "rb") as file:  # noqa: PTH123
        return msgspec.msgpack.decode(file.read(), type=dict[str, bytes])


def checksum(encoded_entry: bytes) -> int:
    """Return what ties sums to the entry they were made from."""
    return crc32(encoded_entry)


def sums_of(name: str, encoded_entry: bytes) -> ModelSums | None:
    """Return the sums of a shipped model, None where there are none of this very entry."""
    found = _compiled().get(name)
    if found is None:
        return None
    sums = _model_decoder().decode(found)
    return sums if sums.checksum == checksum(encoded_entry) else None
