"""Which device computes what, and what is copied between devices.

Behaviour of `ggml_backend_sched_split_graph` (ggml/src/ggml-backend.cpp, ggml 0.25): operations follow their weights,
unassigned neighbours follow them, and sources on another device are copied at the start of a split.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from willitrun_estimator.compute.form import ZERO, Dim, form, plus
from willitrun_estimator.compute.graph import Graph, Node

OFFLOAD_ROWS = 32
"""Smallest batch for which CUDA computes with host weights (`GGML_OP_OFFLOAD_MIN_BATCH`)."""
PIPELINE_COPIES = 4
"""`GGML_SCHED_MAX_COPIES`."""

KEEP = "keep"
"""Marks a dependency that holds a source until it is copied and is no view of it."""


class Scheduled(NamedTuple):
    """One node or copy of a schedule."""

    node: Node | None
    """None marks where a split begins, behind what it needs at once."""
    device: int
    section: int
    """Of a copy, the section that asks for it."""
    ahead: bool = False
    """It is copied for a section that comes later in the split."""


class Schedule(NamedTuple):
    """A graph with its copies."""

    order: list[Scheduled]
    early: tuple[list[Node], ...]
    """What has its place before anything is computed, in three rounds."""


def schedule(graph: Graph, devices: int, *, offload: bool, large: dict[Dim, bool], pipeline: bool) -> Schedule:
    """Schedule a graph on devices of which the host is the last.

    `offload` lets the first GPU compute with host weights for batches that are `large`; a `pipeline` over several GPUs
    keeps four copies of every input.
    """
    _assign(graph, devices - 1, offload=offload and devices > 1, large=large)
    return _split(graph, devices - 1, PIPELINE_COPIES if pipeline else 1)


def _own_device(node: Node, host: int, offload: bool, large: dict[Dim, bool]) -> int:
    """Choose the device that a node's own memory or weights ask for, -1 where they ask for none."""
    if node.view_of is not None and node.view_of.fixed is not None:
        return node.view_of.fixed
    if node.picks_device:
        for source in node.sources:
            if source.is_weight and source.fixed is not None:
                if source.fixed == host and offload and node.gpu_supported and large.get(node.rows, False):
                    return 0
                return source.fixed
    return -1


def _supports(node: Node, device: int, host: int) -> bool:
    """Tell whether a device can compute an operation: a GPU cannot with another one's weights."""
    if device == host:
        return True
    return node.gpu_supported and all(source.fixed in {None, host, device} for source in node.sources)


def _most_at_home(node: Node, host: int) -> int:
    """Choose the device that has most of an operation's sources (pass 3 of the scheduler)."""
    held: Counter[int] = Counter()
    for source in node.sources:
        root = source.view_of or source
        place = root.fixed if root.fixed is not None else root.device
        if place != -1:
            held[place] += 1
    able = [device for device in range(host + 1) if _supports(node, device, host)]
    return max(able, key=lambda device: (held[device], -device))


def _assign(graph: Graph, host: int, *, offload: bool, large: dict[Dim, bool]) -> None:  # noqa: C901, PLR0912
    """Choose the device of every node."""
    nodes = graph.nodes
    for node in graph.inputs:
        node.device = host
    for node in nodes:
        node.device = _own_device(node, host, offload, large)
    real = [node for node in nodes if node.computed]
    for ordered, skip_host in ((real, True), (real[::-1], True), (real, False), (real[::-1], False)):
        current = -1
        for node in ordered:
            device = node.device
            if device != -1:
                current = -1 if skip_host and device == host else device
            elif current != -1 and _supports(node, current, host):
                node.device = current
    for node in real:
        if node.device == -1:
            node.device = _most_at_home(node, host)
    for node in nodes:
        device = node.device
        if device == -1 and node.view_of is not None:
            device = node.device = node.view_of.device
        for source in node.sources:
            if source.device == -1:
                source.device = device if source.fixed is None else source.fixed
        if node.gpu_extra is not ZERO and device != host:
            node.size = plus(node.size, node.gpu_extra)


def _split(graph: Graph, host: int, copies: int) -> Schedule:  # noqa: C901
    """Cut the order into splits of one device each, and copy what they read from others where they start."""
    order: list[Scheduled] = []
    copied: dict[tuple[int, int], Node] = {}
    extra: list[Node] = []
    current = -1
    section = 0
    pending: list[Scheduled] = []
    arrivals: list[tuple[Node, Node]] = []

    def flush() -> None:
        began = False
        for source, copy in arrivals:
            ahead = copy.section > section
            if ahead and not began:
                began = True
                order.append(Scheduled(None, -1, section))
            keep = Node(KEEP, (), ZERO, [source], view_of=source.view_of or source)
            order.append(Scheduled(keep, source.device, copy.section, ahead))
            order.append(Scheduled(copy, copy.device, copy.section, ahead))
        if not began:
            order.append(Scheduled(None, -1, section))
        order.extend(pending)

    for node in graph.nodes:
        if node.computed:
            fresh = node.device != current
            if not fresh and arrivals:
                for source in node.sources:
                    if source.is_weight and source.device != current:
                        fresh = True
            if fresh:
                if current != -1:
                    flush()
                    pending, arrivals = [], []
                current, section = node.device, node.section
            for index, source in enumerate(node.sources):
                if source.device == current:
                    continue
                key = (id(source), current)
                copy = copied.get(key)
                if copy is None:
                    gap = source.gap_bytes if current != host else 0
                    copy = copied[key] = Node(
                        source.name,
                        source.dims,
                        plus(source.size, form((gap,), 1)) if gap else source.size,
                        element_bytes=source.element_bytes,
                        weight=source.weight,
                        is_output=copies > 1,
                        device=current,
                        section=node.section,
                    )
                    arrivals.append((source, copy))
                    if copies > 1:
                        extra.append(copy)
                node.sources[index] = copy
        pending.append(Scheduled(node, node.device, node.section))
    flush()
    if copies == 1:
        return Schedule(order, (graph.early, [], []))
    return Schedule(order, (_kept(graph.inputs, copies), _kept(extra, copies), graph.leaves))


def _kept(nodes: list[Node], copies: int) -> list[Node]:
    """Return as many of each as a pipeline keeps."""
    kept = []
    for node in nodes:
        node.is_output = True
        kept.append(node)
        kept.extend(
            Node(node.name, (), node.size, weight=node.weight, is_output=True, device=node.device, section=node.section)
            for _ in range(copies - 1)
        )
    return kept
