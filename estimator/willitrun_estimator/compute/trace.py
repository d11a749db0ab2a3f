"""What the allocator does, section by section and device by device, with sizes still symbolic.

Behaviour of `ggml_gallocr_alloc_graph_impl` (ggml/src/ggml-alloc.c): leaves have their place from the start, a result
may be written over a source that nobody else reads, and a tensor is freed after its last reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from willitrun_estimator.compute.schedule import Copy, Schedule, Split
from willitrun_estimator.compute.steps import (
    ARRIVED,
    EARLY,
    GIVE,
    INPUTS,
    LATEST,
    NOTHING,
    SINCE,
    TAKE,
    TAKE_FOR_GOOD,
    TAKE_WEIGHT,
    Name,
    Steps,
    code,
)

LISTS = 4
"""Lists of what is held on a device."""
NOWHERE, FOR_GOOD = -1, -2
"""Where a tensor is that none of them has: not taken, or never given back."""
KEEP = -1
"""Stands for what holds a tensor until it is copied."""
GIVEN = -1
"""Stands in the place of an input that was given back."""


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

    __slots__ = ("codes", "cut", "weights")

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.weights: dict[Name, int] = {}
        self.cut = 0


Records = dict[int, list[_Record]]
"""By section, those of every device."""


def traced(planned: Schedule) -> list[Section]:
    """Write the steps of a scheduled graph down."""
    return _Tracer(planned).trace()


class _Tracer:
    """Counts readers as the allocator does and writes its steps down."""

    def __init__(self, planned: Schedule) -> None:
        self._planned = planned
        self._devices = planned.host + 1
        self._rounds: tuple[Records, ...] = {}, {}, {}
        self._arrivals: Records = {}
        self._steps: Records = {}
        self._splits: set[int] = set()
        self._held: list[list[int]] = [[] for _ in range(LISTS * self._devices)]
        """The lists of what is held, device by device."""
        self._where = [NOWHERE] * len(planned.devices)
        """The list that has each tensor."""
        self._came = [0] * len(planned.devices)
        """When each came."""
        self._now = 0
        self._section = 0
        self._reused: dict[int, list[int]] = {}
        """By device, what was written over tensors from the start or over copies in this section."""

    def trace(self) -> list[Section]:
        """Follow the schedule."""
        planned = self._planned
        for records, taken in zip(self._rounds, planned.early, strict=True):
            for tensor in taken:
                # What a device holds throughout belongs to the section that first computes on it.
                device = planned.devices[tensor]
                section = planned.asked[tensor] or planned.first(device)
                self._take(tensor, INPUTS if planned.is_input(tensor) else EARLY, self._of(records, section))
        for split in planned.splits:
            self._begin(split)
            for part in split.parts:
                if part.stop > part.start:
                    self._turn(part.section)
                    self._follow(planned.events(part), self._of(self._steps, part.section))
        return [self._done(section) for section in range(len(planned.sections))]

    def _of(self, records: Records, section: int) -> list[_Record]:
        known = records.get(section)
        if known is None:
            known = records[section] = [_Record() for _ in range(self._devices)]
        return known

    def _turn(self, section: int) -> None:
        """Go on with the next section."""
        if section != self._section:
            self._sort()
            self._section = section

    def _begin(self, split: Split) -> None:
        """Take the copies that a split needs, and give back what was held for them."""
        self._turn(split.section)
        here = self._of(self._steps, split.section)
        later = [copy for copy in split.arrivals if copy.section > split.section]
        for copy in split.arrivals[: len(split.arrivals) - len(later)]:
            self._arrive(copy, here)
        self._splits.add(split.section)
        for record in here:
            record.cut = len(record.codes)
        for copy in later:
            self._arrive(copy, self._of(self._arrivals, copy.section))

    def _arrive(self, copy: Copy, records: Sequence[_Record]) -> None:
        """Take a copy, and give back what was only held for it."""
        self._follow([(KEEP, [copy.source])], records)
        self._now += 1
        if self._where[copy.copy] == NOWHERE:
            self._take(copy.copy, ARRIVED, records)

    def _follow(self, events: Iterable[tuple[int, Sequence[int]]], records: Sequence[_Record]) -> None:  # noqa: C901, PLR0912
        """Allocate what is computed, and give back what was read for the last time."""
        planned, where, held = self._planned, self._where, self._held
        readers, looks, roots = planned.readers, planned.looks, planned.roots
        solid, inplace, outputs = planned.solid, planned.inplace, planned.outputs
        for node, reads in events:
            self._now += 1
            if node >= 0 and roots[node] < 0:
                layout = inplace[node]
                parent = NOWHERE
                if layout:
                    for parent in reads:
                        if (
                            solid[parent] == layout
                            and readers[parent] == 1
                            and not looks[parent]
                            and where[parent] >= 0
                        ):
                            self._write_over(parent, node)
                            break
                    else:
                        parent = NOWHERE
                if parent == NOWHERE:
                    self._take(node, SINCE, records)
            for source in reads:
                left = readers[source] - 1
                readers[source] = left
                if left or looks[source]:
                    continue
                root = roots[source]
                if root < 0:
                    root = source
                else:
                    looks[root] -= 1
                    if looks[root] or readers[root]:
                        continue
                listed = where[root]
                if listed < 0 or root in outputs:
                    continue
                where[root] = NOWHERE
                device, kind = divmod(listed, LISTS)
                records[device].codes.append(code(_left(held[listed], root, kind), GIVE, kind))

    def _take(self, tensor: int, kind: int, records: Sequence[_Record]) -> None:
        """Allocate a tensor."""
        planned = self._planned
        device = planned.devices[tensor]
        record = records[device]
        self._came[tensor] = self._now
        name = planned.names.get(tensor)
        if name is not None:
            what, argument = TAKE_WEIGHT, record.weights.setdefault(name, len(record.weights))
        else:
            unread = kind == SINCE and not planned.readers[tensor] and not planned.looks[tensor]
            what = TAKE_FOR_GOOD if unread or tensor in planned.outputs else TAKE
            argument = planned.sizes[tensor]
        record.codes.append(code(argument, what, kind))
        if what == TAKE_FOR_GOOD:
            self._where[tensor] = FOR_GOOD
        else:
            listed = self._where[tensor] = LISTS * device + kind
            self._held[listed].append(tensor)

    def _write_over(self, parent: int, node: int) -> None:
        """Give the memory of one tensor to another."""
        listed = self._where[node] = self._where[parent]
        self._where[parent] = NOWHERE
        slots = self._held[listed]
        slots[slots.index(parent)] = node
        self._came[node] = self._now
        device, kind = divmod(listed, LISTS)
        moved = self._reused.setdefault(device, [])
        if parent in moved:
            moved[moved.index(parent)] = node
        elif kind != SINCE:
            moved.append(node)

    def _sort(self) -> None:
        """Bring what is held since into order at the end of a section, with what was written over other tensors."""
        came = self._came
        for device, moved in self._reused.items():
            codes = self._of(self._steps, self._section)[device].codes
            since = self._held[LISTS * device + SINCE]
            for tensor in moved:
                listed = self._where[tensor]
                if listed >= 0:
                    kind = listed % LISTS
                    codes.append(code(_left(self._held[listed], tensor, kind), LATEST, kind))
                    since.append(tensor)
                    self._where[tensor] = LISTS * device + SINCE
            ordered = sorted(since, key=came.__getitem__)
            right = next((place for place, tensor in enumerate(since) if tensor != ordered[place]), len(since))
            for tensor in ordered[right:]:
                codes.append(code(since.index(tensor), LATEST, SINCE))
                since.remove(tensor)
                since.append(tensor)
        self._reused.clear()

    def _done(self, section: int) -> Section:
        steps = self._planned.known.steps
        nothing = [NOTHING] * self._devices

        def whole(records: Records) -> list[Steps]:
            found = records.get(section)
            return nothing if found is None else [steps(tuple(one.codes), tuple(one.weights)) for one in found]

        first, second, third = map(whole, self._rounds)
        own = self._steps.get(section, ())
        return Section(
            section in self._splits,
            first,
            second,
            third,
            whole(self._arrivals),
            [steps(tuple(one.codes[: one.cut]), tuple(one.weights)) for one in own] or nothing,
            [steps(tuple(one.codes[one.cut :]), tuple(one.weights)) for one in own] or nothing,
        )


def _left(slots: list[int], tensor: int, kind: int) -> int:
    """Take a tensor out of a list of what is held, and return its place there."""
    place = slots.index(tensor)
    if kind == INPUTS:
        slots[place] = GIVEN
    else:
        del slots[place]
    return place
