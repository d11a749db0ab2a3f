"""What the allocator does for every layout of one shape, put together from blocks that were seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from willitrun_estimator.compute import trace
from willitrun_estimator.compute.form import Dim
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.periods import shortened
from willitrun_estimator.compute.replay import Replay
from willitrun_estimator.compute.schedule import schedule
from willitrun_estimator.compute.steps import Known, Steps
from willitrun_estimator.compute.surroundings import Kind, Looks, Surroundings, surroundings
from willitrun_estimator.compute.trace import traced

ROUNDS = 3
ARRIVALS, CLOSED, OPEN = range(ROUNDS, 6)
"""Parts of a section (`trace.Section`)."""
BEFORE, BEHIND = "before", "behind"
"""What is built before and behind the blocks."""
MOST_PROGRAMS = 64
"""Programs kept of one shape."""
MOST_SECTIONS = 512
"""Sections kept of one shape."""
MOST_REPLAYS = 32
"""Values whose states are kept of one shape."""

FARTHEST = 3
"""Where blocks look farther than this, layouts are planned for themselves."""
CHECKED = Looks(1, 1)
"""So that two units of a run are kept that both have some before and behind them."""

Build = Callable[[Sequence[int]], Graph]
"""Makes the graph of some of the blocks."""
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


class Ends(NamedTuple):
    """Where what stands before and behind the blocks lives."""

    head: int
    host: int


class Programs:
    """The programs of one shape, for any number of GPUs."""

    def __init__(self, *, alike: bool, local: bool, offload: bool, large: dict[Dim, bool], pipeline: bool) -> None:
        """`alike` unless blocks are told apart by their number, `local` unless they are by where others live."""
        self.looks = Looks(1, 0) if alike and local else None
        """How far blocks look, as far as is known; None where what happens in a block does not follow from its
        surroundings: then each layout is planned for itself."""
        self._alike = alike
        self._schedule = partial(schedule, offload=offload, large=large, pipeline=pipeline)
        self._offload = offload
        self.known = Known()
        self._sections: dict[Hashable, Section] = {}
        self._repeating: OrderedDict[Hashable, list[Section]] = OrderedDict()
        """Those of layouts that are planned for themselves, but for like blocks."""
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._replays: OrderedDict[tuple[tuple[int, ...], int], Replay] = OrderedDict()

    def program(self, kinds: tuple[Kind, ...], head: int, host: int, build: Build) -> Program:
        """Return the program of a layout: blocks of these kinds, the head's device and the host's number.

        `build` is asked for what was not seen before.
        """
        key = kinds, head, host
        known = self._programs.get(key)
        if known is None:
            known = self._programs[key] = self._put_together(kinds, head, host, build)
            if len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        return known

    def replay(self, values: tuple[int, ...], alignment: int) -> Replay:
        """Return the allocator of a device with this alignment, for given values of the sizes."""
        key = values, alignment
        known = self._replays.get(key)
        if known is None:
            known = self._replays[key] = Replay(self.known.forms, values, alignment)
            if len(self._replays) > MOST_REPLAYS:
                self._replays.popitem(last=False)
        else:
            self._replays.move_to_end(key)
        return known

    def _put_together(self, kinds: tuple[Kind, ...], head: int, host: int, build: Build) -> Program:
        while self.looks is not None:
            kept, same = shortened(kinds, self.looks)
            sections = self._sections_of(kinds, kept, Ends(head, host), build, self.looks)
            if sections is not None:
                return expanded(sections, same, host)
        if self._alike:
            kept, same = shortened(kinds, CHECKED)
            key = tuple(kinds[block] for block in kept), head, host
            sections = self._repeating.get(key)
            if sections is None:
                sections = self._repeating[key] = self._traced(build(kept))
                if len(self._repeating) > MOST_PROGRAMS:
                    self._repeating.popitem(last=False)
            if repeats(sections, same):
                return expanded(sections, same, host)
        every = range(len(kinds))
        return expanded(self._traced(build(every)), every, host)

    def _sections_of(
        self, kinds: Sequence[Kind], kept: Sequence[int], ends: Ends, build: Build, looks: Looks
    ) -> list[Section] | None:
        """Return what each section does; None where blocks look farther than was thought."""
        places = self._places([kinds[block] for block in kept], ends, looks)
        if len(self._sections) > MOST_SECTIONS:
            self._sections.clear()
        missing = {place.key: place for place in places if place.key not in self._sections}
        if missing:
            # A few blocks show the same, as long as what is missing has the same surroundings among them.
            some = sorted(frozenset[int]().union(*(place.needed for place in missing.values())))[1:-1]
            blocks = [kept[place - 1] for place in some]
            among = self._places([kinds[block] for block in blocks], ends, looks)
            if not missing.keys() <= {place.key for place in among}:
                blocks, among = [*kept], places
            if not self._learn(among, build(blocks), looks):
                return None
        found = (
            self._sections[place.key].renamed({name: gpu for gpu, name in place.names.items()}) for place in places
        )
        return [section for section in found if section is not None]

    def _places(self, kinds: Sequence[Kind], ends: Ends, looks: Looks) -> list[Surroundings]:
        host, head = ends.host, ends.head
        whole = Kind(BEFORE, host, host, host, host), *kinds, Kind(BEHIND, head, head, head, head)
        return surroundings(whole, host, looks, offload=self._offload)

    def _learn(self, places: Sequence[Surroundings], graph: Graph, looks: Looks) -> bool:
        """Keep what the sections of a graph do; False where that does not follow from their surroundings."""
        farthest = Looks(max(looks.reach, graph.reach), max(looks.ahead, graph.ahead))
        if farthest != looks:
            self._sections.clear()
            self._programs.clear()
            self.looks = farthest if farthest.reach <= FARTHEST else None
            return False
        for place, section in zip(places, self._traced(graph), strict=True):
            called = section.renamed(place.names)
            if called is None or self._sections.setdefault(place.key, called) != called:
                self.looks = None
        return self.looks is not None

    def _traced(self, graph: Graph) -> list[Section]:
        """Schedule a graph and follow the allocator through it."""
        return [Section.of(section) for section in traced(self._schedule(graph))]


def repeats(sections: Sequence[Section], same: Sequence[int]) -> bool:
    """Tell whether every unit of a run that stands for more does the same as the next."""
    first: dict[int, int] = {}
    for block, place in enumerate(same):
        if place not in first:
            first[place] = block
        elif sections[1 + place] != sections[1 + place + block - first[place]]:
            return False
        else:
            first[place] = block
    return True


def expanded(sections: Sequence[Section], same: Sequence[int], host: int) -> Program:
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
    return tuple(map(tuple, lines))


def peaks(
    graph: Graph,
    values: tuple[int, ...],
    alignments: Sequence[int],
    *,
    offload: bool,
    large: dict[Dim, bool],
    pipeline: bool,
) -> tuple[int, ...]:
    """Return the buffers of one graph that no layout shares, weights not copied; the host is the last device."""
    sections = [
        Section.of(section) for section in traced(schedule(graph, offload=offload, large=large, pipeline=pipeline))
    ]
    lines = expanded(sections, range(len(sections) - 2), graph.host)
    return tuple(
        Replay(graph.known.forms, values, alignment).peak([(steps, (0,) * len(steps.weights)) for steps, _ in line])
        for line, alignment in zip(lines, alignments, strict=True)
    )
