"""Blocks that were built before are not built again: their fragments are put where they are needed next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

from willitrun_estimator.compute.fragment import ANYWHERE, Fragment
from willitrun_estimator.compute.graph import Graph, Section
from willitrun_estimator.compute.node import Node

if TYPE_CHECKING:
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.operations import Homes

MOST_STAMPS = 400
"""Blocks kept, of all shapes together."""


STREAM = "stream"
"""Name of what a block reads of the one before it."""


class Following(NamedTuple):
    """The block whose state is fetched in the one in hand."""

    structure: Hashable
    cache: int
    """Device of its state."""
    ahead: int
    """How many blocks farther it is; 0 where there is none."""


class Stamp(NamedTuple):
    """A block, wherever it stands."""

    fragment: Fragment
    others: tuple[tuple[Hashable, bool], ...]
    """The others by what the builder calls them, and whether it is what such a one looks at."""
    made: tuple[tuple[Hashable, Node, int | None], ...]
    """What later blocks may read of it: its name, its number in the block, and that of what it looks at."""
    spent: tuple[Hashable, ...]
    """What nothing can read behind it."""
    events: int
    """How many of the builder's events it takes."""
    ahead: int
    """How many blocks ahead of it something is computed in it."""


STAMPS: OrderedDict[Hashable, Stamp] = OrderedDict()


def placed(
    b: Builder,
    x: Node,
    homes: Homes,
    taken: int,
    following: Following,
    told: tuple[bool, ...],
    add: Callable[[], Node],
) -> Node:
    """Put a block that takes so many events behind `x`; one that was not built before is added, and kept.

    `told` is what else tells blocks apart.
    """
    shared, events = b.shared, b.events
    shared[STREAM] = x
    # What only the first GPU can do for a block of the host is not told of a block of its own.
    homed = (
        b.host, homes.block, homes.cache, homes.experts, homes.elsewhere, following.cache,
        0 if homes.block == b.host else ANYWHERE,
    )  # fmt: skip
    devices = tuple(dict.fromkeys(device for device in homed if device >= 0))
    names = {device: name for name, device in enumerate(devices)}
    key = (
        b.graph.known, *map(names.get, homed), homes.structure, homes.apart, following.structure, following.ahead,
        told, x.dims, x.view_of is None, *shared,
    )  # fmt: skip
    known = find(key)
    if known is not None:
        del events[: known.events]
        again(b.graph, shared, known, devices)
        return shared[STREAM]
    before, waiting = shared.copy(), len(events)
    shared[STREAM] = add()
    section = b.graph.end(devices)
    if homes.structure is not None and section.devices == devices and waiting - len(events) == taken:
        keep(key, section, before, shared, taken, following.ahead)
    return shared[STREAM]


def again(graph: Graph, shared: dict[Hashable, Node], stamp: Stamp, devices: tuple[int, ...]) -> None:
    """Put a block into a graph, and what it makes among what is shared."""
    others = []
    for name, looks in stamp.others:
        node = shared[name]
        others.append(node.root.place if looks else node.place)
    base = graph.place(stamp.fragment, tuple(others), devices).base
    for name in stamp.spent:
        del shared[name]
    for name, kept, root in stamp.made:
        node = shared[name] = _at(kept, base + kept.place, devices)
        if kept.view_of is not None and root is not None:
            node.view_of = _at(kept.view_of, base + root if root >= 0 else others[~root], devices)
    graph.ahead = max(graph.ahead, stamp.ahead)


def find(key: Hashable) -> Stamp | None:
    """Return the block that was built with a key."""
    known = STAMPS.get(key)
    if known is not None:
        STAMPS.move_to_end(key)
    return known


def keep(
    key: Hashable,
    section: Section,
    before: Mapping[Hashable, Node],
    shared: Mapping[Hashable, Node],
    events: int,
    ahead: int,
) -> None:
    """Keep a block that was built, unless it reads or leaves something that has no name."""
    fragment, base, others, devices = section
    called = {device: name for name, device in enumerate(devices)}
    names: dict[int, tuple[Hashable, bool]] = {}
    for name, node in before.items():
        names.setdefault(node.root.place, (name, True))
    for name, node in before.items():
        names[node.place] = name, False
    made = []
    for name, node in shared.items():
        if node.place >= base:
            kept = _at(node, node.place - base, called)
            if node.view_of is not None:
                kept.view_of = _at(node.view_of, -1, called)
            made.append((name, kept, fragment.roots.get(node.place - base)))
        elif before.get(name) is not node:
            return
    if not names.keys() >= {*others}:
        return
    spent = tuple(name for name in before if name not in shared)
    STAMPS[key] = Stamp(fragment, tuple(names[other] for other in others), tuple(made), spent, events, ahead)
    if len(STAMPS) > MOST_STAMPS:
        STAMPS.popitem(last=False)


def _at(node: Node, place: int, devices: Mapping[int, int] | Sequence[int]) -> Node:
    """Return a tensor like another in a place of its own, without its sources, on a device of another name."""
    found = copy(node)
    found.sources = []
    found.place = place
    if node.fixed is not None:
        found.fixed = devices[node.fixed]
    return found
