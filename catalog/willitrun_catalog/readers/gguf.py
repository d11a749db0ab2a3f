"""Header of a GGUF file: metadata and tensor table, without a byte of the weights.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). The reader goes
through the file once in windows of bounded size. Token tables are stepped over without decoding a string; of long
arrays only type and length are kept. Every count is held against the bytes that are left before anything is stored,
so a header that promises more than the file can hold is refused at once.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgspec import Struct

from willitrun_catalog.block_types import BLOCK_TYPES
from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.gguf_window import MAX_HEADER_BYTES, WINDOW_BYTES, Window
from willitrun_catalog.readers.source import ByteSource

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
"""Thirty times the tensor count of the largest models in use."""
MAX_KEPT_ARRAY = 1 << 12
"""Longer arrays are counted, not kept; per-layer arrays are much shorter."""
MAX_KEPT_TEXTS = 64
MAX_DIMENSIONS = 4
FIRST_BULKY_KEY = "tokenizer.ggml.tokens"

TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
"""`enum ggml_type` of ggml/include/ggml.h in https://github.com/ggml-org/llama.cpp."""

REMOVED_TYPES = {4, 5, 31, 32, 33, 36, 37, 38}
"""Numbers that llama.cpp has withdrawn (Q4_2, Q4_3 and the interleaved Q4_0 and IQ4_NL layouts)."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_VALUE_NAMES = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string",
                10: "u64", 11: "i64", 12: "f64"}  # fmt: skip
_MIN_PAIR_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


class ArrayOf(NamedTuple):
    """An array too long to keep: what it holds and how much of it."""

    type: str
    length: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | ArrayOf


class TensorInfo(NamedTuple):
    """One row of the tensor table. `offset` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


class GgufHeader(Struct, frozen=True, kw_only=True):
    """What a GGUF file says about itself."""

    path: str
    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    header_bytes: int
    """Start of the data section."""
    file_bytes: int


def read_header(source: ByteSource, *, whole_file: bool = True) -> GgufHeader:
    """Read the header of a GGUF file.

    `whole_file=False` accepts a source that ends before its weights do. Raises `FileFormatError` naming the field and
    the offset of whatever is wrong, and whatever the source raises.
    """
    window = Window(source)
    version, tensor_count, pair_count = _preamble(window)
    metadata: dict[str, Value] = {}
    for number in range(pair_count):
        at = window.tell()
        key = window.name(f"key {number} of {pair_count}")
        if not key or key in metadata:
            raise window.error(f"{'repeated' if key else 'empty'} key", f"key {number}", at)
        metadata[key] = _value(window, key)
    alignment = _alignment(window, metadata)
    tensors = _tensors(window, tensor_count)
    header_bytes = -(-window.tell() // alignment) * alignment if tensors else window.tell()
    header = GgufHeader(
        path=source.name,
        version=version,
        metadata=metadata,
        tensors=tensors,
        alignment=alignment,
        header_bytes=header_bytes,
        file_bytes=source.size,
    )
    if whole_file:
        _check_data(header)
    return header


def read_summary(source: ByteSource) -> dict[str, Value]:
    """Read only the metadata in front of the token table: enough to list a file, in a fraction of the time.

    Raises as `read_header` does.
    """
    window = Window(source)
    _, _, pair_count = _preamble(window)
    metadata: dict[str, Value] = {}
    for number in range(pair_count):
        key = window.name(f"key {number} of {pair_count}")
        if key == FIRST_BULKY_KEY:
            break
        metadata[key] = _value(window, key)
    return metadata


def _preamble(window: Window) -> tuple[int, int, int]:
    magic = window.take(4, "magic")
    if magic != MAGIC:
        raise window.error(f"is not a GGUF file: it begins with {magic!r}", "magic", 0)
    version = window.u32("version")
    if version in (0x02000000, 0x03000000):
        raise window.error("is a big-endian GGUF file, which no supported engine here loads", "version", 4)
    if version not in (2, 3):
        raise window.error(f"has GGUF version {version}; versions 2 and 3 are known", "version", 4)
    tensor_count = window.count("tensor count", _MIN_TENSOR_BYTES, MAX_TENSORS)
    pair_count = window.count("metadata count", _MIN_PAIR_BYTES, MAX_PAIRS)
    return version, tensor_count, pair_count


def _value(window: Window, key: str) -> Value:
    at = window.tell()
    kind = window.u32(f"type of {key}")
    if kind == _TEXT:
        return window.text(key)
    if kind in _SCALARS:
        return _numbers(window, key, kind, 1)[0]
    if kind != _ARRAY:
        raise window.error(f"unknown value type {kind}", key, at)
    at = window.tell()
    kind = window.u32(f"element type of {key}")
    if kind == _TEXT:
        count = window.count(f"length of {key}", 8, window.texts_left)
        window.texts_left -= count
        if count > MAX_KEPT_TEXTS:
            window.skip_texts(count, key)
            return ArrayOf("string", count)
        return tuple(window.text(key) for _ in range(count))
    if kind not in _SCALARS:
        raise window.error(f"unknown element type {kind}", key, at)
    width = struct.calcsize(_SCALARS[kind])
    count = window.count(f"length of {key}", width, MAX_HEADER_BYTES // width)
    if count > min(MAX_KEPT_ARRAY, window.number_room):
        window.skip(count * width, key)
        return ArrayOf(_VALUE_NAMES[kind], count)
    window.number_room -= count
    return _numbers(window, key, kind, count)


def _numbers(window: Window, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
    form = f"<{count}{_SCALARS[kind]}"
    return struct.unpack(form, window.take(struct.calcsize(form), key))


def _alignment(window: Window, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    power_of_two = (
        isinstance(alignment, int)
        and not isinstance(alignment, bool)
        and 0 < alignment <= WINDOW_BYTES
        and alignment & (alignment - 1) == 0
    )
    if not power_of_two:
        raise window.error(f"alignment {alignment!r} is not a power of two", "general.alignment", window.tell())
    return int(alignment)  # type: ignore[arg-type]


def _tensors(window: Window, count: int) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    types: dict[int, str] = {}
    for number in range(count):
        at = window.tell()
        name = window.name(f"name of tensor {number} of {count}")
        if not name or name in seen:
            raise window.error(f"{'repeated' if name else 'empty'} tensor name {name!r}", f"tensor {number}", at)
        seen.add(name)
        dimensions = window.u32(f"dimensions of {name}")
        if dimensions > MAX_DIMENSIONS:
            raise window.error(f"{dimensions} dimensions, at most {MAX_DIMENSIONS}", name, at)
        row = window.take(8 * dimensions + 12, name)
        *shape, type_number, offset = struct.unpack(f"<{dimensions}qIQ", row)
        kind = types.get(type_number) or types.setdefault(type_number, _type_name(window, type_number, name, at))
        tensors.append(_tensor(window, name, tuple(shape) or (1,), kind, offset=offset, at=at))
    return tuple(tensors)


def _type_name(window: Window, number: int, tensor: str, at: int) -> str:
    if number in TYPE_NAMES:
        return TYPE_NAMES[number]
    what = "a withdrawn" if number in REMOVED_TYPES else "an unknown"
    raise window.error(f"has {what} tensor type {number}", f"type of {tensor}", at)


def _tensor(window: Window, name: str, shape: tuple[int, ...], kind: str, *, offset: int, at: int) -> TensorInfo:
    elements = 1
    for size in shape:
        elements *= size
        if size <= 0 or elements >= 1 << 63:
            raise window.error(f"impossible shape {shape}", f"shape of {name}", at)
    block = BLOCK_TYPES[kind]
    if shape[0] % block.block_elements:
        raise window.error(
            f"rows of {shape[0]} weights are not whole {kind} blocks of {block.block_elements}", name, at
        )
    size = elements // block.block_elements * block.block_bytes
    return TensorInfo(name, shape, kind, offset, size)


def _check_data(header: GgufHeader) -> None:
    """Hold the tensor table against the length of the file: a partial download ends early."""
    room = header.file_bytes - header.header_bytes
    for tensor in header.tensors:
        end = tensor.offset + tensor.bytes
        if tensor.offset % header.alignment or end > room:
            wrong = "is not aligned" if end <= room else f"ends at {header.header_bytes + end}"
            raise FileFormatError(
                header.path,
                f"tensor {tensor.name} {wrong}, the file has {header.file_bytes} bytes",
                field=f"offset of {tensor.name}",
                offset=header.header_bytes + tensor.offset,
                advice="the download is incomplete or damaged: fetch the file again",
            )
