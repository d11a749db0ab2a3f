"""What the allocator does for every layout of one shape, put together from blocks that were seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

from willitrun_estimator.compute.assembly import Inputs, Program, Section, expanded
from willitrun_estimator.compute.form import Dim
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.kinds import Kind, Layout, Looks
from willitrun_estimator.compute.periods import shortened
from willitrun_estimator.compute.replay import Replay
from willitrun_estimator.compute.schedule import schedule
from willitrun_estimator.compute.showing import Showing, edges_of, filled_of
from willitrun_estimator.compute.steps import Known
from willitrun_estimator.compute.surroundings import Seen
from willitrun_estimator.compute.trace import traced

BEFORE, BEHIND = "before", "behind"
"""What is built before and behind the blocks."""
MOST_PROGRAMS = 64
"""Programs kept of one shape."""
SECTION = 20
"""What a section takes with its surroundings, in parts of a program."""
MOST_SECTIONS = 512
"""Sections kept of one shape."""
MOST_REPLAYS = 32
"""Values whose states are kept of one shape."""

FARTHEST = 3
"""Where blocks look farther than this, layouts are planned for themselves."""

Build = Callable[[Sequence[int]], Graph]
"""Makes the graph of some of the blocks."""


class Asked(NamedTuple):
    """A layout: its blocks, the head's device, the host's number, and what makes the graph of some of the blocks."""

    kinds: tuple[Kind, ...]
    head: int
    host: int
    build: Build

    def among(self, blocks: Sequence[int], looks: Looks, *, local: bool) -> Layout:
        """Return the sections of a graph of some of the blocks."""
        host, head = self.host, self.head
        kinds = [self.kinds[block] for block in blocks]
        whole = Kind(BEFORE, host, host, host, host), *kinds, Kind(BEHIND, head, head, head, head)
        apart = not local and head != host and any(kind.block == host for kind in kinds)
        return Layout(whole, host, looks, (host > 0, apart))


class Programs:
    """The programs of one shape, for any number of GPUs."""

    def __init__(self, *, alike: bool, local: bool, offload: bool, large: dict[Dim, bool], pipeline: bool) -> None:
        """`alike` unless blocks are told apart by their number, `local` unless by whether any of them is the host's."""
        self.looks = Looks(1, 0) if alike else None
        """How far blocks look, as far as is known; None where what happens in a block does not follow from its
        surroundings: then each layout is planned for itself."""
        self._local = local
        self._schedule = partial(schedule, offload=offload, large=large, pipeline=pipeline)
        self.known = Known()
        self._inputs = Inputs(self.known)
        self._seen = Seen()
        self._sections: dict[Hashable, tuple[Section, bool]] = {}
        """By surroundings and whether the split that is open before began with copies, with the same of that behind."""
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._lines = 0
        """The length of all programs."""
        self.size = 0
        """How much is kept, in parts of programs."""
        self._replays: OrderedDict[tuple[tuple[int, ...], int], Replay] = OrderedDict()

    def program(self, kinds: tuple[Kind, ...], head: int, host: int, build: Build) -> Program:
        """Return the program of a layout: blocks of these kinds, the head's device and the host's number.

        `build` is asked for what was not seen before.
        """
        key = kinds, head, host
        known = self._programs.get(key)
        if known is None:
            known = self._put_together(Asked(kinds, head, host, build))
            self._programs[key] = known
            self._lines += sum(map(len, known))
            if len(self._programs) > MOST_PROGRAMS:
                self._lines -= sum(map(len, self._programs.popitem(last=False)[1]))
            self.size = self._lines + SECTION * len(self._sections) + len(self._seen)
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

    def _put_together(self, asked: Asked) -> Program:
        kinds, _, host, build = asked
        numbers: dict[Kind, int] = {}
        alike = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
        while self.looks is not None:
            kept, same = shortened(alike, self.looks)
            sections = self._sections_of(asked, kept, self.looks)
            if sections is not None:
                return expanded(sections, same, host, self._inputs)
        every = range(len(kinds))
        return expanded(self._traced(build(every)), every, host, self._inputs)

    def _sections_of(self, asked: Asked, kept: Sequence[int], looks: Looks) -> list[Section] | None:
        """Return what each section does; None where blocks look farther than was thought."""
        layout = asked.among(kept, looks, local=self._local)
        sections, missing = self._found(layout)
        if missing and len(self._sections) > MOST_SECTIONS:
            self._forget()
            sections, missing = self._found(layout)
        for last in (False, False, True):
            if missing:
                blocks = kept if last else [kept[place - 1] for place in self._seen.some_of(layout, missing)]
                among = asked.among(blocks, looks, local=self._local)
                if not self._learn(among, asked.build(blocks)):
                    return None
                sections, missing = self._found(layout)
        return sections

    def _found(self, layout: Layout) -> tuple[list[Section], list[int]]:
        """Return what the sections of a layout do, and those of which too little is known."""
        parts = self._seen.parts(layout)
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return [], [place for place, part in enumerate(parts) if part is None]
        found: list[Section] = []
        missing = []
        filled = False
        for place, (key, names) in enumerate(self._seen.places(layout, known)):
            section = self._sections.get((key, filled))
            renamed = section and section[0].renamed({name: gpu for gpu, name in names.items()})
            if section is None or renamed is None:
                missing.append(place)
                filled = True
            else:
                filled = section[1]
                found.append(renamed)
        return found, missing

    def _forget(self) -> None:
        self._sections.clear()
        self._seen.clear()
        self._inputs = Inputs(self.known)

    def _learn(self, layout: Layout, graph: Graph) -> bool:
        """Keep what the sections of a graph do; False where that does not follow from their surroundings."""
        looks = layout.looks
        shared = self._seen.shared
        known = len(shared.lasting)
        showing = Showing(graph, layout.firsts())
        reach, asks = shared.handed(showing)
        farthest = Looks(max(looks.reach, reach), max(looks.ahead, graph.ahead))
        if farthest != looks or len(shared.lasting) > known:
            self._forget()
            self._programs.clear()
            self._lines = 0
        if farthest != looks:
            self.looks = farthest if farthest.reach <= FARTHEST else None
            return False
        planned = self._schedule(graph)
        right = showing.orderly and self._seen.learn(layout, edges_of(planned, asks), shared.uses(showing, planned))
        if right:
            parts = [part for part in self._seen.parts(layout) if part is not None]
            filled = filled_of(planned)
            sections = [Section.of(section) for section in traced(planned)]
            for (key, names), before, section, after in zip(
                self._seen.places(layout, parts), [False, *filled[:-1]], sections, filled, strict=True
            ):
                called = section.renamed(names)
                if called is None or self._sections.setdefault((key, before), (called, after)) != (called, after):
                    right = False
        if not right:
            self.looks = None
        return right

    def _traced(self, graph: Graph) -> list[Section]:
        """Schedule a graph and follow the allocator through it."""
        return [Section.of(section) for section in traced(self._schedule(graph))]


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
    lines = expanded(sections, range(len(sections) - 2), graph.host, Inputs(graph.known))
    return tuple(
        Replay(graph.known.forms, values, alignment).peak([(steps, (0,) * len(steps.weights)) for steps, _ in line])
        for line, alignment in zip(lines, alignments, strict=True)
    )
