from __future__ import annotations

import struct

import pytest

from willitrun_catalog import shipped
from willitrun_catalog.quant import tensor_types
from willitrun_catalog.readers import open_model
from willitrun_estimator.tensors import tensors
from willitrun_estimator.weights import weight_profile
from willitrun_here.calibrate import made_up
from willitrun_here.calibrate.kernels import NARROW


@pytest.mark.parametrize("kind", [*made_up.SCALES, "MXFP4", "F16", "BF16"])
def test_a_file_reads_back_as_the_model_it_was_made_from(tmp_path, kind):
    spec = NARROW.spec(2)
    listed = [(one.name, one.shape, "F32" if len(one.shape) == 1 else kind) for one in tensors(spec)]
    path = made_up.write(tmp_path / "deep" / "m.gguf", made_up.metadata_of(spec), listed)
    found = open_model(str(path))
    assert found.layers == spec.layers
    assert {(one.name, one.shape, one.type) for one in found.tensors} == set(listed)
    assert path.stat().st_size == weight_profile(found, "").file_bytes


def test_routed_experts_can_be_made_up(tmp_path):
    spec = shipped.model("granite-3.1-1b-a400m-instruct")
    metadata = made_up.metadata_of(spec)
    assert (metadata["granitemoe.expert_count"], metadata["granitemoe.expert_used_count"]) == (32, 8)
    types = tensor_types("Q4_K_M", tensors(spec), spec)
    assert {"Q4_K", "Q6_K", "F32"} == set(types)


def test_other_blocks_are_refused():
    with pytest.raises(ValueError, match="plain"):
        made_up.metadata_of(shipped.model("granite-4.0-h-tiny"))


def test_weights_are_finite_and_small():
    halves = struct.iter_unpack("<e", made_up.weights_of("F16"))
    assert max(abs(one) for (one,) in halves) < 0.04
    words = struct.iter_unpack("<H", made_up.weights_of("BF16"))
    assert max(abs(struct.unpack("<f", struct.pack("<I", one << 16))[0]) for (one,) in words) < 0.04
    assert struct.unpack_from("<e", made_up.weights_of("Q6_K"), 208)[0] == pytest.approx(0.002, rel=1e-3)


def test_a_vocabulary_of_bytes_has_every_byte():
    found = made_up.byte_vocabulary(300)
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 300
    assert "<0xFF>" in found["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(("value", "kind"), [(True, 7), (3, 4), (0.5, 6), ("x", 8), (["a"], 9), ([1], 9), ([0.5], 9)])
def test_metadata_says_its_type(value, kind):
    assert struct.unpack_from("<I", made_up.encoded(value))[0] == kind


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(KeyError):
        made_up.write(tmp_path / "m.gguf", {}, [("a", (256, 1), "Q8_K")])
    assert list(tmp_path.iterdir()) == []
