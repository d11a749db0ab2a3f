"""What sections do with the tensors that many of them share, as graphs showed it.

Such are the inputs, what is computed before all blocks, and what one block computes for all that follow. Each lives on
one device until the last section has read it there or copied it, and each copy on another until the last has read that.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from willitrun_estimator.compute.schedule import Schedule
from willitrun_estimator.compute.showing import Showing

SHARED_BY = 3
"""So many sections have to do with a tensor of a block before it counts as shared: else it is handed on."""


class Uses(NamedTuple):
    """What a section does with shared tensors; sets of them are bits of a number (`Shared.bit`)."""

    copies: tuple[tuple[int, int, tuple[int, ...]], ...]
    """Of every device that computes in it, the copies it reads there, and the same as bits in the order of reading."""
    direct: int
    """Tensors that are read, or looked at for a copy of its own, where they are."""
    kept: int
    """Tensors that it never gives back."""
    made: tuple[tuple[int, int], ...]
    """Tensors that it computes for others, each with its device."""

    def renamed(self, names: Mapping[int, int]) -> Uses | None:
        """Return the same on devices of other names; None where one has no name."""
        if not names.keys() >= {*(device for device, *_ in self.copies), *(device for _, device in self.made)}:
            return None
        return self._replace(
            copies=tuple([(names[device], bits, asked) for device, bits, asked in self.copies]),
            made=tuple([(bit, names[device]) for bit, device in self.made]),
        )


class Shared:
    """The shared tensors of one shape's graphs, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._roots: list[int] = []
        """The bit of the tensor whose memory each looks at; 0 of weights, which are not held."""
        self._viewed = 0
        """Bits of those that are looks at others, and of weights."""
        self.lasting: set[Hashable] = set()
        """Those that are neither inputs nor weights."""

    def handed(self, graph: Showing) -> tuple[int, list[int]]:
        """Return how far away sections read what is not shared, and how much each reads of what is handed to it.

        That is what it reads of the blocks before it, or of what is computed before them.
        """
        asks = [0] * len(graph.sections)
        farthest = 0
        for root, sections in _handed(graph).items():
            ident, made = graph.ident(root), graph.section(root)
            if ident is not None and (not made or len(sections) >= SHARED_BY):
                self.lasting.add(ident)
            if ident not in self.lasting:
                farthest = max(farthest, max(sections) - made)
            if ident not in self.lasting or not made:
                for section in sections - {made}:
                    asks[section] += 1
        for _, _, others, _ in graph.sections:
            for other in others:
                root, ident = graph.root(other), graph.ident(other)
                if ident is not None and other != root and not graph.is_fixed(other) and self.has(graph, root):
                    self.lasting.add(ident)
        return farthest, asks

    def has(self, graph: Showing, tensor: int) -> bool:
        """Tell whether a tensor is shared itself, not just memory that it looks at."""
        return graph.is_outer_weight(tensor) or graph.is_input(tensor) or graph.ident(tensor) in self.lasting

    def bit(self, graph: Showing, tensor: int) -> int:
        """Return the number of a shared tensor: others make sets of them."""
        number = self._numbers.setdefault(graph.ident(tensor), len(self._numbers))
        if number == len(self._roots):
            root, weight = graph.root(tensor), graph.is_outer_weight(tensor)
            self._roots.append(0)
            if root != tensor or weight:
                self._viewed |= 1 << number
            if not weight:
                self._roots[number] = 1 << number if root == tensor else self.bit(graph, root)
        return 1 << number

    def rooted(self, bits: int) -> int:
        """Return the tensors that hold the memory of these."""
        looks = bits & self._viewed
        if not looks:
            return bits
        return bits & ~looks | union([root for number, root in enumerate(self._roots) if looks >> number & 1])

    def uses(self, graph: Showing, planned: Schedule) -> list[Uses]:
        """Return what each section of a scheduled graph does with shared tensors."""
        devices = planned.devices
        bits = self._bits(graph)
        copies: list[dict[int, dict[int, None]]] = [
            {devices[base + index]: {} for index in fragment.real} for fragment, base, *_ in graph.sections
        ]
        direct = [0] * len(graph.sections)
        origins = {copy: source for split in planned.splits for source, copy, _ in split.arrivals}
        for number, node, reads in _computed(planned):
            for read in reads:
                origin = origins.get(read, read)
                if origin != read and origin in bits:
                    copies[number][devices[node]][bits[origin]] = None
                else:
                    direct[number] |= bits.get(graph.root(origin), 0)
        found = []
        for here, there, (fragment, base, *_) in zip(copies, direct, graph.sections, strict=True):
            unread = [graph.root(base + look) for look in fragment.roots if not planned.readers[base + look]]
            made = [base + index for index in fragment.real if base + index in bits]
            found.append(
                Uses(
                    tuple([(device, union(asked), tuple(asked)) for device, asked in sorted(here.items())]),
                    there,
                    union([bits.get(root, 0) for root in unread]),
                    tuple([(bits[node], devices[node]) for node in made if graph.root(node) == node]),
                )
            )
        return found

    def _bits(self, graph: Showing) -> dict[int, int]:
        """Return the numbers of a graph's shared tensors."""
        found = []
        for first, (fragment, base, *_) in zip(graph.firsts, graph.sections, strict=True):
            found += [base + index for index in fragment.early if index in fragment.shared]
            found += [base + index for index, name in fragment.weights.items() if name[0] is None]
            if first is not None:
                found += [base + index for index in range(fragment.count) if (first, index) in self.lasting]
        return {tensor: self.bit(graph, tensor) for tensor in found}


def _handed(graph: Showing) -> dict[int, set[int]]:
    """Return what later sections read of one and is no input, with these sections and its own."""
    users: dict[int, set[int]] = {}
    for number, section in enumerate(graph.sections):
        for other in section.others:
            root = graph.root(other)
            if not graph.is_fixed(other) and not graph.is_input(root):
                users.setdefault(root, {graph.section(root)}).add(number)
    return users


def _computed(planned: Schedule) -> Iterable[tuple[int, int, Iterable[int]]]:
    """Yield what devices compute: the section, the tensor, and what that reads."""
    for split in planned.splits:
        for part in split.parts:
            fragment, base, *_ = planned.sections[part.section]
            computed = frozenset(fragment.real)
            for node, reads in planned.events(part):
                if node - base in computed:
                    yield part.section, node, reads


def union(bits: Iterable[int]) -> int:
    """Return all bits of some numbers."""
    found = 0
    for one in bits:
        found |= one
    return found
