"""The catalog as it is shipped: one compiled file with an index, of which only what is asked for is decoded.

`scripts/compile_catalog.py` makes the file from the readable entries; a test keeps the two together.
"""

from __future__ import annotations

import os
from functools import lru_cache

import msgspec
from msgspec import Struct, structs

from willitrun_catalog import sums
from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import UnknownGpu, UnknownModel
from willitrun_catalog.model import Layer, ModelSpec
from willitrun_catalog.sums import ModelSums

COMPILED = os.path.join(os.path.dirname(__file__), "data", "catalog.msgpack")  # noqa: PTH118,PTH120
"""Not a `pathlib.Path`, which takes longer to import than the file takes to read."""


class PackedModel(Struct, frozen=True, array_like=True):
    """A model with its layers as runs: `runs` alternates counts and indexes into `kinds`."""

    spec: ModelSpec
    kinds: tuple[Layer, ...]
    runs: tuple[int, ...]


class Listing(Struct, frozen=True, array_like=True):
    """What the name search and lists need of a model, without decoding it."""

    name: str
    canonical: bool
    release_date: str
    params: int


class SearchName(Struct, frozen=True, array_like=True):
    """A name that can be searched for, cut into words once."""

    text: str
    key: str
    words: tuple[str, ...]
    position: int
    """In `models` or `gpus`."""
    alias: bool = False
    """Another release of the same shape, or another word for the same accelerator."""
    plain: bool = True
    """Has no distinguishing word that the model's own names lack."""


class Compiled(Struct, frozen=True, array_like=True):
    """The whole compiled file. What is `bytes` is MessagePack again, skipped over until somebody wants it."""

    listings: bytes
    """Of `tuple[Listing, ...]`."""
    names: tuple[bytes, ...]
    """Each of a `SearchName`."""
    keys: dict[str, tuple[int, ...]]
    """The key of a name to positions in `names`."""
    models: tuple[bytes, ...]
    """Each of a `PackedModel`."""
    gpu_names: tuple[str, ...]
    gpu_search: bytes
    """Of `tuple[SearchName, ...]`."""
    gpus: tuple[bytes, ...]
    """Each of a `Datasheet`."""
    gpu_ids: dict[str, tuple[int, ...]]
    """PCI id to positions in `gpus`."""


def pack(spec: ModelSpec) -> PackedModel:
    """Fold a model's layers into runs."""
    kinds: dict[Layer, int] = {}
    runs: list[int] = []
    for layer in spec.layers:
        kind = kinds.setdefault(layer, len(kinds))
        if runs and runs[-1] == kind:
            runs[-2] += 1
        else:
            runs += [1, kind]
    return PackedModel(structs.replace(spec, layers=()), tuple(kinds), tuple(runs))


def unpack(packed: PackedModel) -> ModelSpec:
    """Unfold a model's layers; equal layers are one object."""
    layers: list[Layer] = []
    for count, kind in zip(packed.runs[::2], packed.runs[1::2], strict=True):
        layers += [packed.kinds[kind]] * count
    return structs.replace(packed.spec, layers=tuple(layers))


def compiled_bytes() -> bytes:
    """Read the compiled file as it is."""
    with open(COMPILED, "rb") as file:  # noqa: PTH123
        return file.read()


@lru_cache(maxsize=1)
def compiled() -> Compiled:
    """Read the compiled file; names, models and accelerators in it stay encoded."""
    return msgspec.msgpack.decode(compiled_bytes(), type=Compiled)


@lru_cache(maxsize=1)
def listings() -> tuple[Listing, ...]:
    """Return what lists show of every model, in the catalog's order."""
    return msgspec.msgpack.decode(compiled().listings, type=tuple[Listing, ...])


@lru_cache(maxsize=1)
def _name_decoder() -> msgspec.msgpack.Decoder[SearchName]:
    return msgspec.msgpack.Decoder(SearchName)


def names_with_key(key: str) -> list[SearchName]:
    """Return the models' names that are the same letters and digits, in the catalog's order."""
    whole, decode = compiled(), _name_decoder().decode
    return [decode(whole.names[position]) for position in whole.keys.get(key, ())]


@lru_cache(maxsize=1)
def search_names() -> tuple[SearchName, ...]:
    """Return every name that a model can be searched by."""
    decode = _name_decoder().decode
    return tuple(decode(name) for name in compiled().names)


@lru_cache(maxsize=1)
def gpu_search_names() -> tuple[SearchName, ...]:
    """Return every name that an accelerator can be searched by."""
    return msgspec.msgpack.decode(compiled().gpu_search, type=tuple[SearchName, ...])


@lru_cache(maxsize=1)
def _positions() -> dict[str, int]:
    return {listing.name: number for number, listing in enumerate(listings())}


@lru_cache(maxsize=1)
def _model_decoder() -> msgspec.msgpack.Decoder[PackedModel]:
    return msgspec.msgpack.Decoder(PackedModel)


@lru_cache(maxsize=1)
def _gpu_decoder() -> msgspec.msgpack.Decoder[Datasheet]:
    return msgspec.msgpack.Decoder(Datasheet)


def model_names() -> tuple[str, ...]:
    """Name all models, in the catalog's order."""
    return tuple(_positions())


def model(name: str) -> ModelSpec:
    """Load one model by its exact catalog name; raises `UnknownModel`. `find.find_model` is forgiving."""
    number = _positions().get(name)
    if number is None:
        raise UnknownModel(name)
    return model_at(number)


@lru_cache(maxsize=512)
def model_at(number: int) -> ModelSpec:
    """Load the model at a position of the index."""
    return unpack(_model_decoder().decode(compiled().models[number]))


def models() -> tuple[ModelSpec, ...]:
    """Load all models, in the catalog's order."""
    return tuple(model_at(number) for number in range(len(compiled().models)))


def sums_of(spec: ModelSpec) -> ModelSums | None:
    """Return the weights that were summed of a model of the catalog, None for any other."""
    number = _positions().get(spec.name)
    if number is None or model_at(number) is not spec:
        return None
    return sums.sums_of(spec.name, compiled().models[number])


@lru_cache(maxsize=512)
def datasheet_at(number: int) -> Datasheet:
    """Load the accelerator at a position of the index."""
    return _gpu_decoder().decode(compiled().gpus[number])


def datasheet(name: str) -> Datasheet:
    """Load one accelerator by its exact name; raises `UnknownGpu`. `find.find_datasheet` is forgiving."""
    try:
        return datasheet_at(compiled().gpu_names.index(name))
    except ValueError:
        raise UnknownGpu(name) from None


def datasheets() -> tuple[Datasheet, ...]:
    """Load all accelerators."""
    return tuple(datasheet_at(number) for number in range(len(compiled().gpus)))


def datasheets_by_pci_id(pci_id: str) -> tuple[Datasheet, ...]:
    """Load the accelerators with this id (`10de:2204`); one id can mean several memory sizes."""
    return tuple(datasheet_at(number) for number in compiled().gpu_ids.get(pci_id.lower(), ()))
