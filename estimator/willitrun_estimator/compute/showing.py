"""What a graph shows of its sections: what their tensors are called in all graphs of a shape, and how they border."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from willitrun_estimator.compute.fragment import ANYWHERE
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.schedule import Schedule


class Showing:
    """A graph that shows what its sections do.

    Only the first section of a structure asks for anything that is shared, or makes it. So `firsts`, its name among
    these or None for others, tells with a number there which tensor it is in any graph of a shape.
    """

    def __init__(self, graph: Graph, firsts: Sequence[Hashable]) -> None:
        self.sections = graph.sections
        self.firsts = firsts
        self._roots: list[int] = []
        self._sections: list[int] = []
        for number, (fragment, base, others, _) in enumerate(graph.sections):
            self._sections += [number] * fragment.count
            self._roots += range(base, base + fragment.count)
            for index, root in fragment.roots.items():
                self._roots[base + index] = base + root if root >= 0 else others[~root]

    @property
    def orderly(self) -> bool:
        """Whether only the first of a structure asks for inputs."""
        return all(
            first is not None or fragment.shared.isdisjoint(fragment.early)
            for first, (fragment, *_) in zip(self.firsts, self.sections, strict=True)
        )

    def root(self, tensor: int) -> int:
        """Return the tensor whose memory one has."""
        return self._roots[tensor]

    def section(self, tensor: int) -> int:
        """Return the section that computes a tensor, or is the first to name it."""
        return self._sections[tensor]

    def ident(self, tensor: int) -> Hashable:
        """Return what a tensor is called in all graphs of a shape; None for one that cannot be shared."""
        number = self._sections[tensor]
        fragment, base, *_ = self.sections[number]
        name = fragment.weights.get(tensor - base)
        if name is not None:
            return name if name[0] is None else None
        first = self.firsts[number]
        return None if first is None else (first, tensor - base)

    def is_input(self, tensor: int) -> bool:
        """Tell inputs from other tensors."""
        fragment, base, *_ = self.sections[self._sections[tensor]]
        return tensor - base in fragment.early and tensor - base in fragment.shared

    def is_fixed(self, tensor: int) -> bool:
        """Tell weights, caches and looks at them."""
        fragment, base, *_ = self.sections[self._sections[tensor]]
        return tensor - base in fragment.fixed

    def is_outer_weight(self, tensor: int) -> bool:
        """Tell weights that belong to no block."""
        fragment, base, *_ = self.sections[self._sections[tensor]]
        name = fragment.weights.get(tensor - base)
        return name is not None and name[0] is None


class Edges(NamedTuple):
    """What neighbours see of a section.

    Operations with weights or memory of their own have their device from these. What comes between two such, in one
    section or in two, follows the one or the other.
    """

    first: int
    """Device of the first operation that has one of its own."""
    last: int
    free: bool
    """Any GPU can compute what comes behind the last."""
    asks: int
    """How much it reads of what the sections before it hand on."""


def edges_of(planned: Schedule, asks: Sequence[int]) -> list[Edges | None]:
    """Return the edges of each section of a scheduled graph; None for one that has nothing of its own."""
    found: list[Edges | None] = []
    for (fragment, base, *_), asked in zip(planned.sections, asks, strict=True):
        homed = [index for index in fragment.real if fragment.homes[index] != ANYWHERE]
        if not homed:
            found.append(None)
            continue
        free = all(fragment.able[index] == ANYWHERE for index in fragment.real if index > homed[-1])
        found.append(Edges(planned.devices[base + homed[0]], planned.devices[base + homed[-1]], free, asked))
    return found


def filled_of(planned: Schedule) -> list[bool]:
    """Tell after each section whether the split that is open began with copies: then a weight's copy begins another."""
    found = [False] * len(planned.sections)
    ends = [*(split.section for split in planned.splits[1:]), len(planned.sections)]
    for split, end in zip(planned.splits, ends, strict=True):
        first = min((copy.section for copy in split.arrivals), default=end)
        for section in range(split.section, end):
            found[section] = first <= section
    return found
