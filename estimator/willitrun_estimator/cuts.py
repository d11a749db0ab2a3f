"""Layouts that choose among single matrices of experts which have to stay in host memory, and cut blocks at borders.

`--n-cpu-moe` takes whole blocks from the front, and whole blocks leave up to one block free on every GPU. Here the
experts of one block may part at each border instead, as llama.cpp's `--fit` lets them (common/fit.cpp, step 4): what
does not fit on a GPU goes to the next one, or to the host. And mixes store some blocks in more bits than others: with
the heaviest on the host the same bytes are in fewer blocks, so that a token crosses to the host less often.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from willitrun_estimator.latest import Latest
from willitrun_estimator.layout import Layouts
from willitrun_estimator.monotone import smallest
from willitrun_estimator.needs import Parts as Buffers
from willitrun_estimator.placement import Kind, Override, Placement

Parts = Sequence[tuple[str, int]]

MOST_ORDERS = 64
"""Models in a quantization whose orders are kept."""


def cut_layouts(layouts: Layouts, fixed_units: int | None = None) -> Iterator[Placement]:
    """Yield the layouts that leave fewest matrices of experts to the host; none where nothing has to leave."""
    units = layouts.most_units(layouts.experts_end) if fixed_units is None else fixed_units
    if not units or layouts.feasible(units, 0):
        return
    for order in orders_of(layouts.needs.expert_parts).from_block(layouts.units - units):
        found = Cuts(layouts, units, order).best()
        if found is not None and found.overrides:
            yield found


class Order:
    """An order in which blocks leave their experts to the host, matrix by matrix, as sums."""

    def __init__(self, parts: Sequence[Parts], blocks: Sequence[int]) -> None:
        self.parts = parts
        self.blocks = [block for block in blocks if parts[block]]
        self.counts = list(accumulate([len(parts[block]) for block in self.blocks], initial=0))
        """Matrices of the first 0, 1, … n blocks."""
        self.bytes = list(accumulate([size for block in self.blocks for _, size in parts[block]], initial=0))
        """Of the first 0, 1, … n matrices."""
        self.kind: Kind = "front" if self.blocks == sorted(self.blocks) else "scattered"
        self._whole: dict[int, Override] = {}

    def at(self, count: int) -> tuple[int, int]:
        """Return how many blocks are wholly among the first matrices, and how many of the next one's."""
        full = bisect_right(self.counts, count) - 1
        return full, count - self.counts[full]

    def whole(self, block: int) -> Override:
        """Return the override that puts all experts of a block on the host."""
        known = self._whole.get(block)
        if known is None:
            known = self._whole[block] = leaving(block, self.parts[block], None)
        return known


class Orders:
    """The orders worth trying of a model in a quantization: the blocks as they come, and the heaviest first."""

    def __init__(self, parts: Sequence[Parts]) -> None:
        self.parts = parts
        self._known: dict[int, tuple[Order, ...]] = {}

    def from_block(self, first: int) -> tuple[Order, ...]:
        """Return the orders of the blocks from one on."""
        known = self._known.get(first)
        if known is None:
            front = list(range(first, len(self.parts)))
            heaviest = sorted(front, key=lambda block: -sum([size for _, size in self.parts[block]]))
            orders = (front,) if heaviest == front else (front, heaviest)
            known = self._known[first] = tuple([Order(self.parts, order) for order in orders])
        return known


orders_of = Latest(Orders, MOST_ORDERS)
"""The orders of matrices that are the same objects."""


class Cuts:
    """Packs a number of units on GPUs tightly while experts leave for the host in a given order of blocks."""

    def __init__(self, layouts: Layouts, units: int, order: Order) -> None:
        self.layouts, self.units, self.order = layouts, units, order
        self.front = layouts.units - units
        """Blocks on the host."""
        stack = layouts.stack
        lean, whole = stack.lean[self.front :], stack.whole[self.front :]
        self.lean = list(map(operator.sub, lean[1:], lean))
        """Of the blocks on GPUs without their experts."""
        self.sizes = list(map(operator.sub, whole[1:], whole))
        self.held = stack.gpu_bytes(self.front, units, 0)

    def best(self) -> Placement | None:
        """Return the placement with fewest matrices on the host, None where even all do not help."""
        found: dict[int, Packing | None] = {}

        def holds(count: int) -> bool:
            found[count] = self.packed(count)
            return found[count] is not None

        rooms, buffers, order = self.layouts.rooms(self.order.kind), self.buffers(1), self.order
        gpus = len(rooms)
        own = buffers.only if gpus == 1 else buffers.first + buffers.last + (gpus - 2) * buffers.between
        guess = bisect_left(order.bytes, self.held - (sum(rooms) - own))
        count = smallest(0, order.counts[-1], holds, guess)
        packing = None if count is None else found[count]
        return None if count is None or packing is None else self.placed(count, packing)

    def buffers(self, on_host: int) -> Buffers:
        """Return the compute buffers with so many matrices on the host."""
        # Tensor overrides switch pipelines off, and with them the copies of every input.
        return self.layouts.needs.buffers(
            self.layouts.context_tokens, self.units, on_host, many=False, scattered=self.order.kind == "scattered"
        )

    def packed(self, count: int) -> Packing | None:
        """Return the GPUs filled while the first `count` matrices are on the host, None where they do not hold it."""
        order, front = self.order, self.front
        rooms = self.layouts.rooms(order.kind if count else self.layouts.kind(self.units, 0))
        full, rest = order.at(count)
        sizes = self.sizes.copy()
        for block in order.blocks[:full]:
            sizes[block - front] = self.lean[block - front]
        away = order.blocks[:full]
        if rest:
            block = order.blocks[full]
            sizes[block - front] -= order.bytes[count] - order.bytes[count - rest]
            away.append(block)
        ends = [0] * front
        """Bytes on GPUs of everything before a block."""
        ends += accumulate(sizes, initial=0)
        ends.append(ends[-1] + self.layouts.stack.head_bytes)
        packing = Packing(order.parts, ends, frozenset(away), rooms, self.buffers(count))
        return packing if packing.fill(0, front, 0) else None

    def placed(self, count: int, packing: Packing) -> Placement:
        """Return the placement: whole blocks at the front by their number, all others by name."""
        order, blocks = self.order, self.layouts.blocks
        full, rest = order.at(count)
        whole = order.blocks[:full]
        away, lead = frozenset(whole), self.front
        while lead < blocks and (lead in away or not order.parts[lead]):
            lead += 1
        switch = lead if min(whole, default=lead) < lead else 0
        apart = [order.whole(block) for block in whole if block >= switch]
        if rest:
            block = order.blocks[full]
            apart.append(leaving(block, order.parts[block][:rest], None))
        return Placement(
            gpu_layers=self.units,
            split=tuple(packing.split),
            cpu_moe_layers=switch,
            overrides=tuple(sorted([*apart, *packing.cuts], key=lambda one: one.block)),
        )


class Packing:
    """Fills GPU after GPU from the front; a block that does not fit leaves as little as needed to the next GPU.

    The order of the blocks on the GPUs is given, so that taking as much as fits leaves least to the others.
    """

    def __init__(
        self, parts: Sequence[Parts], ends: Sequence[int], away: frozenset[int], rooms: Sequence[int], buffers: Buffers
    ) -> None:
        self.parts, self.ends, self.away, self.rooms, self.buffers = parts, ends, away, rooms, buffers
        self.split = [0] * len(rooms)
        self.cuts: list[Override] = []

    def fill(self, device: int, at: int, carried: int) -> bool:
        """Give the units from `at` on to the GPUs from `device` on, the first of which has `carried` bytes already."""
        end = len(self.ends) - 1
        started = any(self.split[:device])
        room = self.rooms[device] - carried
        if self.ends[end] - self.ends[at] + (self.buffers.last if started else self.buffers.only) <= room:
            self.split[device] = end - at
            return True
        if device == len(self.split) - 1:
            return False
        room -= self.buffers.between if started else self.buffers.first
        # The head is no block and some later GPU has it.
        until = max(at, min(end - 1, bisect_right(self.ends, self.ends[at] + room, at) - 1))
        cut = self.cut(until, room - (self.ends[until] - self.ends[at]), device + 1)
        if cut is not None:
            self.split[device] = until + 1 - at
            self.cuts.append(cut)
            if self.fill(device + 1, until + 1, cut.bytes) and self.split[device + 1]:
                return True
            self.cuts.pop()
            self.split[device + 1 :] = [0] * (len(self.split) - device - 1)
        self.split[device] = until - at
        return not (carried and until == at) and self.fill(device + 1, until, 0)

    def cut(self, block: int, room_bytes: int, device: int) -> Override | None:
        """Return what another GPU has to take of a block's experts for the block to fit; None where nothing helps."""
        if block >= len(self.parts) or block in self.away:
            return None
        left = self.ends[block + 1] - self.ends[block]
        for count, (_, size) in enumerate(self.parts[block], 1):
            left -= size
            if left <= room_bytes:
                return leaving(block, self.parts[block][:count], device)
        return None


def leaving(block: int, parts: Parts, device: int | None) -> Override:
    """Return the override that puts some matrices of a block elsewhere."""
    return Override(
        block=block,
        tensors=tuple([name for name, _ in parts]),
        device=device,
        bytes=sum([size for _, size in parts]),
    )
