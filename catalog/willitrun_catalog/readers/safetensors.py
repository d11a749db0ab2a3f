"""Header of a safetensors file: names, types and shapes, without a byte of the weights.

Layout: https://github.com/huggingface/safetensors#format (8 bytes of length, that much JSON, the data). The JSON is
bounded before it is read and every entry is held against the length of the file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.source import ByteSource

MAX_HEADER_BYTES = 8 << 20
"""A shard of the largest checkpoints (thousands of experts) has a header of a few hundred kilobytes."""
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 8

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""`enum Dtype` of safetensors/src/tensor.rs in https://github.com/huggingface/safetensors."""

_LENGTH = struct.Struct("<Q")


class StoredTensor(NamedTuple):
    """One tensor as the file stores it, slowest dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class _Slot(Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_TABLE = msgspec.json.Decoder(dict[str, Raw])
_SLOT = msgspec.json.Decoder(_Slot)


def read_tensors(source: ByteSource) -> list[StoredTensor]:
    """Read the tensor table of a safetensors file.

    Raises `FileFormatError` naming the field and the offset of whatever is wrong, and whatever the source raises.
    """
    head = source.read_at(0, 8)
    if len(head) < 8:  # noqa: PLR2004 - the length itself
        raise _wrong(source, f"has {len(head)} bytes, too few for a header", "header length", 0)
    length = _LENGTH.unpack(head)[0]
    if not 1 < length <= min(MAX_HEADER_BYTES, source.size - 8):
        raise _wrong(source, f"a header of {length} bytes cannot be right in {source.size}", "header length", 0)
    text = source.read_at(8, length)
    if len(text) < length:
        raise _wrong(source, "ends inside its header", "header", 8 + len(text))
    try:
        table = _TABLE.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _wrong(source, f"has a broken header: {error}", "header", 8) from error
    table.pop("__metadata__", None)
    if len(table) > MAX_TENSORS:
        raise _wrong(source, f"lists {len(table)} tensors, more than {MAX_TENSORS}", "header", 8)
    room = source.size - 8 - length
    return [_stored(source, name, raw, room) for name, raw in table.items()]


def _stored(source: ByteSource, name: str, raw: Raw, room: int) -> StoredTensor:
    field = f"tensor {name[:200]}"
    try:
        slot = _SLOT.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _wrong(source, f"has a broken entry: {error}", field, 8) from error
    bits = BITS.get(slot.dtype)
    if bits is None:
        raise _wrong(source, f"has an unknown type {slot.dtype[:40]!r}", field, 8)
    elements = 1
    for size in slot.shape[: MAX_DIMENSIONS + 1]:
        elements *= size
    begin, end = slot.data_offsets
    if len(slot.shape) > MAX_DIMENSIONS or min(slot.shape, default=0) < 0 or elements * bits % 8:
        raise _wrong(source, f"has an impossible shape {slot.shape[:MAX_DIMENSIONS]}", field, 8)
    if not 0 <= begin <= end or end - begin != elements * bits // 8:
        raise _wrong(source, f"has {end - begin} bytes for shape {slot.shape} of {slot.dtype}", field, 8)
    if end > room:
        raise FileFormatError(
            source.name,
            f"{field} ends {end - room} bytes beyond the file",
            field="data_offsets",
            offset=source.size,
            advice="the download is incomplete or damaged: fetch the file again",
        )
    return StoredTensor(name, slot.dtype, tuple(slot.shape), end - begin)


def _wrong(source: ByteSource, reason: str, field: str, offset: int) -> FileFormatError:
    return FileFormatError(source.name, reason, field=field, offset=offset)
