"""Which device computes what, and what is copied between devices.

Behaviour of `ggml_backend_sched_split_graph` (ggml/src/ggml-backend.cpp, ggml 0.25): operations follow their weights,
unassigned neighbours follow them, and sources on another device are copied at the start of a split.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from willitrun_estimator.compute.form import Dim
from willitrun_estimator.compute.fragment import ANYWHERE, Fragment
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.steps import Name

OFFLOAD_ROWS = 32
"""Smallest batch for which CUDA computes with host weights (`GGML_OP_OFFLOAD_MIN_BATCH`)."""
PIPELINE_COPIES = 4
"""`GGML_SCHED_MAX_COPIES`."""


class Copy(NamedTuple):
    """A copy that a split begins with."""

    source: int
    copy: int
    section: int
    """The one that asks for it."""


class Part(NamedTuple):
    """What is computed of one section in one split."""

    section: int
    start: int
    stop: int
    """Of its tensors those from the first on to before the second."""
    changed: dict[int, list[int]]
    """What those read that read copies."""
    others: list[int]
    """Numbers of the others of the section, and of copies, counted from the end."""


class Split(NamedTuple):
    """What one device computes without a break."""

    section: int
    """In which it begins."""
    arrivals: list[Copy]
    """What it needs at once, then what later sections do that begin in it."""
    parts: list[Part]
    """What is computed."""


class Schedule:
    """A graph with its copies. Lists have one item for each tensor, copies behind the others."""

    def __init__(self, graph: Graph) -> None:
        self.sections = graph.sections
        self.known = graph.known
        self.host = graph.host
        self.count = graph.count
        self.devices: list[int] = []
        self.able: list[int] = []
        self.sizes: list[int] = []
        self.layouts: list[int] = []
        self.solid: list[int] = []
        self.readers: list[int] = []
        self.looks: list[int] = []
        self.inplace: list[int] = []
        self.roots: list[int] = []
        """Of looks at another tensor's memory that one, else -1."""
        self.outputs: set[int] = set()
        self.names: dict[int, Name] = {}
        """Names of weights that are copied, seen from the section that asks."""
        self.splits: list[Split] = []
        self.early: tuple[list[int], list[int], list[int]] = ([], [], [])
        """What has its place before anything is computed, in three rounds."""
        self.asked: dict[int, int] = {}
        """Sections of inputs, leaves and copies."""
        self.bases = [section.base for section in graph.sections]

    def first(self, device: int) -> int:
        """Find the section that first computes on a device, 0 where none does."""
        for number, (fragment, base, *_) in enumerate(self.sections):
            if any(self.devices[base + index] == device for index in fragment.real):
                return number
        return 0

    def events(self, part: Part) -> Iterator[tuple[int, list[int]]]:
        """Return what is computed in a part of a section, each with what it reads that is allocated."""
        fragment, base, *_ = self.sections[part.section]
        moving, others, changed, roots = fragment.moving, part.others, part.changed, self.roots
        for index in range(part.start, part.stop):
            reads = changed.get(index) or moving[index]
            if reads or roots[base + index] < 0:
                yield base + index, [base + one if one >= 0 else others[one] for one in reads]

    def is_input(self, tensor: int) -> bool:
        """Tell inputs from leaves."""
        _, fragment, index = self.fragment(tensor)
        return tensor < self.count and index in fragment.shared

    def fragment(self, tensor: int) -> tuple[int, Fragment, int]:
        """Find the section of a tensor, its fragment, and what the tensor is called there."""
        number = bisect_right(self.bases, tensor) - 1
        return number, self.sections[number].fragment, tensor - self.bases[number]


def schedule(graph: Graph, *, offload: bool, large: dict[Dim, bool], pipeline: bool) -> Schedule:
    """Schedule a graph on the host and the GPUs before it.

    `offload` lets the first GPU compute with host weights for batches that are `large`; a `pipeline` over several GPUs
    keeps four copies of every input.
    """
    planned = Schedule(graph)
    _join(planned, offload=offload and graph.host > 0, large=large)
    _assign(planned)
    _split(planned, PIPELINE_COPIES if pipeline else 1)
    return planned


def _join(planned: Schedule, *, offload: bool, large: dict[Dim, bool]) -> None:
    """Put the sections one behind the other."""
    roots, readers, looks = planned.roots, planned.readers, planned.looks
    moved = {rows for rows, is_large in large.items() if is_large and offload}
    for number, (fragment, base, others, named) in enumerate(planned.sections):
        # The last item is what -1 stands for.
        called = *named, ANYWHERE
        planned.devices += [called[home] for home in fragment.homes]
        planned.able += [called[only] for only in fragment.able]
        for index, rows in fragment.moves:
            if rows in moved:
                planned.devices[base + index] = 0
        planned.sizes += fragment.sizes
        planned.layouts += fragment.layouts
        planned.solid += fragment.solid
        readers += fragment.readers
        looks += fragment.looks
        planned.inplace += fragment.inplace
        roots += [-1] * fragment.count
        for index, root in fragment.roots.items():
            roots[base + index] = base + root if root >= 0 else others[~root]
        for other, (read, looked) in zip(others, fragment.read, strict=True):
            readers[other] += read
            looks[other] += looked
        for index in fragment.early:
            planned.asked[base + index] = number
        for index in fragment.outputs:
            planned.outputs.add(base + index if index >= 0 else others[~index])


def _assign(planned: Schedule) -> None:
    """Choose the device of everything."""
    devices, host = planned.devices, planned.host
    real = [section.base + index for section in planned.sections for index in section.fragment.real]
    for node in _hand_on(planned, real):
        devices[node] = _most_at_home(planned, node)
    for tensor, root in enumerate(planned.roots):
        if root >= 0 and devices[tensor] < 0:
            devices[tensor] = devices[root]
    for fragment, base, *_ in planned.sections:
        for index, size in fragment.extras:
            if devices[base + index] != host:
                planned.sizes[base + index] = size


def _hand_on(planned: Schedule, real: list[int]) -> list[int]:
    """Hand devices on to neighbours, those of GPUs first, down and up; returns what no device was handed to."""
    devices, able, host = planned.devices, planned.able, planned.host
    left: list[int] = []
    for ordered, skipped in ((real, host), (real[::-1], host), (real, ANYWHERE), (real[::-1], ANYWHERE)):
        left, current = [], ANYWHERE
        for node in ordered:
            device = devices[node]
            if device >= 0:
                current = ANYWHERE if device == skipped else device
            elif current >= 0 and (able[node] < 0 or able[node] == current or current == host):
                devices[node] = current
            else:
                left.append(node)
        if not left:
            break
    return left[::-1]


def _most_at_home(planned: Schedule, node: int) -> int:
    """Choose the device that has most of an operation's sources (pass 3 of the scheduler)."""
    held: Counter[int] = Counter()
    section, fragment, index = planned.fragment(node)
    _, base, others, _ = planned.sections[section]
    for one in fragment.sources[index]:
        source = base + one if one >= 0 else others[~one]
        root = planned.roots[source]
        held[planned.devices[root if root >= 0 else source]] += 1
    only = planned.able[node]
    able = range(planned.host + 1) if only < 0 else {only, planned.host}
    return max(able, key=lambda device: (held[device], -device))


def _split(planned: Schedule, copies: int) -> None:  # noqa: C901
    """Cut the order into splits of one device each, and copy what they read from others where they start."""
    devices, readers = planned.devices, planned.readers
    copied: dict[tuple[int, int], int] = {}
    current = ANYWHERE
    arrivals: list[Copy] = []
    parts: list[Part] = []
    for section, (fragment, base, others, _) in enumerate(planned.sections):
        sources, fixed = fragment.sources, fragment.fixed
        named = [*reversed(others)]
        changed: dict[int, list[int]] = {}
        start = 0
        steady = [devices[base + index] for index in fragment.real].count(current) == len(fragment.real)
        for index in fragment.edges if steady else fragment.real:
            device = devices[base + index]
            apart = [one for one in sources[index] if devices[base + one if one >= 0 else named[one]] != device]
            if device != current or (apart and arrivals and _weighs(planned, base, named, apart)):
                if current >= 0:
                    parts.append(Part(section, start, index, changed, named))
                    start, arrivals, parts = index, [], []
                planned.splits.append(Split(section, arrivals, parts))
                current = device
            if not apart:
                continue
            found = []
            for one in sources[index]:
                if one not in apart:
                    if one not in fixed:
                        found.append(one)
                    continue
                source = base + one if one >= 0 else named[one]
                copy = copied.get((source, current))
                if copy is None:
                    copy = copied[source, current] = _copy(planned, source, current, section)
                    arrivals.append(Copy(source, copy, section))
                    readers[source] += 1
                readers[source] -= 1
                readers[copy] += 1
                named.insert(0, copy)
                found.append(-len(named))
            changed[index] = found
        parts.append(Part(section, start, len(fragment.sources), changed, named))
    early = [*planned.asked][: len(planned.asked) - len(copied)]
    if copies == 1:
        planned.early = early, [], []
    else:
        inputs = [tensor for tensor in early if planned.is_input(tensor)]
        leaves = [tensor for tensor in early if not planned.is_input(tensor)]
        planned.outputs.update(inputs, copied.values())
        planned.early = _kept(inputs, copies), _kept(copied.values(), copies), leaves
    for tensor in planned.outputs:
        planned.solid[tensor] = 0


def _weighs(planned: Schedule, base: int, others: Sequence[int], names: Sequence[int]) -> bool:
    """Tell whether a weight is among tensors of a section."""
    for one in names:
        _, fragment, place = planned.fragment(base + one if one >= 0 else others[one])
        if place in fragment.weights:
            return True
    return False


def _copy(planned: Schedule, source: int, device: int, section: int) -> int:
    """Add a copy that a section asks for; returns its number."""
    number, fragment, index = planned.fragment(source)
    copy = len(planned.devices)
    gap = fragment.gaps.get(index, 0) if device != planned.host else 0
    planned.devices.append(device)
    planned.sizes.append(planned.known.widened(planned.sizes[source], gap))
    planned.solid.append(planned.layouts[source])
    planned.readers.append(0)
    planned.looks.append(0)
    planned.inplace.append(0)
    planned.roots.append(-1)
    planned.asked[copy] = section
    name = fragment.weights.get(index)
    if name is not None:
        ahead, key = name
        planned.names[copy] = (None if ahead is None else ahead + number - section), key
    return copy


def _kept(tensors: Iterable[int], copies: int) -> list[int]:
    """Return as many of each as a pipeline keeps."""
    return [tensor for tensor in tensors for _ in range(copies)]
