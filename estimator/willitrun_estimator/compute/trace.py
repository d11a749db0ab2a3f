"""What the allocator does, section by section and device by device, with sizes still symbolic.

Behaviour of `ggml_gallocr_alloc_graph_impl` (ggml/src/ggml-alloc.c): leaves have their place from the start, a result
may be written over a source that nobody else reads, and a tensor is freed after its last reader.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from willitrun_estimator.compute.form import Form
from willitrun_estimator.compute.graph import Node
from willitrun_estimator.compute.schedule import KEEP, Schedule

TAKE, TAKE_FOR_GOOD, TAKE_WEIGHT, GIVE, LATEST = range(5)
"""What a step does. A step is one number: argument x 16 + what x 2 + whether the memory is held from the start."""

Name = tuple[int | None, str]
"""A weight: how many blocks after the section's own (None for one outside the blocks), and its name."""


class Steps(Struct, frozen=True, eq=False):
    """The allocator's steps on one device during one section. Equal ones are the same object (`Known`)."""

    codes: tuple[int, ...]
    """Arguments are: of TAKE an index of a size, of TAKE_WEIGHT one into `weights`, of GIVE a place among what is held.

    What is taken for good is not among that. What is held from the start and what is not are counted apart. Between
    sections each is in the order in which the tensors came that have the memory: LATEST puts a place last, where a
    result was written over an older one.
    """
    weights: tuple[Name, ...]
    """The weights whose copies are taken."""


class Known:
    """Sizes and steps that traces share, so that equal ones are told by identity."""

    def __init__(self) -> None:
        self.sizes: dict[Form, int] = {}
        """Each size with its index."""
        self._steps: dict[tuple[tuple[int, ...], tuple[Name, ...]], Steps] = {}

    def steps(self, codes: tuple[int, ...], weights: tuple[Name, ...]) -> Steps:
        """Return the one object for these steps."""
        known = self._steps.get((codes, weights))
        if known is None:
            known = self._steps[codes, weights] = Steps(codes, weights)
        return known


class Trace(NamedTuple):
    """The steps of every section on every device: sections first."""

    inputs: list[list[Steps]]
    """What is taken before anything is computed, by the section that first asks for it."""
    leaves: list[list[Steps]]
    """What is taken next."""
    steps: list[list[Steps]]
    """What is taken and given while the section is computed."""


class _Parts:
    """One of the lists of a `Trace` while it grows."""

    def __init__(self, sections: int, devices: int) -> None:
        self.codes: list[list[list[int]]] = [[[] for _ in range(devices)] for _ in range(sections)]
        self.weights: dict[tuple[int, int], dict[Name, int]] = {}

    def done(self, known: Known) -> list[list[Steps]]:
        """Return what has grown."""
        return [
            [
                known.steps(tuple(codes), tuple(self.weights.get((section, device), ())))
                for device, codes in enumerate(by_device)
            ]
            for section, by_device in enumerate(self.codes)
        ]


class Tracer:
    """Counts readers as the allocator does and writes its steps down."""

    def __init__(self, sections: int, devices: int, known: Known) -> None:
        self._known, self._sizes = known, known.sizes
        self._inputs, self._leaves, self._steps = (_Parts(sections, devices) for _ in range(3))
        self._held: tuple[list[list[int]], list[list[int]]] = (
            [[] for _ in range(devices)],
            [[] for _ in range(devices)],
        )
        self._places: list[tuple[int, int]] = []
        """Device and list of each slot."""
        self._came: list[int] = []
        """When the tensor came that has the slot."""
        self._now = 0
        self._reused: set[tuple[int, int]] = set()

    def _take(self, node: Node, device: int, section: int, parts: _Parts, early: int) -> None:
        node.slot = slot = len(self._places)
        self._places.append((device, early))
        self._came.append(self._now)
        what = TAKE
        if node.weight is not None:
            what = TAKE_WEIGHT
        elif node.is_output:
            what = TAKE_FOR_GOOD
        if what != TAKE_FOR_GOOD:
            self._held[early][device].append(slot)
        if node.weight is None:
            argument = self._sizes.setdefault(node.size, len(self._sizes))
        else:
            number, _, name = node.weight.rpartition("/")
            weights = parts.weights.setdefault((section, device), {})
            argument = weights.setdefault(((int(number) - section + 1 if number else None), name), len(weights))
        parts.codes[section][device].append(argument * 16 + what * 2 + early)

    def _give(self, node: Node, section: int) -> None:
        slot = node.slot
        if slot < 0 or node.is_output:
            return
        node.slot = -1
        device, early = self._places[slot]
        held = self._held[early][device]
        place = held.index(slot)
        del held[place]
        self._steps.codes[section][device].append(place * 16 + GIVE * 2 + early)

    def _allocate(self, node: Node, device: int, section: int) -> None:
        if node.inplace:
            dims, width = node.dims, node.element_bytes
            for parent in node.sources:
                if (
                    parent.readers == 1
                    and parent.slot >= 0
                    and not parent.looks
                    and not parent.is_output
                    and parent.contiguous
                    and parent.dims == dims
                    and parent.element_bytes == width
                ):
                    node.slot, parent.slot = parent.slot, -1
                    self._came[node.slot] = self._now
                    self._reused.add(self._places[node.slot])
                    return
        self._take(node, device, section, self._steps, 0)

    def _sort(self, section: int) -> None:
        """Bring what is held into order at the end of a section."""
        for device, early in self._reused:
            held = self._held[early][device]
            ordered = sorted(held, key=self._came.__getitem__)
            right = next((place for place, slot in enumerate(held) if slot != ordered[place]), len(held))
            for slot in ordered[right:]:
                self._steps.codes[section][device].append(held.index(slot) * 16 + LATEST * 2 + early)
                held.remove(slot)
                held.append(slot)
        self._reused.clear()

    def _give_after(self, node: Node, section: int) -> None:
        """Give back what an operation was the last to read."""
        for source in node.sources:
            source.readers -= 1
            if source.readers or source.looks:
                continue
            root = source.view_of
            if root is None:
                self._give(source, section)
            else:
                root.looks -= 1
                if not root.looks and not root.readers:
                    self._give(root, section)

    def _begin(self, planned: Schedule) -> None:
        """Take what has its place from the start, and count who reads what."""
        for node in planned.inputs:
            self._take(node, node.device, node.section, self._inputs, 1)
        first: dict[int, int] = {}
        for node, device, section in planned.order:
            first.setdefault(device, section)
            if node.view_of is not None and node.name is not KEEP:
                node.view_of.looks += 1
            for source in node.sources:
                source.readers += 1
        for leaf in planned.leaves:
            # What a device holds throughout belongs to the section that first computes on it.
            self._take(leaf, leaf.device, leaf.section or first.get(leaf.device, 0), self._leaves, 1)

    def trace(self, planned: Schedule) -> Trace:
        """Write the steps of a scheduled graph down."""
        self._begin(planned)
        ended = 0
        for self._now, (node, device, section) in enumerate(planned.order, 1):
            if section != ended:
                self._sort(ended)
                ended = section
            for tensor in (*node.sources, node):
                if tensor.slot < 0 and tensor.fixed is None and tensor.view_of is None:
                    self._allocate(tensor, device, section)
            self._give_after(node, section)
        return Trace(*(part.done(self._known) for part in (self._inputs, self._leaves, self._steps)))
