"""A compute graph as it is built: tensors with sizes, who reads whom, and where fixed tensors live.

What stands before the blocks, each block and what follows them are its sections. One that is complete is kept as a
`Fragment`, numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from willitrun_estimator.compute.form import ZERO, Dim, Form, U, form, plus
from willitrun_estimator.compute.fragment import Fragment, Stand, compiled
from willitrun_estimator.compute.node import Node
from willitrun_estimator.compute.steps import Known


class Section(NamedTuple):
    """A fragment in a graph."""

    fragment: Fragment
    base: int
    """What its tensors' numbers are counted from."""
    others: tuple[int, ...]
    """Numbers of the tensors of earlier sections that it names."""
    devices: tuple[int, ...]
    """The devices that it names."""


class Graph:
    """Records tensors in the order in which they are computed."""

    def __init__(self, host: int, known: Known | None = None) -> None:
        self.host = host
        self.known = Known() if known is None else known
        self.sections: list[Section] = []
        """Those that are complete."""
        self.nodes: list[Node] = []
        """Of the section in hand."""
        self._early: list[Node] = []
        """Its inputs and leaves in the order in which they are first asked for."""
        self.count = 0
        """Tensors of complete sections: their numbers come before those of others."""
        self.ahead = 0
        """How many blocks ahead of a block something was computed for it."""

    def end(self, devices: Iterable[int] = ()) -> Section:
        """Complete a section; the first of its devices may be given."""
        names = {device: name for name, device in enumerate(devices)}
        stand = Stand(self.count, len(self.sections), self.host)
        fragment, others = compiled(self.nodes, self._early, stand, names, self.known)
        self.nodes, self._early = [], []
        return self.place(fragment, others, tuple(names))

    def place(self, fragment: Fragment, others: tuple[int, ...], devices: tuple[int, ...]) -> Section:
        """Add a whole section."""
        section = Section(fragment, self.count, others, devices)
        self.sections.append(section)
        self.count += fragment.count
        return section

    def input(self, name: str, dims: tuple[Dim, ...], element_bytes: int = 4) -> Node:
        """Add a tensor that the host fills before each batch."""
        node = Node(name, dims, form(dims, element_bytes), element_bytes=element_bytes, is_input=True)
        self._early.append(node)
        return node

    def leaf(
        self, name: str, dims: tuple[Dim, ...], device: int, *, kept: bool = False, element_bytes: int = 4
    ) -> Node:
        """Add a tensor that nothing computes: it has its place from the start of the graph."""
        node = Node(name, dims, form(dims, element_bytes), is_output=kept, device=device, element_bytes=element_bytes)
        self._early.append(node)
        return node

    def weight(self, key: str, device: int) -> Node:
        """Refer to a weight that lives on `device`; `key` names its size."""
        return Node(key, (), ZERO, fixed=device, is_weight=True, weight=key)

    def cache(self, name: str, device: int) -> Node:
        """Refer to a cache or state that lives on `device`."""
        return Node(name, (), ZERO, fixed=device)

    def add(
        self,
        name: str,
        dims: tuple[Dim, ...],
        *sources: Node,
        inplace: bool = False,
        element_bytes: int = 4,
        size: Form | None = None,
        rows: Dim | None = None,
        picks_device: bool = True,
        gpu_supported: bool = True,
        gpu_extra: Form = ZERO,
    ) -> Node:
        """Add an operation with a result of its own."""
        node = Node(
            name,
            dims,
            form(dims, element_bytes) if size is None else size,
            list(sources),
            inplace=inplace,
            element_bytes=element_bytes,
            rows=(dims[-1] if dims else 1) if rows is None else rows,
            picks_device=picks_device,
            gpu_supported=gpu_supported,
            gpu_extra=gpu_extra,
        )
        self.nodes.append(node)
        return node

    def view(
        self,
        source: Node,
        dims: tuple[Dim, ...],
        *,
        contiguous: bool = True,
        size: Form | None = None,
        element_bytes: int | None = None,
        gap_bytes: int = 0,
    ) -> Node:
        """Add another look at a tensor's memory: a reshape, a slice or a permutation."""
        width = source.element_bytes if element_bytes is None else element_bytes
        node = Node(
            source.name + "/view",
            dims,
            form(dims, width) if size is None else size,
            [source],
            view_of=source.view_of or source,
            contiguous=contiguous,
            element_bytes=width,
            gap_bytes=gap_bytes,
            computed=False,
        )
        self.nodes.append(node)
        return node

    def part(self, source: Node, dims: tuple[Dim, ...], row: int) -> Node:
        """Look at a slice of every row of `row` elements; a copy of it takes the gaps along."""
        width = 1
        for dim in dims:
            width *= dim if isinstance(dim, int) else 1
        tokens = next((dim for dim in reversed(dims) if isinstance(dim, str)), U)
        size = plus(form((row, tokens), source.element_bytes), form((width - row,), source.element_bytes))
        return self.view(source, dims, contiguous=False, size=size)

    def store(self, name: str, cache: Node, *sources: Node) -> Node:
        """Add an operation that writes into a cache and returns a view of it."""
        node = Node(name, cache.dims, ZERO, [*sources, cache], view_of=cache, contiguous=False)
        self.nodes.append(node)
        return node

    def overwrite(self, name: str, target: Node, *others: Node, before: tuple[Node, ...] = ()) -> Node:
        """Add an operation that writes into a tensor of the graph and returns a view of it.

        `before` are its sources that come first, `others` those that follow the tensor.
        """
        node = Node(
            name,
            target.dims,
            target.size,
            [*before, target, *others],
            view_of=target.view_of or target,
            element_bytes=target.element_bytes,
        )
        self.nodes.append(node)
        return node
