"""The header reader alone: what it keeps, what it steps over, and what it refuses."""

from __future__ import annotations

import struct
import time

import pytest

from tests.catalog.readers import gguf_writer as w
from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.gguf import ArrayOf, read_header, read_summary
from willitrun_catalog.readers.source import MemorySource

TENSORS = [("token_embd.weight", (256, 64), "Q4_K"), ("output_norm.weight", (256,), "F32")]


def memory(metadata, tensors=TENSORS, **options) -> MemorySource:
    data, size = w.header(metadata, tensors, **options)
    return MemorySource(data, "m.gguf", len(data) + size)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_come_back_as_written(version):
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "a.negative": -5,
        "a.flag": True,
        "a.ratio": 0.5,
        "a.per_layer": [1, 2, 3],
        "a.pattern": [True, False],
        "a.tags": ["x", "ÿ"],
        "a.empty": [],
    }
    header = read_header(memory(metadata, version=version))
    assert header.metadata["a.per_layer"] == (1, 2, 3)
    assert header.metadata["a.pattern"] == (True, False)
    assert header.metadata["a.tags"] == ("x", "ÿ")
    assert header.metadata["a.empty"] == ()
    assert {key: header.metadata[key] for key in ("a.negative", "a.flag", "a.ratio")} == {
        "a.negative": -5,
        "a.flag": True,
        "a.ratio": 0.5,
    }
    assert [(t.name, t.shape, t.type, t.bytes) for t in header.tensors] == [
        ("token_embd.weight", (256, 64), "Q4_K", 64 * 144),
        ("output_norm.weight", (256,), "F32", 1024),
    ]
    assert header.header_bytes % 32 == 0
    assert header.file_bytes == header.header_bytes + 64 * 144 + 1024


@pytest.mark.parametrize("lengths", [[5] * 3000, list(range(300)) * 12, [0] * 5000, [200, 3] * 2000, [1 << 17] * 80])
def test_token_tables_are_counted_and_stepped_over_exactly(lengths):
    tokens = struct.pack("<IIQ", 9, 8, len(lengths)) + b"".join(
        struct.pack("<Q", length) + b"\x07" * length for length in lengths
    )
    header = read_header(memory({"tokenizer.ggml.tokens": tokens, "after": "seen"}))
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayOf("string", len(lengths))
    assert header.metadata["after"] == "seen"
    assert len(header.tensors) == 2


def test_long_number_arrays_are_counted():
    header = read_header(memory({"scores": [0.0] * 100_000, "kept": [0.0] * 100}))
    assert header.metadata["scores"] == ArrayOf("f32", 100_000)
    assert header.metadata["kept"] == (0.0,) * 100


def test_a_long_chat_template_keeps_its_beginning():
    header = read_header(memory({"tokenizer.chat_template": "é" * 3_000_000, "after": 1}))
    assert header.metadata["tokenizer.chat_template"].startswith("ééé")
    assert len(header.metadata["tokenizer.chat_template"]) < 70_000
    assert header.metadata["after"] == 1


def test_a_summary_stops_before_the_tokens():
    summary = read_summary(memory({"general.architecture": "llama", **w.tokens(2000), "general.file_type": 15}))
    assert summary == {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}


def field_of(data: bytes, size: int | None = None) -> FileFormatError:
    with pytest.raises(FileFormatError) as caught:
        read_header(MemorySource(data, "m.gguf", size))
    assert caught.value.exit_code == 4
    assert "m.gguf" in str(caught.value)
    return caught.value


def test_refusals_name_the_field_and_the_offset():
    good, _ = w.header({"a": 1}, [])
    assert field_of(b"").field == "magic"
    assert field_of(b"PK\x03\x04" + good[4:]).field == "magic"
    assert "version 1" in str(field_of(b"GGUF" + struct.pack("<I", 1) + good[8:]))
    assert "big-endian" in str(field_of(b"GGUF" + struct.pack(">I", 3) + good[8:]))
    assert (field_of(good[:20]).field, field_of(good[:20]).offset) == ("metadata count", 16)
    error = field_of(w.header({"a": struct.pack("<I", 99)}, [])[0])
    assert (error.field, error.offset) == ("a", 33)
    nested = struct.pack("<IIQ", 9, 9, 1)
    assert "element type" in str(field_of(w.header({"a": nested}, [])[0]))
    assert "repeated key" in str(field_of(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (w.text("a") + w.value(1)) * 2))
    assert field_of(w.header({"general.alignment": 3}, [])[0]).field == "general.alignment"


@pytest.mark.parametrize("count", [1 << 60, (1 << 64) - 1, 1 << 40])
@pytest.mark.parametrize("at", [8, 16])
def test_impossible_counts_are_refused_at_once(count, at):
    data = bytearray(w.header({"a": 1}, TENSORS)[0])
    data[at : at + 8] = struct.pack("<Q", count)
    start = time.perf_counter()
    error = field_of(bytes(data), 1 << 40)
    assert time.perf_counter() - start < 0.1
    assert str(count) in str(error)
    assert error.offset == at


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 1 << 31])
def test_impossible_lengths_are_refused_at_once(length):
    for item in (
        struct.pack("<IQ", 8, length),
        struct.pack("<IIQ", 9, 8, length),
        struct.pack("<IIQ", 9, 5, length),
        struct.pack("<IIQQ", 9, 8, 1000, length),
    ):
        error = field_of(w.header({"a": item}, [])[0] + b"\0" * 20_000)
        assert "a" in error.field


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (("a.weight", (-1, 4), 0), "impossible shape"),
        (("a.weight", (0, 4), 0), "impossible shape"),
        (("a.weight", (1 << 40, 1 << 40), 0), "impossible shape"),
        (("a.weight", (100, 4), 12), "not whole Q4_K blocks"),
        (("a.weight", (256, 4), 4), "withdrawn tensor type 4"),
        (("a.weight", (256, 4), 250), "unknown tensor type 250"),
        (("a.weight", (1, 1, 1, 1, 1), 0), "5 dimensions"),
        (("", (4,), 0), "empty tensor name"),
        (("n" * 300, (4,), 0), "name of 300 bytes"),
    ],
)
def test_impossible_tensors_are_refused(tensor, reason):
    name, shape, kind = tensor
    row = w.text(name) + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, kind, 0)
    assert reason in str(field_of(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + row + b"\0" * 4096))


def test_repeated_tensors_are_refused():
    assert "repeated tensor" in str(field_of(w.header({}, [TENSORS[0], TENSORS[0]])[0], 1 << 20))


def test_an_incomplete_download_says_so():
    data, size = w.header({}, TENSORS)
    error = field_of(data, len(data) + size - 1)
    assert "incomplete" in error.advice
    assert error.field == "offset of output_norm.weight"
    assert read_header(MemorySource(data, "m", len(data)), whole_file=False).tensors


def test_a_huge_header_ends_at_its_bound():
    strings = struct.pack("<IIQ", 9, 8, 1 << 24)
    data = w.header({"a": strings}, [])[0]

    class Zeros(MemorySource):
        def read_at(self, offset, length):
            head = data[offset : offset + length]
            return head + b"\0" * (min(length, self.size - offset) - len(head))

    start = time.perf_counter()
    with pytest.raises(FileFormatError, match=r"too long|cannot be right"):
        read_header(Zeros(b"", "zeros", 1 << 45))
    assert time.perf_counter() - start < 5
