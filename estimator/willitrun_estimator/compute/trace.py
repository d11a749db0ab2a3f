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
"""What a step does."""
SINCE, EARLY, ARRIVED = range(3)
"""Lists of what is held: taken while sections are computed, from the start, or as copies that a split begins with."""

Name = tuple[int | None, str]
"""A weight: how many blocks after the section's own (None for one outside the blocks), and its name."""


class Steps(Struct, frozen=True, eq=False):
    """The allocator's steps on one device during one section. Equal ones are the same object (`Known`)."""

    codes: tuple[int, ...]
    """One number each (`code`). Arguments are: of TAKE an index of a size, of TAKE_WEIGHT one into `weights`, of GIVE a
    place in one of the lists of what is held, which does not have what is taken for good. LATEST puts a place last
    among what is held since: between sections that is in the order in which the tensors came that have the memory.
    """
    weights: tuple[Name, ...]
    """The weights whose copies are taken."""


def code(argument: int, what: int, held: int) -> int:
    """Pack a step."""
    return argument << 5 | what << 2 | held


def decode(packed: int) -> tuple[int, int, int]:
    """Unpack a step."""
    return packed >> 5, packed >> 2 & 7, packed & 3


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


class Section(NamedTuple):
    """What a section does, on each device."""

    splits: bool
    """Whether a split begins in it."""
    first: list[Steps]
    """What is taken for it before anything is computed, in three rounds."""
    second: list[Steps]
    third: list[Steps]
    arrivals: list[Steps]
    """What is copied for it where the split begins that is open before it."""
    closed: list[Steps]
    """What it does until the last split begins in it, with what that needs at once."""
    open: list[Steps]
    """What it does from there on."""


class _Record:
    """The steps of one section on one device while they grow."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.weights: dict[Name, int] = {}
        self.cut = 0

    def steps(self, known: Known, first: int = 0, last: int | None = None) -> Steps:
        """Return what has grown."""
        return known.steps(tuple(self.codes[first:last]), tuple(self.weights))


class Tracer:
    """Counts readers as the allocator does and writes its steps down."""

    def __init__(self, sections: int, devices: int, known: Known) -> None:
        self._known, self._sizes = known, known.sizes
        self._rounds = [[[_Record() for _ in range(devices)] for _ in range(sections)] for _ in range(3)]
        self._arrivals, self._steps = ([[_Record() for _ in range(devices)] for _ in range(sections)] for _ in range(2))
        self._splits = [False] * sections
        self._held: list[list[list[int]]] = [[[] for _ in range(devices)] for _ in range(3)]
        self._places: list[tuple[int, int]] = []
        """Device and list of each slot."""
        self._came: list[int] = []
        """When the tensor came that has the slot."""
        self._now = 0
        self._reused: dict[int, list[int]] = {}
        """By device, slots of which the tensor changed in this section."""

    def _take(self, node: Node, device: int, section: int, records: list[list[_Record]], held: int) -> None:
        node.slot = slot = len(self._places)
        self._places.append((device, held))
        self._came.append(self._now)
        record = records[section][device]
        if node.weight is not None:
            number, _, name = node.weight.rpartition("/")
            weights = record.weights
            argument = weights.setdefault(((int(number) - section + 1 if number else None), name), len(weights))
            what = TAKE_WEIGHT
        else:
            argument = self._sizes.setdefault(node.size, len(self._sizes))
            what = TAKE_FOR_GOOD if node.is_output else TAKE
        if what != TAKE_FOR_GOOD:
            self._held[held][device].append(slot)
        record.codes.append(code(argument, what, held))

    def _give(self, node: Node, section: int, records: list[list[_Record]]) -> None:
        slot = node.slot
        if slot < 0 or node.is_output:
            return
        node.slot = -1
        device, held = self._places[slot]
        slots = self._held[held][device]
        place = slots.index(slot)
        del slots[place]
        records[section][device].codes.append(code(place, GIVE, held))

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
                    self._reused.setdefault(self._places[node.slot][0], []).append(node.slot)
                    return
        self._take(node, device, section, self._steps, SINCE)

    def _sort(self, section: int) -> None:
        """Bring what is held since into order at the end of a section, with copies that were written over."""
        for device, reused in self._reused.items():
            since = self._held[SINCE][device]
            codes = self._steps[section][device].codes
            for slot in dict.fromkeys(reused):
                held = self._places[slot][1]
                slots = self._held[held][device]
                if held != SINCE and slot in slots:
                    codes.append(code(slots.index(slot), LATEST, held))
                    slots.remove(slot)
                    since.append(slot)
                    self._places[slot] = device, SINCE
            ordered = sorted(since, key=self._came.__getitem__)
            right = next((place for place, slot in enumerate(since) if slot != ordered[place]), len(since))
            for slot in ordered[right:]:
                codes.append(code(since.index(slot), LATEST, SINCE))
                since.remove(slot)
                since.append(slot)
        self._reused.clear()

    def _give_after(self, node: Node, section: int, records: list[list[_Record]]) -> None:
        """Give back what an operation was the last to read."""
        for source in node.sources:
            source.readers -= 1
            if source.readers or source.looks:
                continue
            root = source.view_of
            if root is None:
                self._give(source, section, records)
            else:
                root.looks -= 1
                if not root.looks and not root.readers:
                    self._give(root, section, records)

    def _begin(self, planned: Schedule) -> None:
        """Take what has its place from the start, and count who reads what."""
        first: dict[int, int] = {}
        for place in planned.order:
            if place.node is None:
                continue
            first.setdefault(place.device, place.section)
            root = place.node.view_of
            if root is not None and place.node.name is not KEEP:
                root.looks += 1
            for source in place.node.sources:
                source.readers += 1
        for records, taken in zip(self._rounds, planned.early, strict=True):
            for node in taken:
                # What a device holds throughout belongs to the section that first computes on it.
                self._take(node, node.device, node.section or first.get(node.device, 0), records, EARLY)

    def trace(self, planned: Schedule) -> list[Section]:
        """Write the steps of a scheduled graph down."""
        self._begin(planned)
        current = 0
        for self._now, (node, device, section, ahead) in enumerate(planned.order, 1):
            if section != current and not ahead:
                self._sort(current)
                current = section
            if node is None:
                self._splits[section] = True
                for record in self._steps[section]:
                    record.cut = len(record.codes)
                continue
            records = self._arrivals if ahead else self._steps
            for source in node.sources:
                if source.slot < 0 and source.fixed is None and source.view_of is None:
                    self._allocate(source, device, section)
            if node.slot < 0 and node.fixed is None and node.view_of is None:
                if node.sources:
                    self._allocate(node, device, section)
                else:
                    self._take(node, device, section, records, ARRIVED)
            self._give_after(node, section, records)
        return [self._done(section) for section in range(len(self._steps))]

    def _done(self, section: int) -> Section:
        known = self._known
        first, second, third, arrivals, steps = (
            records[section] for records in (*self._rounds, self._arrivals, self._steps)
        )
        return Section(
            self._splits[section],
            [record.steps(known) for record in first],
            [record.steps(known) for record in second],
            [record.steps(known) for record in third],
            [record.steps(known) for record in arrivals],
            [record.steps(known, 0, record.cut) for record in steps],
            [record.steps(known, record.cut) for record in steps],
        )
