"""The score's factors, grades and the document that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_estimator.score import (
    GRADES,
    LENSES,
    PURPOSES,
    context_factor,
    decode_factor,
    grade,
    quality_factor,
    score,
    score_parts,
    strength,
    ttft_factor,
)

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "scoring.md"
FACTOR = st.floats(0.01, 1.0)


def test_the_factors_have_their_documented_halves() -> None:
    assert decode_factor(5.3, 5.3) == 0.5
    assert ttft_factor(4.0, 4.0) == 0.5
    assert quality_factor(0.0) == 1.0
    assert quality_factor(0.25) == pytest.approx(0.36788, abs=1e-5)
    assert context_factor(8192, 8192) == 1.0
    assert context_factor(3072, 15360) == 0.5


@pytest.mark.parametrize(
    ("points", "letter"), [(90, "S"), (89.9, "A"), (78, "A"), (65, "B"), (50, "C"), (30, "D"), (29, "F")]
)
def test_grades_change_at_their_bounds(points: float, letter: str) -> None:
    assert grade(points) == letter


def test_exponents_of_every_mode_add_up_to_one() -> None:
    for lens in LENSES.values():
        assert lens.quality + lens.decode + lens.ttft + lens.context == pytest.approx(1.0)


@given(FACTOR, FACTOR, FACTOR, FACTOR, FACTOR)
def test_a_better_factor_never_lowers_the_score(q: float, d: float, t: float, c: float, more: float) -> None:
    for lens in LENSES.values():
        before = score(quality=q, decode=d, ttft=t, context=c, lens=lens)
        assert score(quality=max(q, more), decode=d, ttft=t, context=c, lens=lens) >= before - 1e-9
        assert score(quality=q, decode=max(d, more), ttft=t, context=c, lens=lens) >= before - 1e-9
        assert 0 < before <= 100.0 + 1e-9


def test_nothing_makes_up_for_a_factor_of_zero() -> None:
    assert score(quality=1, decode=0, ttft=1, context=1, lens=LENSES["balanced"]) == 0.0


def test_the_parts_multiply_to_the_score() -> None:
    lens = LENSES["balanced"]
    parts = score_parts(quality=0.9, decode=0.8, ttft=0.7, context=0.6, lens=lens, reasons=("a", "b", "c", "d"))
    product = 100.0
    for part in parts:
        product *= part.value**part.weight
    assert product == pytest.approx(score(quality=0.9, decode=0.8, ttft=0.7, context=0.6, lens=lens))


def test_ability_grows_with_size_and_youth() -> None:
    assert strength(8_000_000_000, 8_000_000_000, "2024-07") < strength(70_000_000_000, 70_000_000_000, "2024-07")
    assert strength(8_000_000_000, 8_000_000_000, "2024-07") < strength(8_000_000_000, 8_000_000_000, "2025-07")
    assert strength(12_000_000_000, 12_000_000_000, None) == 0.5
    assert strength(48_000_000_000, 3_000_000_000, "2023-07") == 0.5


def test_the_document_lists_these_numbers() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for mode, lens in LENSES.items():
        assert (
            f"| {mode} | {lens.quality} | {lens.decode} | {lens.ttft} | {lens.context} | {lens.concurrency} |" in text
        )
    for name, purpose in PURPOSES.items():
        assert f"| {name} | {purpose.prompt_tokens} | {purpose.output_tokens} | {purpose.context_tokens} |" in text
    for least, letter in GRADES:
        assert f"{letter} from {least}" in text
