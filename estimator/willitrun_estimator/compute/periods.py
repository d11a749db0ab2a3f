"""Runs of like blocks, of which a graph needs only some: an allocator that is where it was repeats itself.

Where the free blocks and the tensors held are the same after one more unit of a run (or two), every further unit does
what the last did, and the peak is reached already. `Program` checks that for the very sizes asked for; where it does
not hold, the whole graph is replayed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from msgspec import Struct

KEPT = 4
"""Units kept of a run: some to settle, three to compare, one that may look ahead to what follows. One more is kept
where the number left out would be odd, so that a state with a period of two comes out the same."""
LONGEST = 8
"""Blocks of the longest unit looked for: patterns of windowed and full attention, of recurrent and full blocks."""


class Run(Struct, frozen=True, kw_only=True):
    """Blocks of a shortened list that stand for more of their like."""

    first: int
    unit: int
    units: int

    @property
    def compared(self) -> tuple[int, int, int]:
        """The blocks before which the allocator's states are compared."""
        last = self.first + (self.units - 1) * self.unit
        return last - 2 * self.unit, last - self.unit, last


def shortened(kinds: Sequence[Hashable]) -> tuple[tuple[int, ...], tuple[Run, ...]]:
    """Choose the blocks to build; returns their indexes and the runs among them. The last block is always alone."""
    kept: list[int] = []
    runs: list[Run] = []
    at, end = 0, len(kinds) - 1
    while at < end:
        saved, unit, repeats = max(
            ((repeats - units_of(repeats)) * unit, -unit, repeats)
            for unit in range(1, LONGEST + 1)
            for repeats in (repetitions(kinds, at, end, unit),)
        )
        if saved <= 0:
            kept.append(at)
            at += 1
            continue
        unit = -unit
        units = units_of(repeats)
        runs.append(Run(first=len(kept), unit=unit, units=units))
        kept.extend(range(at, at + units * unit))
        at += repeats * unit
    kept.extend(range(at, len(kinds)))
    return tuple(kept), tuple(runs)


def units_of(repeats: int) -> int:
    """Return how many units of a run are kept."""
    return repeats if repeats <= KEPT else KEPT + (repeats - KEPT) % 2


def repetitions(kinds: Sequence[Hashable], first: int, end: int, unit: int) -> int:
    """Count how often the unit that begins at `first` stands there in a row, before `end`."""
    at = first + unit
    while at < end and kinds[at] == kinds[at - unit]:
        at += 1
    return (at - first) // unit
