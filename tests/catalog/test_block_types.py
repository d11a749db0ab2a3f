from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.block_types import (
    BLOCK_TYPES,
    UnknownBlockType,
    block_type,
    fitting_type,
    row_bytes,
    tensor_bytes,
)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("F32", 32),
        ("BF16", 16),
        ("Q8_0", 8.5),
        ("Q6_K", 6.5625),
        ("Q5_K", 5.5),
        ("Q4_K", 4.5),
        ("Q4_0", 4.5),
        ("IQ4_XS", 4.25),
        ("MXFP4", 4.25),
        ("NVFP4", 4.5),
        ("Q3_K", 3.4375),
        ("IQ3_XXS", 3.0625),
        ("Q2_K", 2.625),
        ("IQ2_XXS", 2.0625),
        ("IQ1_S", 1.5625),
        ("TQ1_0", 1.6875),
    ],
)
def test_bits_per_weight_are_those_of_ggml(name, bits):
    assert BLOCK_TYPES[name].bits_per_weight == bits


def test_row_and_tensor_bytes():
    assert row_bytes("Q4_K", 4096) == 4096 // 256 * 144
    assert row_bytes("q8_0", 640) == 640 // 32 * 34
    assert tensor_bytes("Q4_K", (4096, 14336, 8)) == 4096 // 256 * 144 * 14336 * 8
    assert tensor_bytes("F32", (4096,)) == 16384


def test_a_partial_block_counts_whole():
    assert row_bytes("Q4_K", 257) == 288


@pytest.mark.parametrize(
    ("wanted", "row", "got"),
    [
        ("Q4_K", 4096, "Q4_K"),
        ("Q4_K", 2880, "Q5_0"),
        ("Q5_K", 640, "Q5_1"),
        ("Q6_K", 640, "Q8_0"),
        ("Q3_K", 2880, "Q4_0"),
        ("IQ2_XS", 128, "IQ4_NL"),
        ("Q4_K", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("BF16", 7, "BF16"),
    ],
)
def test_rows_that_do_not_fit_fall_back(wanted, row, got):
    assert fitting_type(wanted, row) == got


def test_unknown_type_is_an_error_that_names_the_known_ones():
    with pytest.raises(UnknownBlockType) as caught:
        block_type("Q9_Z")
    assert caught.value.exit_code == 4
    assert "Q4_K" in caught.value.advice


@given(st.sampled_from(sorted(BLOCK_TYPES)), st.integers(1, 20_000), st.integers(1, 20_000))
def test_longer_rows_never_take_fewer_bytes(name, one, other):
    short, long = sorted((one, other))
    assert row_bytes(name, short) <= row_bytes(name, long)


@given(st.sampled_from(sorted(BLOCK_TYPES)), st.integers(1, 20_000))
def test_what_fits_divides_the_row(name, row):
    if name in {"Q8_K", "Q8_1", "I8", "NVFP4", "Q1_0"}:
        return
    found = BLOCK_TYPES[fitting_type(name, row)]
    assert row % found.block_elements == 0
