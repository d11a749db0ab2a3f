from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.quality import UNKNOWN_DIVERGENCE, kl_divergence, level_of, plain_label, quality
from willitrun_catalog.quality_table import KL_DIVERGENCE, REFERENCE_PARAMS, SOURCES
from willitrun_catalog.quant import LADDER

PARAMS = st.integers(50_000_000, 3_000_000_000_000)


def test_the_reference_model_gets_the_measured_figure():
    found = quality("Q4_K_M", REFERENCE_PARAMS)
    assert found.kl_divergence == pytest.approx(0.028152)
    assert found.level == "high"
    assert "scoreboard" in found.basis


def test_the_ladder_loses_more_and_more():
    lost = [kl_divergence(quant, 8_000_000_000) for quant in LADDER]
    # IQ2_M is smaller than Q2_K and as good: the one pair that is not in order.
    assert all(after > 0.95 * before for before, after in pairwise(lost))
    assert quality("BF16", 1_000_000_000).level == "maximum"
    assert quality("IQ1_S", 8_000_000_000).level == "very-low"


@given(st.sampled_from(sorted(KL_DIVERGENCE)), PARAMS, PARAMS)
def test_larger_models_never_lose_more(quant, one, other):
    small, large = sorted((one, other))
    assert kl_divergence(quant, large) <= kl_divergence(quant, small)


def test_what_is_unknown_is_said_to_be_and_planned_with_care():
    assert quality("Q9_Z", 8_000_000_000).level == "unknown"
    assert quality("Q9_Z", 8_000_000_000).kl_divergence is None
    assert kl_divergence("Q9_Z", 8_000_000_000) == UNKNOWN_DIVERGENCE


def test_native_formats_lose_nothing():
    assert quality("MXFP4_MOE", 20_000_000_000, native_type="mxfp4").level == "maximum"
    assert quality("MXFP4_MOE", 20_000_000_000).level != "maximum"


@pytest.mark.parametrize(
    ("label", "mix"),
    [
        ("UD-Q4_K_XL", "Q4_K_M"),
        ("i1-Q4_K_M", "Q4_K_M"),
        ("Q5_K_L", "Q5_K_M"),
        ("Q6_K_L", "Q6_K"),
        ("Q3_K_XL", "Q3_K_L"),
        ("Q3_K_L", "Q3_K_L"),
        ("UD-Q8_K_XL", "Q8_0"),
        ("UD-IQ2_M", "IQ2_M"),
    ],
)
def test_publishers_variants_are_graded_as_their_mix(label, mix):
    assert plain_label(label) == mix


def test_levels_are_ordered_and_sources_exist():
    assert [level_of(value) for value in (0, 0.005, 0.02, 0.1, 0.3, 1)] == [
        "maximum",
        "very-high",
        "high",
        "medium",
        "low",
        "very-low",
    ]
    assert {source for _, source in KL_DIVERGENCE.values()} <= set(SOURCES)
