"""Results kept for the latest values they were asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

MOST = 512

One = TypeVar("One")
Made = TypeVar("Made")


class Latest(Generic[One, Made]):
    """A function of immutable values that keeps its latest results.

    A value is known by identity: to hash a model or a device takes longer than to look it up.
    """

    def __init__(self, make: Callable[[One], Made], most: int = MOST) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[int, tuple[One, Made]] = OrderedDict()

    def __call__(self, one: One) -> Made:
        """Return what is made of a value. Raises what making it raises."""
        held = self._kept.get(id(one))
        if held is not None and held[0] is one:
            return held[1]
        made = self._make(one)
        self._kept[id(one)] = one, made
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return made
