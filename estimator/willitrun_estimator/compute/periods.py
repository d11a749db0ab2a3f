"""Runs of like blocks, of which a graph needs only some to show what all of them do."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from willitrun_estimator.compute.kinds import Looks

LONGEST = 8
"""Blocks of the longest unit looked for: patterns of windowed and full attention, of recurrent and full blocks."""


def shortened(kinds: Sequence[Hashable], looks: Looks) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose the blocks to build; returns their indexes and, for every block, the place of one that does the same.

    Of a run, as many units are kept as show a unit in the midst of its like: with whole units before and behind it,
    and farther from what is beside the run than blocks look.
    """
    kept: list[int] = []
    same: list[int] = []
    at, end = 0, len(kinds)
    while at < end:
        saved, unit, repeats = 0, 1, 1
        for length in range(1, LONGEST + 1):
            count = repetitions(kinds, at, length)
            spared = (count - min(count, units_of(length, looks))) * length
            if spared > saved:
                saved, unit, repeats = spared, length, count
        first = len(kept)
        before = before_of(unit, looks)
        units = min(repeats, units_of(unit, looks))
        kept.extend(range(at, at + units * unit))
        for number in range(repeats):
            like = max(min(number, before), number - repeats + units)
            same.extend(range(first + like * unit, first + (like + 1) * unit))
        at += repeats * unit
    return tuple(kept), tuple(same)


def before_of(length: int, looks: Looks) -> int:
    """Return how many units of so many blocks are kept of a run before the one that is repeated."""
    return -(-max(looks.reach, length) // length)


def units_of(length: int, looks: Looks) -> int:
    """Return how many units are kept of a run: some before, the one that is repeated, and some behind."""
    return before_of(length, looks) + 1 - (-max(looks.reach, 2 * looks.ahead + length) // length)


def repetitions(kinds: Sequence[Hashable], first: int, unit: int) -> int:
    """Count how often the unit that begins at `first` stands there in a row."""
    at, end = first + unit, len(kinds)
    if at > end:
        return 0
    while at < end and kinds[at] == kinds[at - unit]:
        at += 1
    return (at - first) // unit
