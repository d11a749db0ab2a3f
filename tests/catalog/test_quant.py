from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog import shipped
from willitrun_catalog.model import Tensor
from willitrun_catalog.quant import (
    BASE_TYPES,
    FORMATS,
    LADDER,
    UnknownQuant,
    label_note,
    ladder,
    plain_label,
    quant_name,
    tensor_types,
)
from willitrun_estimator.weights import weight_profile


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("q4_k_m", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("fp16", "F16"),
        ("awq", "AWQ"),
        ("gptq", "GPTQ-INT4"),
        ("gptq_int8", "GPTQ-INT8"),
        ("fp8", "FP8"),
        ("nvfp4", "NVFP4"),
        ("bitsandbytes", "BNB-NF4"),
    ],
)
def test_names_are_forgiving(typed, meant):
    assert quant_name(typed) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("UD-Q4_K_XL", "Q4_K_M"),
        ("ud-q2-k-xl", "Q2_K"),
        ("UD-Q6_K_XL", "Q6_K"),
        ("UD-Q8_K_XL", "Q8_0"),
        ("UD-IQ3_XXS", "IQ3_XXS"),
        ("UD-Q4_K_S", "Q4_K_S"),
        ("Q4_K_XL", "Q4_K_M"),
        ("q8_k_xl", "Q8_0"),
    ],
)
def test_dynamic_labels_are_counted_as_the_nearest_mix(typed, meant):
    assert quant_name(typed) == plain_label(typed) == meant
    assert meant in label_note(typed)


@pytest.mark.parametrize("typed", ["UD-NONSENSE", "UD-", "UD-AWQ", "UD-Q9_K_XL"])
def test_a_dynamic_label_of_nothing_is_unknown(typed):
    assert label_note(typed) is None
    with pytest.raises(UnknownQuant):
        quant_name(typed)


def test_a_plain_label_needs_no_note():
    assert label_note("Q4_K_M") is None
    assert label_note("Q3_K_XL") is None
    assert plain_label("Q4_K_M") is None


def test_unknown_quantization_names_the_nearest():
    with pytest.raises(UnknownQuant) as caught:
        quant_name("Q4_K_X")
    assert "Q4_K_M" in caught.value.nearest
    assert caught.value.exit_code == 4


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_an_error(text):
    try:
        found = quant_name(text) in {*BASE_TYPES, *FORMATS}
    except UnknownQuant as error:
        found = error.query == text
    assert found


def test_the_ladder_goes_down_in_bits():
    spec = shipped.model("llama-3.1-8b-instruct")
    bits = [weight_profile(spec, quant).bits_per_weight for quant in LADDER]
    assert bits == sorted(bits, reverse=True)
    assert ladder(spec) == LADDER
    assert not any(quant.startswith("IQ") for quant in ladder(spec, cpu_only=True))


def test_experts_trained_in_mxfp4_leave_no_choice():
    assert ladder(shipped.model("gpt-oss-20b")) == ("MXFP4_MOE",)


def test_types_come_in_the_order_given_and_fixed_ones_stay():
    spec = shipped.model("llama-3.1-8b-instruct")
    listed = (
        Tensor("blk.1.attn_v.weight", (4096, 1024), 1, "attention"),
        Tensor("blk.0.attn_v.weight", (4096, 1024), 0, "attention"),
        Tensor("blk.2.attn_v.weight", (4096, 1024), 2, "attention", "Q5_0"),
        Tensor("blk.0.attn_norm.weight", (4096,), 0, "norm"),
        Tensor("output.weight", (4096, 128256), None, "output"),
    )
    # Three value matrices: none in an eighth, the third of three is in the last eighth, and it is fixed.
    assert tensor_types("Q4_K_M", listed, spec) == ("Q4_K", "Q4_K", "Q5_0", "F32", "Q6_K")


def test_a_checkpoint_format_is_not_a_mix():
    with pytest.raises(UnknownQuant):
        tensor_types("AWQ", (), shipped.model("qwen3-8b"))


def test_formats_store_what_their_papers_say():
    assert FORMATS["AWQ"].bits == pytest.approx(4.156, abs=0.001)
    assert FORMATS["BNB-NF4"].bits == pytest.approx(4.127, abs=0.001)
    assert FORMATS["NVFP4"].bits == 4.5
    assert FORMATS["MXFP4"].roles == {"experts"}
    assert all(form.source and form.engines for form in FORMATS.values())
