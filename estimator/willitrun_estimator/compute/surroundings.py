"""What decides what the allocator does during a block: the block, where its neighbours border on it, and what is held.

Blocks read what the block before handed on, and tensors that many blocks share (`shared.py`): a GPU takes a copy of
such where its first reader's split begins and gives it back after its last, and where the tensor itself lives it is
held until the last section has read or copied it. So the neighbours tell where a block's outermost operations are
computed, and what the others do with shared tensors tells what is there when it begins and what is still to be read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from willitrun_estimator.compute.kinds import NEXT, Kind, Layout, called, names_of
from willitrun_estimator.compute.shared import Shared, Uses
from willitrun_estimator.compute.showing import Edges

MOST_PARTS = 2048
"""Parts kept of one shape, told by the numbers of their GPUs."""


class Part(NamedTuple):
    """A section between its neighbours, wherever they stand."""

    key: int
    """Equal for those that are built, live and border on each other alike, with devices called by the names below."""
    names: dict[int, int]
    uses: Uses


class Place(NamedTuple):
    """A section in its surroundings."""

    key: Hashable
    """Equal where the allocator does the same, with devices called by the names below."""
    names: dict[int, int]
    """What the devices that take part are called: GPU 0 where it may compute for the host 0, others 1 and up."""


class Seen:
    """What is known of the blocks of one shape."""

    def __init__(self) -> None:
        self.shared = Shared()
        self._numbers: dict[tuple[int, Kind], int] = {}
        self._edges: dict[Hashable, Edges] = {}
        self._uses: dict[Hashable, tuple[int, Uses]] = {}
        self._parts: dict[Hashable, Part] = {}

    def __len__(self) -> int:
        """Return how much is kept."""
        return len(self._numbers) + len(self._edges) + len(self._uses) + len(self._parts)

    def clear(self) -> None:
        """Forget what sections do, but not what is shared."""
        for known in (self._numbers, self._edges, self._uses, self._parts):
            known.clear()

    def learn(self, layout: Layout, edges: Sequence[Edges | None], uses: Sequence[Uses]) -> bool:
        """Keep what the sections of a graph showed; False where their surroundings do not explain it."""
        for place, found in enumerate(edges):
            key, names = self._edge_key(layout, place)
            if found is None or not names.keys() >= {found.first, found.last}:
                return False
            named = found._replace(first=names[found.first], last=names[found.last])
            if self._edges.setdefault(key, named) != named:
                return False
        for place, (first, shown) in enumerate(zip(layout.firsts(), uses, strict=True)):
            key, names = self._part_key(layout, place, fresh=first is not None)
            renamed = shown.renamed(names)
            if renamed is None or self._uses.setdefault(key, (len(self._uses), renamed))[1] != renamed:
                return False
        return True

    def parts(self, layout: Layout) -> list[Part | None]:
        """Return the part of every section; None where it was not seen yet."""
        kinds, host, looks, regime = layout
        if len(self._parts) > MOST_PARTS:
            self._parts.clear()
            self._numbers.clear()
        numbers = [self._numbers.setdefault((host, kind), len(self._numbers)) for kind in kinds]
        reach, behind = looks.reach, looks.reach + looks.ahead + 1
        found = []
        for place, first in enumerate(layout.firsts()):
            fresh = first is not None
            before = min(reach, place)
            window = (regime, fresh, before, *numbers[place - before : place + behind])
            part = self._parts.get(window)
            if part is None:
                part = self._part(layout, place, fresh=fresh)
                if part is not None:
                    self._parts[window] = part
            found.append(part)
        return found

    def some_of(self, layout: Layout, missing: Iterable[int]) -> list[int]:
        """Choose sections that are likely to show, without the others, what some do.

        They are those with their neighbours, the first and the last that read on the same devices, and the first of
        every structure, so that inputs come in the same order. Where something is computed several sections ahead it
        might be still more if some were left out.
        """
        ahead, host = layout.looks.ahead, layout.host
        if ahead > 1:
            return [*range(1, len(layout.kinds) - 1)]
        chosen = {place for place, first in enumerate(layout.firsts()) if first is not None}
        chosen.update([place + further for place in chosen for further in range(1, ahead + 1)])
        readers: dict[int, dict[Hashable, list[int]]] = {}
        reading = [_readers(kind, part, host) for kind, part in zip(layout.kinds, self.parts(layout), strict=True)]
        for place, reads in enumerate(reading):
            for device, what in reads:
                readers.setdefault(device, {}).setdefault(what, []).append(place)
        for place in missing:
            chosen.update(layout.near(place))
            for device, _ in reading[place]:
                chosen.update([found[end] for found in readers[device].values() for end in (0, -1)])
        return sorted(place for place in chosen if 0 < place < len(layout.kinds) - 1)

    def _part(self, layout: Layout, place: int, *, fresh: bool) -> Part | None:
        key, names = self._part_key(layout, place, fresh=fresh)
        known = self._uses.get(key)
        if known is None:
            return None
        number, uses = known
        devices = {name: device for device, name in names.items()}
        return Part(number, names, uses.renamed(devices) or uses)

    def _edge_key(self, layout: Layout, place: int) -> tuple[Hashable, dict[int, int]]:
        """Return what the edges of a section depend on.

        That is the block, those for which it computes ahead, and whether it is the first, which reads something else.
        """
        kinds, host, looks, regime = layout
        own = kinds[place]
        following = [kind[:3] for kind in kinds[place + 1 : place + 1 + looks.ahead]]
        devices = [*own[1:5], *(device for kind in following for device in kind[1:])]
        names = names_of(devices, host, first=host in own[1:5])
        told = called(own[:5], names), own.tensors, *[called(kind, names) for kind in following]
        return (regime, place == 1, *told), names

    def _near(self, layout: Layout, place: int) -> list[Edges] | None:
        """Return the edges of a section and of those that it looks at; None where that is not known."""
        found = []
        for near in layout.near(place):
            key, names = self._edge_key(layout, near)
            known = self._edges.get(key)
            if known is None:
                return None
            devices = {name: device for device, name in names.items()}
            found.append(known._replace(first=devices[known.first], last=devices[known.last]))
        return found

    def _part_key(self, layout: Layout, place: int, *, fresh: bool) -> tuple[Hashable, dict[int, int]]:
        """Return what the part of a section in shared tensors depends on; None where that is not known."""
        kinds, host, looks, regime = layout
        edges = self._near(layout, place)
        if edges is None:
            return None, {}
        own, told = kinds[place], looks.told
        at = place - layout.near(place).start
        around: list[tuple[Hashable, ...]] = [
            (*kind[:told], edge.last) for kind, edge in zip(kinds[place - at : place], edges, strict=False)
        ]
        for kind, edge in zip(kinds[place + 1 :], edges[at + 1 :], strict=False):
            if looks != NEXT:
                around.append((*kind[:told], edge.first))
            elif edges[at].free and edges[at].last != host:
                # What is between two operations is computed where the first of them is, if that is a GPU.
                around.append((edge.asks,))
            else:
                around.append((edge.asks, edge.first))
        touched = [*own[1:5], *(device for kind in around for device in kind[1:] if isinstance(device, int))]
        names = names_of(touched, host, first=host in own[1:5])
        near = [called(kind, names) for kind in around]
        return (regime, fresh, at, called(own[:5], names), own.tensors, *near), names

    def places(self, layout: Layout, parts: Sequence[Part]) -> list[Place]:
        """Return the surroundings of sections: their parts in what is shared, and what others leave of it."""
        arriving = _arrivals(layout, parts, self.shared)
        homes = {kind.block for kind in layout.kinds}
        kept = gone = 0
        for part, entry in zip(parts, arriving, strict=True):
            kept |= part.uses.kept
            gone |= entry.touched
        behind = [0] * (layout.host + 1)
        """By device the copies that are read behind a section."""
        touched_behind = 0
        found = []
        for part, entry in zip(reversed(parts), reversed(arriving), strict=True):
            key, names, uses = part
            given = entry.touched & ~touched_behind & ~kept
            touched_behind |= entry.touched
            before = gone & ~touched_behind & ~kept
            devices = []
            for (device, bits, _), (copied, order, living, first) in zip(uses.copies, entry.devices, strict=True):
                after = behind[device]
                held = copied & (bits | after)
                behind[device] = after | bits
                devices.append(
                    (
                        order if held == copied else tuple([bit for bit in order if bit & held]),
                        after & (held | bits),
                        living & ~before,
                        first and (device in homes) + 1,
                    )
                )
            lived = [(device, entry.living[device] & ~before) for bit, device in entry.origins if bit & given]
            if lived:
                # Where a tensor of a block lives that is given back, something happens too.
                names = {**names}
                lived = [(names.setdefault(device, len(names)), living) for device, living in lived]
            found.append(Place((key, tuple(devices), tuple(lived), given), names))
        return found[::-1]


def _readers(kind: Kind, part: Part | None, host: int) -> list[tuple[int, Hashable]]:
    """Return the devices that read shared tensors in a section, and which, as far as is known."""
    if part is None:
        return [(device, kind.structure) for device in {kind.block, kind.cache, *({0} if host in kind[1:5] else ())}]
    return [(device, bits) for device, bits, _ in part.uses.copies if bits]


class Entry(NamedTuple):
    """What there is of shared tensors where a section begins."""

    devices: list[tuple[int, tuple[int, ...], int, bool]]
    """For each device that computes in it, the copies that came to it, those in order, what lives there, and whether
    nothing was computed there yet."""
    touched: int
    """Tensors that the section reads, copies or looks at where they live."""
    origins: tuple[tuple[int, int], ...]
    """Tensors of blocks and where they live."""
    living: tuple[int, ...]
    """Those of them that live on each device."""


def _arrivals(layout: Layout, parts: Sequence[Part], shared: Shared) -> list[Entry]:
    """Follow what comes to each device."""
    copied, living = [0] * (layout.host + 1), [0] * (layout.host + 1)
    order: list[tuple[int, ...]] = [()] * (layout.host + 1)
    origins: tuple[tuple[int, int], ...] = ()
    computed = 0
    found = []
    for _, _, uses in parts:
        touched = uses.direct
        devices = []
        for device, bits, asked in uses.copies:
            before = copied[device]
            devices.append((before, order[device], living[device], not computed >> device & 1))
            computed |= 1 << device
            new = bits & ~before
            if new:
                copied[device] = before | new
                order[device] += asked if new == bits else tuple([bit for bit in asked if bit & new])
                touched |= shared.rooted(new)
        found.append(Entry(devices, touched, origins, tuple(living)))
        for bit, device in uses.made:
            living[device] |= bit
            origins += ((bit, device),)
    return found
