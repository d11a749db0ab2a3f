from __future__ import annotations

import pytest

from benchmarks.accuracy_speed import asked, quantile
from benchmarks.speed_cases import cases

RESULTS = [found for one in cases() if not one.skip and one.slots == 1 and (found := asked(one)) is not None]
NEW = {"ada", "ampere", "blackwell"}


@pytest.mark.parametrize(
    ("rows", "median", "p90", "least"),
    [
        (lambda c: c.test == "tg" and c.where == "gpu", 0.08, 0.25, 700),
        (lambda c: c.test == "tg" and c.where == "gpu" and not c.moe and c.family in NEW, 0.06, 0.18, 200),
        (lambda c: c.test == "tg" and c.where == "gpu" and c.moe, 0.15, 0.40, 140),
        (lambda c: c.test == "tg" and c.where == "offload", 0.15, 0.40, 160),
        (lambda c: c.test == "pp" and c.where == "gpu", 0.15, 0.50, 600),
    ],
)
def test_the_shipped_constants_meet_the_bars_on_their_rows(rows, median, p90, least):
    errors = [abs(result.error) for result in RESULTS if rows(result.case)]
    assert len(errors) >= least
    assert quantile(errors, 0.5) <= median
    assert quantile(errors, 0.9) <= p90


def test_the_interval_covers_what_it_says():
    share = sum(result.covered for result in RESULTS) / len(RESULTS)
    assert 0.75 <= share <= 0.95
