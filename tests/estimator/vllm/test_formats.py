from __future__ import annotations

import pytest

from willitrun_catalog.formats import FORMATS as CATALOG
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.formats import FORMATS, expert_tile, format_of, is_format


@pytest.mark.parametrize(
    ("text", "name"),
    [("", "BF16"), ("fp16", "BF16"), ("FP8-dynamic", "FP8"), ("w8a8", "W8A8"), ("awq-int4", "AWQ"), ("nf4", "BNB-NF4")],
)
def test_names_people_write_find_their_format(text, name):
    assert format_of(text).name == name
    assert is_format(text)


def test_gguf_mixes_are_refused_and_point_to_llama_cpp():
    assert not is_format("Q4_K_M")
    with pytest.raises(EstimatorError) as failure:
        format_of("Q4_K_M")
    assert "llama.cpp" in failure.value.advice


def test_formats_agree_with_the_catalog_wherever_both_describe_one():
    for own in FORMATS.values():
        known = CATALOG.get(own.name)
        # vLLM's own in-flight NF4 keeps 32-bit scales, which the double quantization of the catalog's entry saves.
        if known is not None and own.name != "BNB-NF4":
            assert own.expert_bits == pytest.approx(known.bits, rel=0.001), own.name
        assert format_of(own.name) == own


def test_mxfp4_tiles_depend_on_the_kernel_of_the_time():
    assert expert_tile((0, 14), "hopper") == 64
    assert expert_tile((0, 19), "hopper") == 128
    assert expert_tile((0, 14), "a100") == 128
