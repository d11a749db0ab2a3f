"""A section of a graph as numbers: what is left of it once it is complete.

Its tensors are numbered: those that are computed, in order, then its inputs and leaves, then weights and caches.
Tensors of earlier sections, the others, are called -1, -2 and so on. So a fragment says nothing about where it stands,
and a graph has the same one for all blocks that are built alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from willitrun_estimator.compute.form import ZERO, Dim, plus
from willitrun_estimator.compute.node import Node
from willitrun_estimator.compute.steps import Known, Name

ANYWHERE = -1
"""The device of what any device can compute, or of what is not placed yet."""


class Fragment(Struct, eq=False, gc=False):
    """One section of a graph. Arrays have an item for each tensor, `sources` and `moving` for each that is computed."""

    count: int
    """Its tensors."""
    sources: tuple[tuple[int, ...], ...]
    """What each operation reads."""
    moving: tuple[tuple[int, ...], ...]
    """The same without what is neither allocated nor a look at what is."""
    fixed: frozenset[int]
    """What is not."""
    shared: frozenset[int]
    """Inputs, weights and caches."""
    roots: dict[int, int]
    """Looks at other tensors' memory, each with the tensor that has it."""
    real: tuple[int, ...]
    """What a device computes."""
    edges: tuple[int, ...]
    """What of this reads more than results of the section, and so may need a copy where one device has all of these."""
    homes: array[int]
    """Where a tensor is for itself, else `ANYWHERE`. Devices are named by their place in a list."""
    moves: tuple[tuple[int, Dim], ...]
    """Operations on the host's weights that a GPU can compute too, each with its rows."""
    able: array[int]
    """The only device beside the host that can compute each tensor, or `ANYWHERE`."""
    sizes: array[int]
    extras: tuple[tuple[int, int], ...]
    """What is larger where a GPU computes it, with that size."""
    gaps: dict[int, int]
    """Bytes by which a GPU's copy of a tensor is larger."""
    weights: dict[int, Name]
    """Names of the weights."""
    layouts: array[int]
    solid: array[int]
    """Layouts of what may be written over, else 0."""
    inplace: array[int]
    """The layout that an operation in place looks for, else 0."""
    readers: array[int]
    looks: array[int]
    """How often each tensor of the section is read, and looked at, in it."""
    read: tuple[tuple[int, int], ...]
    """The same of the others."""
    early: tuple[int, ...]
    """Inputs and leaves, in order."""
    outputs: tuple[int, ...]
    """What is never freed, others among it."""


class _Numbers:
    """What the tensors of a section are called in it."""

    def __init__(self, nodes: Sequence[Node], early: Sequence[Node], base: int) -> None:
        self.base = base
        self.tensors = [*nodes, *early]
        for place, node in enumerate(self.tensors, base):
            node.place = place
        self.others: dict[int, int] = {}
        self.fixed: set[int] = set()
        self.kept: set[int] = set()
        """Others that are never freed."""

    def of(self, node: Node) -> int:
        """Return the name of a tensor; a weight or cache that was not named before is added."""
        number = node.place - self.base
        if number >= 0:
            return number
        if node.place < 0:
            number = len(self.tensors)
            node.place = self.base + number
            self.tensors.append(node)
            self.fixed.add(number)
            return number
        number = self.others.setdefault(node.place, ~len(self.others))
        if node.root.fixed is not None:
            self.fixed.add(number)
        if node.is_output:
            self.kept.add(number)
        return number


class Stand(NamedTuple):
    """Where a section stands in its graph."""

    base: int
    """What its tensors' numbers are counted from."""
    section: int
    """Its own number."""
    host: int


def compiled(
    nodes: Sequence[Node], early: Sequence[Node], stand: Stand, devices: dict[int, int], known: Known
) -> tuple[Fragment, tuple[int, ...]]:
    """Make a fragment of a section, and return the numbers of its others; `devices` gets further names."""
    base, section, host = stand
    numbers = _Numbers(nodes, early, base)
    sources = [tuple(map(numbers.of, node.sources)) for node in nodes]
    roots = {index: numbers.of(node.view_of) for index, node in enumerate(nodes) if node.view_of is not None}
    fixed = numbers.fixed
    fixed |= {index for index, root in roots.items() if root in fixed}
    tensors, others = numbers.tensors, [*numbers.others]
    readers, looks = [0] * (len(tensors) + len(others)), [0] * (len(tensors) + len(others))
    for read in sources:
        for one in read:
            readers[one] += 1
    for root in roots.values():
        looks[root] += 1

    def named(device: int) -> int:
        return device if device < 0 else devices.setdefault(device, len(devices))

    # Results of the section, and looks at them.
    inner = {index for index in range(len(nodes)) if 0 <= roots.get(index, index) < len(nodes)}
    own = slice(None, len(tensors))
    layouts = array("i", [known.layout(node.dims, node.element_bytes) for node in tensors])
    fragment = Fragment(
        count=len(tensors),
        sources=tuple(sources),
        moving=tuple(
            [read if fixed.isdisjoint(read) else tuple([o for o in read if o not in fixed]) for read in sources]
        ),
        fixed=frozenset(fixed),
        shared=frozenset([index for index, node in enumerate(tensors) if node.is_input or node.fixed is not None]),
        roots=roots,
        real=tuple([index for index, node in enumerate(nodes) if node.computed]),
        edges=tuple(
            [index for index, read in enumerate(sources) if nodes[index].computed and not inner.issuperset(read)]
        ),
        homes=array("b", [named(_home(node, host)) for node in tensors]),
        moves=tuple([(index, node.rows) for index, node in enumerate(nodes) if _moves(node, host)]),
        able=array("b", [named(_able(node, host)) for node in tensors]),
        sizes=array("i", [known.size(node.size) for node in tensors]),
        extras=tuple(
            [
                (index, known.size(plus(node.size, node.gpu_extra)))
                for index, node in enumerate(nodes)
                if node.gpu_extra is not ZERO
            ]
        ),
        gaps={index: node.gap_bytes for index, node in enumerate(tensors) if node.gap_bytes},
        weights={index: _name(node.weight, section) for index, node in enumerate(tensors) if node.weight is not None},
        layouts=layouts,
        solid=array(
            "i",
            [
                layout if node.contiguous and not node.is_output else 0
                for layout, node in zip(layouts, tensors, strict=True)
            ],
        ),
        inplace=array("i", [layout if node.inplace else 0 for layout, node in zip(layouts, tensors, strict=True)]),
        readers=array("i", readers[own]),
        looks=array("i", looks[own]),
        read=tuple(zip(readers[: own.stop - 1 : -1], looks[: own.stop - 1 : -1], strict=True)),
        early=tuple(range(len(nodes), len(nodes) + len(early))),
        outputs=(*(index for index, node in enumerate(tensors) if node.is_output), *sorted(numbers.kept)),
    )
    return fragment, tuple(others)


def _first_weight(node: Node) -> int:
    return next((source.fixed for source in node.sources if source.is_weight and source.fixed is not None), ANYWHERE)


def _home(node: Node, host: int) -> int:
    """Choose the device that a tensor's own memory or weights ask for."""
    fixed = node.root.fixed
    if fixed is not None:
        return fixed
    if node.is_input:
        return host
    return _first_weight(node) if node.picks_device and node.sources else node.device


def _moves(node: Node, host: int) -> bool:
    """Tell whether an operation may leave its weight, which the host has, for the GPU that computes for it."""
    free = node.root.fixed is None and node.picks_device and node.gpu_supported
    return free and _first_weight(node) == host


def _able(node: Node, host: int) -> int:
    """Find the only device beside the host that can compute an operation: a GPU cannot with another one's weights."""
    gpus = {source.fixed for source in node.sources} - {None, host}
    if not node.gpu_supported or len(gpus) > 1:
        return host
    return next((gpu for gpu in gpus if gpu is not None), ANYWHERE)


def _name(key: str, section: int) -> Name:
    """Name a weight by how far its block is from the section."""
    number, _, name = key.rpartition("/")
    return (int(number) + 1 - section if number else None), name
