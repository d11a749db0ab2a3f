"""What decides what the allocator does during a block: its neighbours, and what else uses the same devices.

Blocks read what the block before handed on, and tensors that the whole graph shares: inputs, which the host holds from
the start, and their copies, which a GPU takes where its first reader's split begins and gives back after its last. So
the blocks beside it tell what a block computes where, the kinds of blocks before and behind it on the same GPUs tell
which copies there are and which are read again, and the kinds on any device tell the same of the inputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

HOST, ELSEWHERE = -1, -2
"""What the host and GPUs that do not matter are called among surroundings."""


class Kind(NamedTuple):
    """A block in a layout; blocks of a kind are built alike and live alike."""

    structure: Hashable
    block: int
    """Device of its weights."""
    cache: int
    """Device of its cache and state."""
    experts: int
    """Device of its routed experts."""
    apart: int
    """Device of those of them that are apart, else as `block`."""
    tensors: tuple[str, ...] = ()
    """Which these are."""


class Looks(NamedTuple):
    """How far the blocks of a model look."""

    reach: int
    """How many sections away anything is read that is not shared."""
    ahead: int
    """How many sections ahead of a block something is computed for it."""


class Surroundings(NamedTuple):
    """The surroundings of one section."""

    key: tuple[object, ...]
    """Equal where the allocator does the same, with devices called by the names below."""
    names: dict[int, int]
    """What the devices that take part are called: GPU 0, which computes for the host, 0, others 1 and up, the host."""
    needed: frozenset[int]
    """Sections that are enough for these surroundings when the others are left out."""


User = tuple[tuple[Hashable, int, int], ...]
"""A block and those for which it computes ahead, each with the devices of its weights and of its cache: what decides
which shared tensors are read, and where. Routed experts read none."""


def surroundings(kinds: Sequence[Kind], host: int, looks: Looks, *, offload: bool) -> list[Surroundings]:
    """Return the surroundings of sections, of which the first computes for no block.

    With `offload` the first GPU computes for the host.
    """
    ahead = looks.ahead + 1
    places = range(len(kinds))
    plain = [
        ((kind.structure, kind.experts != kind.block or kind.apart != kind.block), kind.block, kind.cache)
        for kind in kinds
    ]
    gpus = [frozenset[int](), *(gpus_of(kind[1:5], host, offload=offload) for kind in kinds[1:])]
    readers = [frozenset[int](), *(gpus_of(kind[1:3], host, offload=offload) for kind in kinds[1:])]
    users = [tuple(plain[place : place + ahead]) for place in places]
    sharing = [frozenset[int]().union(*readers[place : place + ahead]) for place in places]
    before, behind = first_before(users), [*first_behind(users), *[()] * looks.ahead]
    found = []
    for place in places:
        near = range(max(0, place - looks.reach), min(len(kinds), place + looks.reach + 1))
        here = frozenset[int]().union(*gpus[near.start : near.stop])
        names = names_of(here, host)
        earlier = {called(users[other], names): other for other in before[place] if here & sharing[other]}
        later = {called(users[other], names): other for other in reversed(behind[place + looks.ahead])}
        built = [first_built(kinds, chosen) for chosen in (before[place], behind[place + looks.ahead])]
        window = tuple([(*called([kind[:5]], names), kind.tensors) for kind in kinds[near.start : near.stop]])
        key = window, tuple(earlier), frozenset(later), *map(tuple, built)
        seen = chain(earlier.values(), later.values(), *(one.values() for one in built))
        ends = 0, 1, len(kinds) - 2, len(kinds) - 1
        needed = frozenset(chain(ends, near, *(places[one : one + ahead] for one in seen)))
        found.append(Surroundings(key, names, needed))
    return found


def gpus_of(devices: Sequence[int], host: int, *, offload: bool) -> frozenset[int]:
    """Return the GPUs that compute with weights on these devices."""
    if host not in devices:
        return frozenset(devices)
    return frozenset({*devices} - {host} | ({0} if offload and host else set()))


def names_of(gpus: frozenset[int], host: int) -> dict[int, int]:
    """Return what the devices are called that take part."""
    names = {gpu: name for name, gpu in enumerate(sorted(gpus - {0}), 1)}
    names[host] = HOST
    if 0 in gpus:
        names[0] = 0
    return names


def called(kinds: Iterable[tuple[Hashable, *tuple[int, ...]]], names: Mapping[int, int]) -> tuple[Hashable, ...]:
    """Return kinds with their devices called by other names."""
    name = names.get
    return tuple([(built, *[name(device, ELSEWHERE) for device in devices]) for built, *devices in kinds])


def first_built(kinds: Sequence[Kind], places: Iterable[int]) -> dict[Hashable, int]:
    """Return the structures at some places, in order, each with its first place."""
    found: dict[Hashable, int] = {}
    for place in places:
        found.setdefault(kinds[place].structure, place)
    return found


def first_before(kinds: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """For each place, list where each of the different things before it stands first."""
    found: list[tuple[int, ...]] = [()]
    seen: set[Hashable] = set()
    for place, kind in enumerate(kinds[:-1]):
        found.append(found[-1] if kind in seen else (*found[-1], place))
        seen.add(kind)
    return found


def first_behind(kinds: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """For each place, list where each of the different things behind it stands first, seen from there."""
    found: list[tuple[int, ...]] = [()]
    for place in range(len(kinds) - 1, 0, -1):
        found.append((place, *(other for other in found[-1] if kinds[other] != kinds[place])))
    return found[::-1]
