"""Layouts that choose among single matrices of experts which have to stay in host memory, and cut blocks at borders.

`--n-cpu-moe` takes whole blocks from the front, and whole blocks leave up to one block free on every GPU. Here the
experts of one block may part at each border instead, as llama.cpp's `--fit` lets them (common/fit.cpp, step 4): what
does not fit on a GPU goes to the next one, or to the host. And mixes store some blocks in more bits than others: with
the heaviest on the host the same bytes are in fewer blocks, so that a token crosses to the host less often.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from willitrun_estimator.layout import Layouts
from willitrun_estimator.layout import Parts as Buffers
from willitrun_estimator.monotone import smallest
from willitrun_estimator.placement import Kind, Override, Placement

Parts = Sequence[tuple[str, int]]


def cut_layouts(layouts: Layouts, fixed_units: int | None = None) -> Iterator[Placement]:
    """Yield the layouts that leave fewest matrices of experts to the host; none where nothing has to leave."""
    units = layouts.most_units(layouts.experts_end) if fixed_units is None else fixed_units
    if not units or layouts.feasible(units, 0):
        return
    parts = layouts.needs.expert_parts
    front = list(range(layouts.units - units, len(parts)))
    heaviest = sorted(front, key=lambda block: -sum(size for _, size in parts[block]))
    for order in (front,) if heaviest == front else (front, heaviest):
        found = Cuts(layouts, parts, units, [block for block in order if parts[block]]).best()
        if found is not None and found.overrides:
            yield found


class Cuts:
    """Packs a number of units on GPUs tightly while experts leave for the host in a given order of blocks."""

    def __init__(self, layouts: Layouts, parts: Sequence[Parts], units: int, order: Sequence[int]) -> None:
        self.layouts, self.parts, self.units = layouts, parts, units
        self.front = layouts.units - units
        """Blocks on the host."""
        self.leaving = [(block, index) for block in order for index in range(len(parts[block]))]
        """Block and place of every matrix that may leave, what leaves first at the front."""
        self.bytes = list(accumulate((parts[block][index][1] for block, index in self.leaving), initial=0))
        """Of the first 0, 1, … n of them."""
        blocks = [block for block in order if block >= self.front]
        self.kind: Kind = "front" if blocks == sorted(blocks) else "scattered"

    def best(self) -> Placement | None:
        """Return the placement with fewest matrices on the host, None where even all do not help."""
        layouts = self.layouts
        found: dict[int, Placement | None] = {}

        def holds(count: int) -> bool:
            found[count] = self.packed(count)
            return found[count] is not None

        held = layouts.stack.gpu_bytes(self.front, self.units, 0)
        rooms, buffers = layouts.rooms(self.kind), self.buffers(1)
        gpus = len(rooms)
        own = buffers.only if gpus == 1 else buffers.first + buffers.last + (gpus - 2) * buffers.between
        guess = bisect_left(self.bytes, held - (sum(rooms) - own))
        count = smallest(0, len(self.leaving), holds, guess)
        return None if count is None else found[count]

    def buffers(self, on_host: int) -> Buffers:
        """Return the compute buffers with so many matrices on the host."""
        # Tensor overrides switch pipelines off, and with them the copies of every input.
        return self.layouts.needs.buffers(
            self.layouts.context_tokens, self.units, on_host, many=False, scattered=self.kind == "scattered"
        )

    def packed(self, count: int) -> Placement | None:
        """Return the placement with the first `count` matrices on the host, None where it does not fit."""
        stack, blocks = self.layouts.stack, self.layouts.blocks
        away: dict[int, int] = {}
        for block, index in self.leaving[:count]:
            away[block] = index + 1
        total = stack.lean[self.front]
        ends = [0] * self.front + [total]
        """Bytes on GPUs of everything before a block."""
        for block in range(self.front, blocks):
            total += stack.lean[block + 1] - stack.lean[block] + stack.experts[block + 1] - stack.experts[block]
            if block in away:
                total -= sum([size for _, size in self.parts[block][: away[block]]])
            ends.append(total)
        ends.append(total + stack.head_bytes)
        rooms = self.layouts.rooms(self.kind if count else self.layouts.kind(self.units, 0))
        packing = Packing(self.parts, ends, frozenset(away), rooms, self.buffers(count))
        if not packing.fill(0, self.front, 0):
            return None
        whole = {block for block, gone in away.items() if gone == len(self.parts[block])}
        lead = self.front
        while lead < blocks and (lead in whole or not self.parts[lead]):
            lead += 1
        switch = lead if any(block < lead for block in whole) else 0
        apart = [leaving(block, self.parts[block][:gone], None) for block, gone in away.items() if block >= switch]
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
        whole = self.ends[block + 1] - self.ends[block]
        for count in range(1, len(self.parts[block]) + 1):
            one = leaving(block, self.parts[block][:count], device)
            if whole - one.bytes <= room_bytes:
                return one
        return None


def leaving(block: int, parts: Parts, device: int | None) -> Override:
    """Return the override that puts some matrices of a block elsewhere."""
    return Override(
        block=block,
        tensors=tuple([name for name, _ in parts]),
        device=device,
        bytes=sum([size for _, size in parts]),
    )
