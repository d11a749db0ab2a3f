"""One tensor of a compute graph."""

from __future__ import annotations

from msgspec import Struct

from willitrun_estimator.compute.form import ZERO, Dim, Form


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
    """Of a leaf."""
    place: int = -1
    """Its number in the graph, once its section is complete."""

    @property
    def root(self) -> Node:
        """The tensor that has the memory."""
        return self.view_of or self
