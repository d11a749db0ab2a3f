"""The allocator at work: what a device's buffer comes to for one micro-batch and context.

Blocks do the same again and again, so what a section does to a given arrangement of memory is worked out once: the
allocator is a machine whose states are arrangements and whose moves are sections.
"""

from __future__ import annotations

from collections.abc import Sequence

from willitrun_estimator.compute.allocator import Arena
from willitrun_estimator.compute.form import Form, evaluate
from willitrun_estimator.compute.steps import GIVE, LATEST, SINCE, TAKE_FOR_GOOD, TAKE_WEIGHT, Steps, decode

MOST_STATES = 512
"""States kept of one kind of device and one set of values."""

Move = tuple[Steps, tuple[int, ...]]
"""Steps, and the bytes of their weights."""

Held = tuple[tuple[int, int], ...]
Arrangement = tuple[tuple[int, ...], tuple[int, ...], Held, Held, Held]
"""Starts and lengths of what is free, then offset and size of all that is held, list by list (`trace.SINCE` …)."""


class State:
    """One arrangement of a buffer."""

    __slots__ = ("after", "arrangement")

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        self.after: dict[Move, tuple[State, int]] = {}
        """Where each move leads, and how high it reaches on the way."""


class Replay:
    """All states that a kind of device has been in, for given values of the sizes."""

    def __init__(self, forms: Sequence[Form], values: tuple[int, ...], alignment: int) -> None:
        """`forms` may grow: a step names its size by the place."""
        self._forms, self._values, self._alignment = forms, values, alignment
        self._sizes: dict[int, int] = {}
        self._begin()

    def _begin(self) -> None:
        fresh = Arena()
        self._start = State((tuple(fresh.starts), tuple(fresh.lengths), (), (), ()))
        self._states = {self._start.arrangement: self._start}

    def __len__(self) -> int:
        """Return how many states are kept."""
        return len(self._states)

    def peak(self, moves: Sequence[Move]) -> int:
        """Return the bytes of the buffer after these moves."""
        if len(self._states) > MOST_STATES:
            self._begin()
        state, most = self._start, 0
        for move in moves:
            known = state.after.get(move)
            if known is None:
                known = self._move(state, move)
            state, top = known
            if top > most:  # noqa: PLR1730 - a call would be half of the loop's time
                most = top
        return most

    def _size(self, index: int) -> int:
        size = self._sizes.get(index)
        if size is None:
            size = self._sizes[index] = self._aligned(evaluate(self._forms[index], self._values))
        return size

    def _aligned(self, amount: int) -> int:
        return -(-amount // self._alignment) * self._alignment

    def _move(self, state: State, move: Move) -> tuple[State, int]:
        """Take a move for the first time."""
        steps, weights = move
        starts, lengths, *before = state.arrangement
        arena = Arena()
        arena.starts, arena.lengths = [*starts], [*lengths]
        held = [[*one] for one in before]
        for packed in steps.codes:
            argument, what, list_ = decode(packed)
            if what == GIVE:
                arena.give(*held[list_].pop(argument))
            elif what == LATEST:
                held[SINCE].append(held[list_].pop(argument))
            else:
                size = self._aligned(weights[argument]) if what == TAKE_WEIGHT else self._size(argument)
                offset = arena.take(size)
                if what != TAKE_FOR_GOOD:
                    held[list_].append((offset, size))
        since, early, arrived = map(tuple, held)
        arrangement = tuple(arena.starts), tuple(arena.lengths), since, early, arrived
        reached = self._states.setdefault(arrangement, State(arrangement))
        known = state.after[move] = (reached, arena.peak)
        return known
