"""Which device computes what, what is copied between devices, and the allocator's steps that follow.

Behaviour of `ggml_backend_sched_split_graph` and `ggml_gallocr_alloc_graph_impl` (ggml/src/ggml-backend.cpp and
ggml-alloc.c, ggml 0.25): operations follow their weights, unassigned neighbours follow them, sources on another
device are copied at the start of a split, and a tensor is freed after its last reader.
"""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import chain

from willitrun_estimator.compute.allocator import Arena
from willitrun_estimator.compute.form import ZERO, Dim, Form, evaluate, form, plus
from willitrun_estimator.compute.graph import Graph, Node
from willitrun_estimator.compute.periods import Run

OFFLOAD_ROWS = 32
"""Smallest batch for which CUDA computes with host weights (`GGML_OP_OFFLOAD_MIN_BATCH`)."""
PIPELINE_COPIES = 4
"""`GGML_SCHED_MAX_COPIES`."""

MOST_PEAKS = 1024
"""Peaks kept of one program, so that a million different contexts take no more memory than a thousand."""

KEEP = "keep"
"""Marks a dependency that holds a source until it is copied and is no view of it."""
TAKE, GIVE = 0, 1

Step = tuple[int, int, int]
"""What to do, with which slot, and the index of a size."""


class Program:
    """The allocator's steps on one device, sizes still symbolic."""

    def __init__(
        self,
        steps: list[Step],
        sizes: list[tuple[Form, str | None]],
        alignment: int,
        compared: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        self.steps = array("i", chain.from_iterable(steps))
        """Three numbers a step, packed: a program has thousands of steps and thousands of programs are kept."""
        self.forms = tuple(size for size, _ in sizes)
        self.copied = tuple(name for _, name in sizes if name is not None)
        """Keys of the weights that are copied to this device while it computes with them."""
        self._names = tuple(name for _, name in sizes)
        self.alignment = alignment
        self.compared = compared
        """For each run of blocks that was shortened, the steps before which its states are compared."""
        self._peaks: dict[tuple[tuple[int, ...], tuple[int, ...]], int | None] = {}

    def peak(self, values: tuple[int, ...], copies: tuple[int, ...] = ()) -> int | None:
        """Bytes of the buffer for one micro-batch and context; `copies` are the bytes of `copied`.

        None where a shortened run does not repeat itself: the whole graph has to be planned.
        """
        key = (values, copies)
        if key not in self._peaks:
            if len(self._peaks) >= MOST_PEAKS:
                self._peaks.clear()
            self._peaks[key] = self._replay(values, copies)
        return self._peaks[key]

    def _replay(self, values: tuple[int, ...], copies: tuple[int, ...]) -> int | None:
        align = self.alignment
        sizes = []
        weights = iter(copies)
        for shape, name in zip(self.forms, self._names, strict=True):
            amount = evaluate(shape, values) if name is None else next(weights)
            sizes.append(-(-amount // align) * align)
        arena = Arena()
        held: dict[int, tuple[int, int]] = {}
        take, give = arena.take, arena.give
        states: dict[int, object] = {}
        done, steps = 0, self.steps
        for stop in (*sorted({at for run in self.compared for at in run}), len(steps) // 3):
            numbers = iter(steps[3 * done : 3 * stop])
            for action, slot, index in zip(numbers, numbers, numbers, strict=True):
                if action == TAKE:
                    size = sizes[index]
                    held[slot] = (take(size), size)
                else:
                    give(*held.pop(slot))
            done = stop
            states[stop] = (arena.starts[:], arena.lengths[:], [*held.values()])
        if any(states[last] not in (states[two], states[one]) for two, one, last in self.compared):
            return None
        return arena.peak


class Schedule:
    """The programs of all devices for one graph. The host is the last device."""

    def __init__(
        self,
        graph: Graph,
        devices: int,
        *,
        offload: bool,
        large: dict[Dim, bool],
        pipeline: bool,
        alignments: tuple[int, ...],
        runs: tuple[Run, ...] = (),
    ) -> None:
        self.host = devices - 1
        self.offload = offload and self.host > 0
        self.large = large
        self.copies = PIPELINE_COPIES if pipeline else 1
        self.graph = graph
        self._assign()
        compared = [tuple(id(graph.blocks[block]) for block in run.compared) for run in runs]
        self.repeats = True
        """Whether the blocks of shortened runs take nothing up front, which would grow with their number."""
        order, leaves = self._split({one: last for _, one, last in compared})
        self.programs = _trace(order, leaves, devices, alignments, compared)

    def _own_device(self, node: Node) -> int:
        """Choose the device that a node's own memory or weights ask for, -1 where they ask for none."""
        if node.view_of is not None and node.view_of.fixed is not None:
            return node.view_of.fixed
        if node.picks_device:
            for source in node.sources:
                if source.is_weight and source.fixed is not None:
                    if (
                        source.fixed == self.host
                        and self.offload
                        and node.gpu_supported
                        and self.large.get(node.rows, False)
                    ):
                        return 0
                    return source.fixed
        return -1

    def _supports(self, node: Node, device: int) -> bool:
        """Tell whether a device can compute an operation: a GPU cannot with another one's weights."""
        if device == self.host:
            return True
        return node.gpu_supported and all(source.fixed in {None, self.host, device} for source in node.sources)

    def _most_at_home(self, node: Node) -> int:
        """Choose the device that has most of an operation's sources (pass 3 of the scheduler)."""
        held: Counter[int] = Counter()
        for source in node.sources:
            root = source.view_of or source
            place = root.fixed if root.fixed is not None else root.device
            if place != -1:
                held[place] += 1
        able = [device for device in range(self.host + 1) if self._supports(node, device)]
        return max(able, key=lambda device: (held[device], -device))

    def _assign(self) -> None:  # noqa: C901, PLR0912
        host = self.host
        nodes = self.graph.nodes
        for node in self.graph.inputs:
            node.device = host
        for node in nodes:
            node.device = self._own_device(node)
        real = [node for node in nodes if node.computed]
        for ordered, skip_host in ((real, True), (real[::-1], True), (real, False), (real[::-1], False)):
            current = -1
            for node in ordered:
                if node.device != -1:
                    current = -1 if skip_host and node.device == host else node.device
                elif current != -1 and self._supports(node, current):
                    node.device = current
        for node in real:
            if node.device == -1:
                node.device = self._most_at_home(node)
        for node in nodes:
            if node.device == -1 and node.view_of is not None:
                node.device = node.view_of.device
            for source in node.sources:
                if source.device == -1:
                    source.device = node.device if source.fixed is None else source.fixed
            if node.gpu_extra is not ZERO and node.device != host:
                node.size = plus(node.size, node.gpu_extra)

    def _split(self, units: dict[int, int]) -> tuple[list[tuple[Node, int]], list[Node]]:  # noqa: C901
        """Insert the copies; returns the nodes in order and the tensors allocated up front.

        `units` are the first nodes of blocks that stand for more, and of what follows them.
        """
        end: int | None = None
        order: list[tuple[Node, int]] = []
        copied: dict[tuple[int, int], Node] = {}
        extra: list[Node] = []
        current = -1
        pending: list[tuple[Node, int]] = []
        inputs: list[Node] = []

        def flush() -> None:
            for source in inputs:
                keep = Node(KEEP, source.dims, source.size, [source], view_of=source.view_of or source)
                order.append((keep, source.device))
                copy = copied[id(source), current]
                order.append((copy, current))
            order.extend(pending)

        for node in self.graph.nodes:
            end = units.get(id(node), None if id(node) == end else end)
            if node.computed:
                fresh = node.device != current
                if not fresh and inputs:
                    fresh = any(s.is_weight and s.device != current for s in node.sources)
                if fresh and current != -1:
                    flush()
                    pending, inputs = [], []
                if fresh:
                    current = node.device
                for index, source in enumerate(node.sources):
                    if source.device == current:
                        continue
                    key = (id(source), current)
                    copy = copied.get(key)
                    if copy is None:
                        copy = Node(
                            source.name + "/copy",
                            source.dims,
                            plus(source.size, form((source.gap_bytes,), 1)) if current != self.host else source.size,
                            element_bytes=source.element_bytes,
                            weight=source.weight,
                            is_input=self.copies > 1,
                            is_output=self.copies > 1,
                            device=current,
                        )
                        copied[key] = copy
                        inputs.append(source)
                        if self.copies > 1:
                            extra.append(copy)
                            self.repeats = self.repeats and end is None
                    node.sources[index] = copy
            pending.append((node, node.device))
        flush()
        leaves: list[Node] = []
        if self.copies > 1:
            for node in (*self.graph.inputs, *extra):
                node.is_output = True
                leaves.append(node)
                leaves.extend(
                    Node(node.name + "/twin", node.dims, node.size, weight=node.weight, device=node.device)
                    for _ in range(self.copies - 1)
                )
            leaves.extend(self.graph.leaves)
        else:
            leaves.extend(self.graph.early)
        return order, leaves


def _same_layout(node: Node, parent: Node) -> bool:
    return parent.contiguous and node.dims == parent.dims and node.element_bytes == parent.element_bytes


def _trace(  # noqa: C901
    order: list[tuple[Node, int]],
    leaves: list[Node],
    devices: int,
    alignments: tuple[int, ...],
    compared: list[tuple[int, ...]],
) -> tuple[Program, ...]:
    """Replay the allocator's reference counting and write down its steps per device.

    `compared` names the nodes before which the states of shortened runs are compared.
    """
    marks = dict.fromkeys(chain.from_iterable(compared), (0,) * devices)
    steps: list[list[Step]] = [[] for _ in range(devices)]
    sizes: list[dict[tuple[Form, str | None], int]] = [{} for _ in range(devices)]
    slots: dict[int, tuple[int, int]] = {}
    children: dict[int, int] = {}
    views: dict[int, int] = {}
    count = 0

    def size_of(node: Node, device: int) -> int:
        return sizes[device].setdefault((node.size, node.weight), len(sizes[device]))

    def allocate(node: Node, device: int) -> None:
        nonlocal count
        if id(node) in slots or node.fixed is not None or node.view_of is not None:
            return
        if node.inplace:
            for parent in node.sources:
                if parent.is_output or not _same_layout(node, parent) or children.get(id(parent)) != 1:
                    continue
                if id(parent) in slots and not views.get(id(parent), 0):
                    slots[id(node)] = slots.pop(id(parent))
                    return
        slots[id(node)] = (device, count)
        steps[device].append((TAKE, count, size_of(node, device)))
        count += 1

    def release(node: Node) -> None:
        place = slots.get(id(node))
        if place is not None and not node.is_output:
            device, slot = slots.pop(id(node))
            steps[device].append((GIVE, slot, 0))

    for leaf in leaves:
        allocate(leaf, leaf.device)
    for node, _ in order:
        if node.view_of is not None and node.name is not KEEP:
            views[id(node.view_of)] = views.get(id(node.view_of), 0) + 1
        for source in node.sources:
            children[id(source)] = children.get(id(source), 0) + 1
    for node, device in order:
        if id(node) in marks:
            marks[id(node)] = tuple(map(len, steps))
        for source in node.sources:
            allocate(source, device)
        allocate(node, device)
        for source in node.sources:
            children[id(source)] -= 1
            if children[id(source)] == 0 and not views.get(id(source), 0):
                if source.view_of is not None:
                    root = source.view_of
                    views[id(root)] -= 1
                    if views[id(root)] == 0 and not children.get(id(root), 0):
                        release(root)
                else:
                    release(source)
    return tuple(
        Program(
            steps[i],
            list(sizes[i]),
            alignments[i],
            tuple((marks[two][i], marks[one][i], marks[last][i]) for two, one, last in compared),
        )
        for i in range(devices)
    )
