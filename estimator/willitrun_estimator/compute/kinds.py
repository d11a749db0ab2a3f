"""Layouts as the planner sees them: kinds of blocks, where they live, and how far they look."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

HOST = -1
"""What the host is called among surroundings."""


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

    @property
    def told(self) -> int:
        """How much of a neighbour's kind tells: its structure, and where it lives if anything is computed ahead."""
        return 3 if self.ahead else 1


NEXT = Looks(1, 0)
"""Of blocks that look at the one before alone."""


class Layout(NamedTuple):
    """Sections of a graph: what stands before the blocks, the blocks, and what follows them."""

    kinds: Sequence[Kind]
    host: int
    looks: Looks
    regime: Hashable
    """What is so for the whole graph and changes what blocks do."""

    def near(self, place: int) -> range:
        """Return the sections that one looks at, itself among them."""
        return range(max(0, place - self.looks.reach), min(len(self.kinds), place + self.looks.reach + 1))

    def firsts(self) -> list[Hashable]:
        """Name the sections that are the first that are built as they are, None for others."""
        structures = [kind.structure for kind in self.kinds]
        width = self.looks.ahead + 1
        known: set[Hashable] = set()
        found: list[Hashable] = []
        for place in range(len(structures)):
            built = self.regime, *structures[place : place + width]
            found.append(None if built in known else built)
            known.add(built)
        return found


def names_of(devices: Iterable[int], host: int, *, first: bool) -> dict[int, int]:
    """Return what the devices are called that take part: with `first` GPU 0 is 0; other GPUs are 1 and up."""
    gpus = sorted({*devices} - {host})
    names = {host: HOST}
    if first and host:
        names[0] = 0
        gpus = [gpu for gpu in gpus if gpu]
    names.update((gpu, name) for name, gpu in enumerate(gpus, 1))
    return names


def called(kind: Iterable[Hashable], names: Mapping[int, int]) -> tuple[Hashable, ...]:
    """Return a kind, or the beginning of one, with its devices called by other names."""
    built, *devices = kind
    return built, *[names[device] for device in devices if isinstance(device, int)]
