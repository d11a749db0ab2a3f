"""A model's blocks as sums of bytes, front to back, for one quantization, cache and context.

Any span of blocks costs two look-ups, and how many blocks fit into so many bytes is a bisection of a sorted list.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property

from willitrun_estimator.footprint import LOADED_TWICE
from willitrun_estimator.weights import WeightProfile


class Stack:
    """Bytes of the first 0, 1, … n blocks. Unit n is the output head.

    The first `moved` blocks leave their experts to the host.
    """

    def __init__(
        self,
        *,
        lean: Sequence[int],
        experts: Sequence[int],
        head_bytes: int,
        host: Sequence[int],
        host_bytes: int,
        host_head_bytes: int,
    ) -> None:
        self.blocks = len(lean) - 1
        self.lean = lean
        """On a GPU: resident weights, cache and state, without routed experts."""
        self.experts = experts
        self.head_bytes = head_bytes
        self.host = host
        """The same as `lean` in host memory, where no back end pads caches."""
        self.host_bytes = host_bytes
        """What is in host memory whatever the layout: token tables."""
        self.host_head_bytes = host_head_bytes
        """What the head adds to the host where no GPU has it."""

    @classmethod
    def of(cls, weights: WeightProfile, held: Sequence[int], paddings: Sequence[int]) -> Stack:
        """Add weights and caches; `paddings` is () where caches are not padded."""
        spec = weights.spec
        host = list(map(operator.add, weights.cumulative_resident_bytes, held))
        shared = spec.tied_embeddings and spec.architecture not in LOADED_TWICE
        return cls(
            lean=list(map(operator.add, host, paddings)) if paddings else host,
            experts=weights.cumulative_expert_bytes,
            head_bytes=weights.output_bytes,
            host=host,
            host_bytes=weights.embedding_bytes + weights.host_extra_bytes,
            host_head_bytes=weights.output_bytes - (weights.embedding_bytes if shared else 0),
        )

    @cached_property
    def whole(self) -> Sequence[int]:
        """On a GPU with all experts."""
        return list(map(operator.add, self.lean, self.experts))

    @property
    def all_bytes(self) -> int:
        """Everything that can be on GPUs."""
        return self.lean[-1] + self.experts[-1] + self.head_bytes

    def gpu_bytes(self, first: int, count: int, moved: int) -> int:
        """Return what a GPU holds of `count` units from `first` on."""
        blocks, end = self.blocks, first + count
        total = 0
        if end > blocks:
            if first > blocks:
                return 0
            total, end = self.head_bytes, blocks
        total += self.lean[end] - self.lean[first]
        if end > moved:
            experts = self.experts
            total += experts[end] - experts[max(moved, first)]
        return total

    def host_use(self, units: int, moved: int) -> int:
        """Return what the host holds when so many units are on GPUs."""
        first = self.blocks + 1 - units
        if first > self.blocks:
            return self.host_bytes + self.host_head_bytes + self.host[-1] + self.experts[-1]
        return self.host_bytes + self.host[first] + self.experts[max(first, moved)]

    def up_to(self, first: int, room_bytes: int, moved: int) -> int:
        """Return about how many units from `first` on take no more than so many bytes."""
        blocks = self.blocks
        if first >= blocks:
            return int(first == blocks and self.head_bytes <= room_bytes)
        if self.gpu_bytes(first, blocks + 1 - first, moved) <= room_bytes:
            return blocks + 1 - first
        limit = room_bytes + self.lean[first] + self.experts[max(first, moved)]
        if moved <= first:
            return max(0, bisect_right(self.whole, limit, first) - 1 - first)
        end = bisect_right(self.lean, limit - self.experts[moved], first, moved + 1) - 1
        if end == moved:
            end = bisect_right(self.whole, limit, moved) - 1
        return max(0, end - first)

    def down_to(self, end: int, room_bytes: int, moved: int) -> int:
        """Return about how many units before `end` take no more than so many bytes."""
        blocks = self.blocks
        top = min(end, blocks)
        if end > blocks:
            room_bytes -= self.head_bytes
            if room_bytes < 0:
                return 0
        least = self.lean[top] + self.experts[max(top, moved)] - room_bytes
        if moved < top:
            first = bisect_left(self.whole, least, moved, top)
            if first > moved:
                return end - first
        first = bisect_left(self.lean, least - self.experts[moved], 0, min(moved, top))
        return end - first

    def least_moved(self, units: int, room_bytes: int) -> int:
        """Return about how many blocks must leave their experts to the host for so many units to fit."""
        first = max(0, self.blocks + 1 - units)
        held = self.lean[-1] - self.lean[min(first, self.blocks)] + self.experts[-1] + self.head_bytes
        return bisect_left(self.experts, held - room_bytes)

    def most_moved(self, units: int, room_bytes: int) -> int:
        """Return about how many blocks may leave their experts to a host that has so many bytes."""
        first = min(self.blocks, self.blocks + 1 - units)
        return bisect_right(self.experts, room_bytes - self.host_use(units, 0) + self.experts[first]) - 1
