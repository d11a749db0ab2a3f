"""What sections of a graph do, and how they make the steps of a whole layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from willitrun_estimator.compute import trace
from willitrun_estimator.compute.steps import EARLY, GIVE, INPUTS, LATEST, TAKE, Known, Steps, code, decode

ROUNDS = 3
ARRIVALS, CLOSED, OPEN = range(ROUNDS, 6)
"""Parts of a section (`trace.Section`)."""
LEAF = -1
"""Stands for what is no input among what is taken from the start."""
Part = tuple[tuple[int, Steps], ...]
"""Devices that have something to do, each with its steps."""
Program = tuple[tuple[tuple[Steps, int], ...], ...]
"""For each device its steps, and the block whose weights they copy."""


class Section(NamedTuple):
    """What a section does on the devices that have something to do (`trace.Section`)."""

    splits: bool
    parts: tuple[Part, ...]
    """Three rounds before anything is computed, arrivals, what is closed and what is open."""

    @staticmethod
    def of(traced: trace.Section) -> Section:
        """Leave out the devices that have nothing to do."""
        splits, *parts = traced
        found = [tuple([(device, steps) for device, steps in enumerate(part) if steps.codes]) for part in parts]
        return Section(splits, tuple(found))

    def renamed(self, names: Mapping[int, int]) -> Section | None:
        """Return the same on devices of other names; None where one has no name."""
        if any(device not in names for part in self.parts for device, _ in part):
            return None
        return Section(
            self.splits, tuple([tuple([(names[device], steps) for device, steps in part]) for part in self.parts])
        )


class Inputs:
    """Puts inputs among what the host takes from the start, of which the steps of a graph name one by its place.

    Those of a section name an input by its place among all, so that they do not depend on which others are left.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._early: dict[Steps, bool] = {}
        """Whether steps take or give back anything of the kind."""
        self._placed: dict[tuple[Steps, tuple[int, ...]], tuple[Steps, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        """Return how much is kept."""
        return len(self._early) + len(self._placed)

    def placed(self, line: Sequence[tuple[Steps, int]]) -> list[tuple[Steps, int]]:
        """Return the steps of a graph for those of its sections."""
        held: tuple[int, ...] = ()
        found = []
        for steps, block in line:
            early = self._early.get(steps)
            if early is None:
                early = self._early[steps] = any(decode(packed)[2] in {EARLY, INPUTS} for packed in steps.codes)
            if early:
                known = self._placed.get((steps, held))
                if known is None:
                    known = self._placed[steps, held] = self._place(steps, held)
                found.append((known[0], block))
                held = known[1]
            else:
                found.append((steps, block))
        return found

    def _place(self, steps: Steps, before: tuple[int, ...]) -> tuple[Steps, tuple[int, ...]]:
        """Return steps of a graph, and what is held behind them: inputs by number, and leaves."""
        held = [*before]
        codes = []
        for packed in steps.codes:
            argument, what, kind = decode(packed)
            if kind in {EARLY, INPUTS}:
                if what == TAKE:
                    held.append(LEAF if kind == EARLY else len(held) - held.count(LEAF))
                elif what in {GIVE, LATEST}:
                    leaves = [place for place, one in enumerate(held) if one == LEAF]
                    argument = held.index(argument) if kind == INPUTS else leaves[argument]
                    del held[argument]
                kind = EARLY
            codes.append(code(argument, what, kind))
        return self._known.steps(tuple(codes), steps.weights), tuple(held)


def expanded(sections: Sequence[Section], same: Sequence[int], host: int, inputs: Inputs) -> Program:
    """Return the program of all blocks from the sections of some; `same` names for each block one that is like it."""
    lines: list[list[tuple[Steps, int]]] = [[] for _ in range(host + 1)]
    blocks = [(sections[0], -1), *((sections[1 + like], block) for block, like in enumerate(same))]
    blocks.append((sections[-1], len(same)))

    def add(part: Part, block: int) -> None:
        for device, steps in part:
            lines[device].append((steps, block))

    for part in range(ROUNDS):
        for section, block in blocks:
            add(section.parts[part], block)
    begun: list[tuple[Section, int]] = []
    for section, block in blocks:
        add(section.parts[ARRIVALS], block)
        if section.splits:
            for before, number in begun:
                add(before.parts[OPEN], number)
            begun.clear()
            add(section.parts[CLOSED], block)
        begun.append((section, block))
    for before, number in begun:
        add(before.parts[OPEN], number)
    lines[host] = inputs.placed(lines[host])
    return tuple(map(tuple, lines))
