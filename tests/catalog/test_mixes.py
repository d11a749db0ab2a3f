from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.block_types import BLOCK_TYPES
from willitrun_catalog.mixes import (
    BASE_TYPES,
    COUNTED_FIRST_8TH,
    FIRST_8TH,
    LAST_8TH,
    MORE,
    NOWHERE,
    MixFacts,
    chosen_type,
    position,
)
from willitrun_catalog.tensor_classes import category, kept_type, quantizable

LLAMA_8B = MixFacts(architecture="llama", experts=0, grouping=4, blocks=32, value_tensors=32, tied=False)
LLAMA_70B = MixFacts(architecture="llama", experts=0, grouping=8, blocks=80, value_tensors=80, tied=False)
MIXTRAL = MixFacts(architecture="llama", experts=8, grouping=4, blocks=32, value_tensors=32, tied=False)


def choose(mix, name, facts=LLAMA_8B, place=NOWHERE, row=4096, matrices=1):
    return chosen_type(mix, category(name), place, facts, name=name, row_elements=row, matrices=matrices)


def test_every_third_block_gets_more_bits_in_between():
    raised = [index for index in range(32) if position(index, 32, index) & MORE]
    assert raised == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_the_first_eighth_counts_down():
    assert [bool(position(index, 48, index) & FIRST_8TH) for index in (0, 5, 6, 47)] == [True, True, False, False]
    assert position(47, 48, 47) & LAST_8TH


def test_running_count_and_block_number_are_told_apart():
    assert position(10, 48, 2) & COUNTED_FIRST_8TH
    assert not position(10, 48, 2) & FIRST_8TH


@pytest.mark.parametrize(
    ("mix", "name", "facts", "place", "wanted"),
    [
        ("Q4_K_M", "attn_v.weight", LLAMA_8B, MORE, "Q6_K"),
        ("Q4_K_M", "attn_v.weight", LLAMA_8B, NOWHERE, "Q4_K"),
        ("Q4_K_M", "attn_v.weight", LLAMA_70B, NOWHERE, "Q5_K"),
        ("Q4_K_M", "attn_v.weight", MIXTRAL, NOWHERE, "Q8_0"),
        ("Q4_K_M", "attn_k.weight", MIXTRAL, NOWHERE, "Q8_0"),
        ("Q4_K_M", "attn_output.weight", MIXTRAL, NOWHERE, "Q5_K"),
        ("Q4_K_M", "ffn_down.weight", LLAMA_8B, MORE, "Q6_K"),
        ("Q4_K_M", "output.weight", LLAMA_8B, NOWHERE, "Q6_K"),
        ("Q8_0", "output.weight", LLAMA_8B, NOWHERE, "Q8_0"),
        ("IQ2_M", "output.weight", LLAMA_8B, NOWHERE, "Q5_K"),
        ("IQ2_M", "token_embd.weight", LLAMA_8B, NOWHERE, "IQ3_S"),
        ("IQ3_XS", "ffn_up.weight", LLAMA_8B, NOWHERE, "IQ3_XXS"),
        ("IQ3_XS", "ffn_up.weight", LLAMA_8B, FIRST_8TH, "IQ3_S"),
        ("Q3_K_L", "attn_output.weight", LLAMA_8B, NOWHERE, "Q5_K"),
        ("Q5_K_S", "ffn_down.weight", LLAMA_8B, MORE, "Q5_K"),
        ("BF16", "attn_v.weight", MIXTRAL, MORE, "BF16"),
        ("Q4_K_L", "token_embd.weight", LLAMA_8B, NOWHERE, "Q8_0"),
        ("Q4_K_L", "output.weight", LLAMA_8B, NOWHERE, "Q8_0"),
        ("Q4_K_L", "attn_v.weight", LLAMA_8B, MORE, "Q6_K"),
        ("Q3_K_XL", "attn_output.weight", LLAMA_8B, NOWHERE, "Q5_K"),
    ],
)
def test_rules_of_llama_quantize(mix, name, facts, place, wanted):
    assert choose(mix, name, facts, place) == wanted


def test_tied_table_takes_the_head_s_type():
    tied = MixFacts(architecture="gemma3", experts=0, grouping=2, blocks=18, value_tensors=18, tied=True)
    assert choose("Q4_K_M", "token_embd.weight", tied, row=4096) == "Q6_K"
    assert choose("Q4_K_M", "token_embd.weight", tied, row=640) == "Q8_0"


def test_an_importance_matrix_changes_three_rules():
    with_matrix = MixFacts("llama", 0, 1, 32, 32, tied=False, importance_matrix=True)
    without = MixFacts("llama", 0, 1, 32, 32, tied=False)
    assert choose("IQ4_XS", "ffn_down.weight", without, FIRST_8TH) == "Q5_K"
    assert choose("IQ4_XS", "ffn_down.weight", with_matrix, FIRST_8TH) == "IQ4_XS"
    assert choose("Q4_0", "ffn_down.weight", with_matrix, FIRST_8TH) == "Q4_1"
    assert choose("IQ3_XXS", "attn_v.weight", without) == "IQ3_S"
    assert choose("IQ3_XXS", "attn_v.weight", with_matrix) == "IQ3_XXS"


def test_mxfp4_is_for_three_dimensional_tensors():
    assert choose("MXFP4_MOE", "ffn_up_exps.weight", MIXTRAL, matrices=8) == "MXFP4"
    assert choose("MXFP4_MOE", "attn_q.weight", MIXTRAL) == "Q8_0"


@pytest.mark.parametrize(
    ("name", "dimensions", "touched"),
    [
        ("blk.0.attn_q.weight", 2, True),
        ("blk.0.ffn_up_exps.weight", 3, True),
        ("blk.0.attn_norm.weight", 1, False),
        ("blk.0.attn_q_norm.weight", 2, False),
        ("blk.0.ffn_gate_inp.weight", 2, False),
        ("blk.0.ssm_conv1d.weight", 2, False),
        ("blk.0.ffn_down_exps.bias", 2, False),
        ("per_layer_model_proj.weight", 2, False),
    ],
)
def test_what_is_never_quantized(name, dimensions, touched):
    assert quantizable(name, dimensions) is touched


def test_kept_tensors_are_f32_but_a_few_keep_16_bits():
    assert kept_type("blk.0.ffn_gate_inp.weight", 2) == "F32"
    assert kept_type("blk.0.attn_norm.weight", 1) == "F32"
    assert kept_type("per_layer_model_proj.weight", 2) == "BF16"
    assert kept_type("blk.0.ffn_gate_tid2eid.weight", 2) == "I32"


@given(
    st.sampled_from(sorted(set(BASE_TYPES) - {"Q1_0"})),
    st.sampled_from(["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "ssm_in"]),
    st.integers(0, 127),
    st.sampled_from([LLAMA_8B, LLAMA_70B, MIXTRAL]),
    st.sampled_from([128, 640, 2880, 4096]),
)
def test_every_mix_gives_every_tensor_a_type_whose_blocks_fill_the_row(mix, name, place, facts, row):
    kind = choose(mix, f"{name}.weight", facts, place, row)
    assert row % BLOCK_TYPES[kind].block_elements == 0
