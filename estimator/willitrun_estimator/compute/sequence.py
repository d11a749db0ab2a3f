"""Shortening a sequence of blocks without losing a neighbourhood.

The graph allocator settles after a block and its successor have been seen a few times: long runs and periods say
nothing new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

SEEN_ENOUGH = 3


def representative(kinds: Sequence[Hashable]) -> tuple[int, ...]:
    """Indexes of the blocks to keep, in order: the first, the last, and every succession of two kinds often enough."""
    count = len(kinds)
    keep: list[int] = []
    seen: Counter[tuple[Hashable, Hashable]] = Counter()
    position = 0
    while position < count:
        keep.append(position)
        following = position + 1
        target = following
        while target < count - 1 and seen[kinds[target - 1], kinds[target]] >= SEEN_ENOUGH:
            target += 1
            if kinds[target - 1] == kinds[position]:
                following = target
        if following < count:
            seen[kinds[position], kinds[following]] += 1
        position = following
    return tuple(keep)
