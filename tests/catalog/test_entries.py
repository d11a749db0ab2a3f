from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.entries import expand_layers, read_datasheets, read_models
from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.model import Attention, Dense, Moe, NoFfn, NoMixer

ENTRY = """
[[model]]
name = "tiny"
title = "Tiny"
hf = "someone/Tiny"
architecture = "llama"
context = 2048
hidden = 64
vocab = 1000
layers = "2(local/dense, full/moe), mamba+full/none, none/dense"
mixer.local = { heads = 4, kv_heads = 2, dim = 16, window = 512 }
mixer.full = { heads = 4, kv_heads = 2, dim = 16, value_dim = 8 }
mixer.mamba = { kind = "mamba2", inner = 128, state = 16, heads = 4, groups = 1, conv = 4 }
ffn.dense = { width = 256 }
ffn.moe = { experts = 8, used = 2, width = 32, shared = 64 }
sources = ["a paper"]
"""


def test_the_notation_of_layers():
    assert expand_layers("3 a/x") == ["a/x"] * 3
    assert expand_layers("a/x, 2(b/y, 2 a/x), c/z") == ["a/x", "b/y", "a/x", "a/x", "b/y", "a/x", "a/x", "c/z"]
    assert expand_layers("2(2(a/x), b/y)") == ["a/x", "a/x", "b/y"] * 2


@pytest.mark.parametrize("broken", ["3", "2(a/x", "a/x)", "2(a/x)) b/y"])
def test_broken_notation_is_refused(broken):
    with pytest.raises(ValueError):
        expand_layers(broken)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["a/x", "b+c/y", "none/z"])), min_size=1, max_size=12))
def test_runs_expand_to_their_sum(runs):
    text = ", ".join(f"{count} {key}" for count, key in runs)
    assert expand_layers(text) == [key for count, key in runs for _ in range(count)]


def test_an_entry_becomes_a_spec(tmp_path):
    (tmp_path / "tiny.toml").write_text(ENTRY)
    (spec,) = read_models(tmp_path)
    assert spec.block_count == 6
    assert spec.layers[0].mixers == (Attention(heads=4, kv_heads=2, key_dim=16, value_dim=16, window=512),)
    assert spec.layers[1].ffn == Moe(experts=8, experts_used=2, width=32, shared_width=64)
    assert [type(mixer).__name__ for mixer in spec.layers[4].mixers] == ["Recurrent", "Attention"]
    assert spec.layers[4].mixers[0].conv_elements == 3 * (128 + 2 * 16)
    assert spec.layers[4].ffn == NoFfn()
    assert spec.layers[5].mixers == (NoMixer(),)
    assert spec.layers[5].ffn == Dense(width=256)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hidden = 64", ""),
        ("dim = 16, window = 512", "window = 512"),
        ("2(local/dense", "2(elsewhere/dense"),
        ('kind = "mamba2"', 'kind = "elephant"'),
        ('sources = ["a paper"]', ""),
        ("[[model]]", "[[model"),
    ],
)
def test_a_broken_entry_is_named(tmp_path, old, new):
    (tmp_path / "tiny.toml").write_text(ENTRY.replace(old, new))
    with pytest.raises(FileFormatError) as caught:
        read_models(tmp_path)
    assert "tiny.toml" in caught.value.message


def test_a_broken_accelerator_is_named(tmp_path):
    (tmp_path / "nvidia-new.toml").write_text('[[gpu]]\nname = "NVIDIA X1"\nfamily = "new"\n')
    with pytest.raises(FileFormatError) as caught:
        read_datasheets(tmp_path)
    assert "NVIDIA X1" in caught.value.message
