"""A short slice of the fuzzing in `scripts/fuzz_readers.py`, and laws that hold for any input."""

from __future__ import annotations

import importlib.util
import random
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.catalog.readers import gguf_writer as w
from willitrun_catalog.errors import CatalogError
from willitrun_catalog.readers.checkpoint_names import parse
from willitrun_catalog.readers.gguf import ArrayOf, read_header
from willitrun_catalog.readers.names import quant_of
from willitrun_catalog.readers.quantization import quantization
from willitrun_catalog.readers.safetensors import read_tensors
from willitrun_catalog.readers.source import MemorySource
from willitrun_catalog.readers.user import decode_entry

SCRIPT = Path(__file__).parents[3] / "scripts" / "fuzz_readers.py"
QUICK = settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_readers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_slice_of_the_script_keeps_its_promises(fuzz, tmp_path):
    assert fuzz.run(3000, 1, tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_every_seed_of_the_script_is_a_model(fuzz):
    assert all(fuzz.execute(data) for data in fuzz.gguf_seeds() + fuzz.safetensors_seeds())


def test_a_broken_promise_is_kept_as_a_file(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "execute", lambda _data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuzz.checked(b"x", tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


@QUICK
@given(data=st.binary(max_size=400), version=st.integers(0, 5), pairs=st.integers(0, 6), tensors=st.integers(0, 6))
def test_any_bytes_after_the_magic_give_a_header_or_the_documented_error(data, version, pairs, tensors):
    head = b"GGUF" + version.to_bytes(4, "little") + tensors.to_bytes(8, "little") + pairs.to_bytes(8, "little")
    try:
        header = read_header(MemorySource(head + data, "x", 1 << 30))
    except CatalogError:
        return
    assert len(header.metadata) == pairs
    assert len(header.tensors) == tensors


@QUICK
@given(text=st.binary(max_size=300), size=st.integers(0, 1 << 40))
def test_any_bytes_of_json_give_tensors_or_the_documented_error(text, size):
    try:
        found = read_tensors(MemorySource(len(text).to_bytes(8, "little") + text, "x", size))
    except CatalogError:
        return
    assert all(tensor.bytes >= 0 for tensor in found)


scalars = st.one_of(
    st.integers(-(1 << 31), (1 << 32) - 1), st.booleans(), st.text(max_size=40), st.floats(width=32, allow_nan=False)
)
metadata = st.dictionaries(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=20).filter(
        lambda key: key != "general.alignment"
    ),
    st.one_of(
        scalars,
        st.lists(st.integers(-100, 100), min_size=1, max_size=30),
        st.lists(st.text(max_size=80), min_size=1, max_size=90),
    ),
    max_size=8,
)


@QUICK
@given(values=metadata)
def test_what_is_written_is_read(values):
    data, size = w.header(values, [("a.weight", (32, 3), "Q8_0")])
    header = read_header(MemorySource(data, "x", len(data) + size))
    for key, value in values.items():
        got = header.metadata[key]
        if isinstance(got, ArrayOf):
            assert got.length == len(value)
        else:
            assert got == (tuple(value) if isinstance(value, list) else value)
    assert [(tensor.shape, tensor.bytes) for tensor in header.tensors] == [((32, 3), 102)]


@QUICK
@given(cut=st.integers(0, 400))
def test_a_header_that_ends_anywhere_is_refused(cut):
    data, _ = w.header({"general.architecture": "llama", "a": [1, 2, 3], "b": "text"}, [("a.weight", (32, 3), "Q8_0")])
    data = data.rstrip(b"\0")
    if cut >= len(data) - 8:  # the last field is an offset of zeros
        return
    with pytest.raises(CatalogError):
        read_header(MemorySource(data[:cut], "x"))


@QUICK
@given(st.text(max_size=120))
def test_names_never_fail(text):
    parse(text)
    quant_of(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(config=st.dictionaries(st.sampled_from(["quantization_config", "text_config"]), json_values))
def test_any_quantization_config_gives_a_name_or_none(config):
    name, bits = quantization(config)
    assert (name is None) == (bits is None)


@QUICK
@given(st.binary(max_size=200))
def test_any_entry_is_a_model_or_the_documented_error(data):
    with pytest.raises(CatalogError):
        decode_entry(data, "x")


def test_memory_stays_within_its_bound():
    chance = random.Random(3)
    count = 300_000
    words = b"".join(w.text(chr(97 + chance.randrange(26)) * chance.randrange(12)) for _ in range(count))
    table = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + count.to_bytes(8, "little") + words
    data, size = w.header({"a": table, "b": table}, [("t.weight", (32, 3), "Q8_0")])
    source = MemorySource(data, "x", len(data) + size)
    tracemalloc.start()
    read_header(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
