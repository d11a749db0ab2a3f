"""A compute graph as the planner needs it: tensors with sizes, who reads whom, and where fixed tensors live."""

from __future__ import annotations

from msgspec import Struct

from willitrun_estimator.compute.form import ZERO, Dim, Form, U, form, plus


class Node(Struct, eq=False):
    """A tensor and the operation that makes it."""

    name: str
    dims: tuple[Dim, ...]
    size: Form
    sources: list[Node] = []
    view_of: Node | None = None
    """The tensor whose memory it shares."""
    contiguous: bool = True
    inplace: bool = False
    """The operation may write over a source of the same layout."""
    element_bytes: int = 4
    fixed: int | None = None
    """Device of a tensor that exists outside the graph (a weight or a cache)."""
    is_weight: bool = False
    is_input: bool = False
    is_output: bool = False
    """Never freed."""
    weight: str | None = None
    """The key of a weight's bytes."""
    picks_device: bool = True
    """False for operations that do not follow their weights (rope factors, attention sinks)."""
    gap_bytes: int = 0
    """What CUDA adds to a copy of it: the rest of a quantized row of 512 elements."""
    rows: Dim = 1
    """Batch rows: what decides whether an operation on host weights is worth a copy to the GPU."""
    gpu_supported: bool = True
    gpu_extra: Form = ZERO
    """Scratch that the operation has behind its result when a GPU computes it."""
    computed: bool = True
    """False for a mere look at another tensor's memory, which no device has to compute."""
    device: int = -1


class Graph:
    """Records tensors in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Node] = []
        self.leaves: list[Node] = []
        self.early: list[Node] = []
        """Inputs and leaves in the order in which they are first asked for."""
        self.blocks: list[Node] = []
        """The first node of each block."""

    def input(self, name: str, dims: tuple[Dim, ...], element_bytes: int = 4) -> Node:
        """Add a tensor that the host fills before each batch."""
        node = Node(name, dims, form(dims, element_bytes), element_bytes=element_bytes, is_input=True)
        self.inputs.append(node)
        self.early.append(node)
        return node

    def leaf(
        self, name: str, dims: tuple[Dim, ...], device: int, *, kept: bool = False, element_bytes: int = 4
    ) -> Node:
        """Add a tensor that nothing computes: it has its place from the start of the graph."""
        size = form(dims, element_bytes)
        node = Node(name, dims, size, computed=False, is_output=kept, device=device, element_bytes=element_bytes)
        self.leaves.append(node)
        self.early.append(node)
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
