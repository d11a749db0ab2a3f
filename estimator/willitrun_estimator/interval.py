"""Bounds around an expectation: what share of measurements lay how far from the model.

The ratios are residuals of the fit with the GPU (or host) left out, by group, so that they say how well a machine
is predicted that was not among the rows. Groups that are too small lend from the wider one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from willitrun_estimator.plan import Basis, Interval


class Spread(Struct, frozen=True):
    """Ratios of measured to expected speed that hold 80 % of outcomes between them."""

    low: float
    high: float
    rows: int = 0


NO_SPREAD = Spread(low=0.5, high=2.0)
"""Where nothing was measured: a factor of two either way."""


def interval(expected: float, spread: Spread, *, basis: Basis = "estimated") -> Interval:
    """Return the expectation with the bounds of 80 % of outcomes; the bounds always hold it."""
    low, high = expected * min(1.0, spread.low), expected * max(1.0, spread.high)
    return Interval(expected=expected, low=low, high=high, basis=basis)


def time_interval(work: float, speed: Interval, *, extra_s: float = 0.0) -> Interval:
    """Return the seconds that `work` takes at a speed, and some more: the fast end is the short time."""
    return Interval(
        expected=work / speed.expected + extra_s,
        low=work / speed.high + extra_s,
        high=work / speed.low + extra_s,
        basis=speed.basis,
    )


def spread(table: Mapping[str, Spread], groups: Iterable[str]) -> Spread:
    """Return the spread of the first group that has one."""
    return next((table[group] for group in groups if group in table), NO_SPREAD)


def widest(spreads: Iterable[Spread]) -> Spread:
    """Return the bounds that hold the bounds of all of them."""
    found = list(spreads) or [NO_SPREAD]
    return Spread(
        low=min(one.low for one in found), high=max(one.high for one in found), rows=min(one.rows for one in found)
    )
