"""Laying one model in one quantization over given GPUs: which blocks where, under every device's budget.

The blocks a GPU gets are contiguous and llama.cpp fills from the back, so a layout is two numbers (units on GPUs,
blocks with experts in host memory) and a split of the units. Bytes grow with each of them, so the extremes under the
budgets are found by looking beside a guess from the sums; decode time is linear in the numbers of blocks, so an
optimum lies at an extreme.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from willitrun_estimator.monotone import largest, smallest
from willitrun_estimator.needs import Needs
from willitrun_estimator.placement import Kind, Placement

BORDER_STEPS = 2
"""Points of the border tried beside a corner: time is linear along it, so only rounding can make one of them better."""
ROOM_STEP = 1 << 24
"""Bytes of room by which splits are told apart."""

Laid = tuple[Placement, tuple[int, ...]]
"""A layout and what each GPU and, last, the host holds of it."""


class Layouts:
    """All layouts worth trying of one model on one ordered set of GPUs with given budgets and context.

    They keep what they have worked out, as long as what is known of memory stays the same.
    """

    def __init__(
        self,
        needs: Needs,
        budgets: Sequence[int],
        context_tokens: int,
        *,
        experts_end: int,
        host_short: Callable[[Sequence[int]], int],
        alike: bool,
    ) -> None:
        self.needs = needs
        self.host_short = host_short
        self.budgets = tuple([max(0, budget) for budget in budgets])
        self.alike = alike
        """The GPUs are equally fast, so that a split only has to fit."""
        self.context_tokens = context_tokens
        self.stack = needs.stack(context_tokens)
        self.blocks = self.stack.blocks
        self.units = self.blocks + 1
        self.experts_end = experts_end
        """One past the last block with routed experts; 0 for a dense model."""
        self._rooms: dict[Kind, list[int]] = {}
        self._feasible: dict[tuple[int, int], bool] = {}
        self._even: dict[tuple[int, int], tuple[int, ...] | None] = {}
        self._spare: dict[tuple[int, int, tuple[int, ...]], int] = {}
        self._laid: dict[Hashable, list[Laid]] = {}

    def laid(self, key: Hashable, make: Callable[[], Iterable[Placement]]) -> list[Laid]:
        """Return some layouts with their bytes, made where they are not there."""
        known = self._laid.get(key)
        if known is None:
            needs, context_tokens = self.needs, self.context_tokens
            known = self._laid[key] = [(one, tuple(needs.per_device_bytes(one, context_tokens))) for one in make()]
        return known

    def rooms(self, kind: Kind) -> list[int]:
        """Return what each GPU has for a span and a compute buffer."""
        known = self._rooms.get(kind)
        if known is None:
            own = self.needs.own(kind)
            known = self._rooms[kind] = [budget - held for budget, held in zip(self.budgets, own, strict=False)]
        return known

    def kind(self, units: int, moved: int) -> Kind:
        """Return the kind of layouts with so many units on GPUs and so many blocks' experts on the host."""
        return "whole" if units == self.units and not moved else "front"

    def fits(self, units: int, moved: int, split: tuple[int, ...]) -> bool:
        """Tell whether every GPU stays within its budget (the host is judged apart)."""
        return self.spare_bytes(units, moved, split) >= 0

    def spare_bytes(self, units: int, moved: int, split: tuple[int, ...]) -> int:
        """Return what stays free on the fullest GPU of those that take part; below 0 what it lacks."""
        key = units, moved, split
        known = self._spare.get(key)
        if known is None:
            known = self._spare[key] = self._least_spare(units, moved, split)
        return known

    def _least_spare(self, units: int, moved: int, split: tuple[int, ...]) -> int:
        taking = [device for device, count in enumerate(split) if count]
        if not taking:
            return 0
        last = taking[-1]
        buffers = self.needs.buffers(self.context_tokens, units, moved, many=len(taking) > 1)
        stack, rooms, first = self.stack, self.rooms(self.kind(units, moved)), self.units - units
        if len(taking) == 1:
            return rooms[last] - stack.gpu_bytes(first, units, moved) - buffers.only
        buffer = buffers.first
        least = sum(rooms)
        for device in taking:
            if device == last:
                buffer = buffers.last
            count = split[device]
            least = min(least, rooms[device] - stack.gpu_bytes(first, count, moved) - buffer)
            first += count
            buffer = buffers.between
        return least

    def host_holds(self, units: int, moved: int) -> bool:
        """Tell whether the host has room for what these numbers leave to it; the split does not change that."""
        split = (units,) + (0,) * (len(self.budgets) - 1)
        placement = Placement(gpu_layers=units, split=split, cpu_moe_layers=moved)
        return self.host_short(self.needs.per_device_bytes(placement, self.context_tokens)) <= 0

    def proportional(self, units: int) -> tuple[int, ...]:
        """Share the units by budget: equal cards get equal shares and equal headroom."""
        if len(self.budgets) == 1:
            return (units,)
        total = sum(self.budgets) or 1
        split, cut, share = [], 0, 0.0
        for budget in self.budgets[:-1]:
            share += units * budget / total
            after = round(share)
            split.append(after - cut)
            cut = after
        split.append(units - cut)
        return tuple(split)

    def level(self, units: int, moved: int) -> tuple[int, ...] | None:
        """Return the split that leaves most room on its fullest GPU, None where the units do not fit.

        Filling up to a line below every budget finds it: the line is bisected.
        """
        best = self.even(units, moved) or self.filled(units, moved, from_back=False)
        if best is None:
            return None
        low = self.spare_bytes(units, moved, best)
        high = 1 + max(low, self._spans_room(moved) - self.stack.gpu_bytes(self.units - units, units, moved))
        while high - low > ROOM_STEP:
            middle = (low + high) // 2
            split = self.filled(units, moved, from_back=False, above_bytes=middle)
            spare = -1 if split is None else self.spare_bytes(units, moved, split)
            if split is None or spare < middle:
                high = middle
            else:
                best, low = split, spare
        return best

    def filled(self, units: int, moved: int, *, from_back: bool, above_bytes: int = 0) -> tuple[int, ...] | None:
        """Fill GPU after GPU to its budget, from the first or from the last; None when the units do not fit.

        `above_bytes` of every budget stay free where the last one to be filled allows it.
        """
        count, rooms = len(self.budgets), self.rooms(self.kind(units, moved))
        split = [0] * count
        left = units
        *others, final = range(count - 1, -1, -1) if from_back else range(count)
        for device in others:
            room = rooms[device] - above_bytes
            take = self._take(room, units, left, moved, started=left < units, from_back=from_back)
            split[device] = take
            left -= take
        split[final] = left
        whole = tuple(split)
        return whole if self.fits(units, moved, whole) else None

    def _take(self, room: int, units: int, left: int, moved: int, *, started: bool, from_back: bool) -> int:
        """Return how many units of those left a GPU with `room` takes when others get the rest.

        `started` where some have theirs already.

        From the front the units begin after those that were given out, from the back they end before them.
        """
        stack = self.stack
        begin = self.units - units
        several = self.needs.buffers(self.context_tokens, units, moved, many=True)
        alone = self.needs.buffers(self.context_tokens, units, moved, many=False)
        after = begin + left if from_back else begin + units - left

        def holds(take: int) -> bool:
            if not take:
                return True
            rest = take < left
            if not rest and not started:
                buffer = alone.only
            elif from_back:
                buffer = several.between if rest and started else several.last if rest else several.first
            else:
                buffer = several.between if rest and started else several.first if rest else several.last
            return stack.gpu_bytes(after - take if from_back else after, take, moved) + buffer <= room

        usual = room - several.between
        guess = stack.down_to(after, usual, moved) if from_back else stack.up_to(after, usual, moved)
        return largest(0, left, holds, guess) or 0

    def even(self, units: int, moved: int) -> tuple[int, ...] | None:
        """Return the split by budget, None where it does not fit."""
        key = units, moved
        if key not in self._even:
            split = self.proportional(units)
            self._even[key] = split if self.fits(units, moved, split) else None
        return self._even[key]

    def splits(self, units: int, cpu_moe: int) -> list[Placement]:
        """Return the feasible splits worth trying: even by budget, front-loaded, back-loaded."""
        moved = min(cpu_moe, self.blocks)
        found = [self.even(units, moved)]
        if len(self.budgets) > 1 and units and not (self.alike and found[0] is not None):
            found += [self.filled(units, moved, from_back=back) for back in (False, True)]
        return [
            Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)
            for split in dict.fromkeys(found)
            if split is not None
        ]

    def feasible(self, units: int, moved: int) -> bool:
        """Tell whether some split of these numbers fits."""
        key = units, moved
        known = self._feasible.get(key)
        if known is None:
            held = self.stack.gpu_bytes(self.units - units, units, moved)
            known = self._feasible[key] = held <= self._capacity(units, moved) and (
                self.even(units, moved) is not None
                or (
                    len(self.budgets) > 1
                    and units > 0
                    and any(self.filled(units, moved, from_back=back) is not None for back in (False, True))
                )
            )
        return known

    def _capacity(self, units: int, moved: int) -> int:
        """Return bytes that no spans of so many units exceed."""
        several = self.needs.buffers(self.context_tokens, units, moved, many=True)
        alone = self.needs.buffers(self.context_tokens, units, moved, many=False)
        least = min(several.first, several.between, several.last)
        rooms = self.rooms(self.kind(units, moved))
        return max(sum([room - least for room in rooms if room > least]), max(rooms, default=0) - alone.only, 0)

    def candidates(
        self, units: int | None, cpu_moe: int | None, *, gpu_first: bool = False, paging: bool = False
    ) -> list[Placement]:
        """Return the corners of what fits under the budgets; a given number stays fixed.

        Decode time is linear in the blocks on each device, so the best layout is a corner: everything on the GPUs if
        that fits; else as many units as fit with no, with some and with all experts in host memory; and, because a
        host can be the faster device, the same with as little as possible on the GPUs. `gpu_first` says that it is not.
        """
        if gpu_first and cpu_moe is None:
            corners = list(self._gpu_corners() if units is None else self._least_moved(units, paging=paging))
        else:
            corners = list(self._corners(units, cpu_moe))
        found: list[Placement] = []
        for corner in dict.fromkeys(corners):
            found += [one for one in self.splits(*corner) if one not in found]
        return found

    def _gpu_corners(self) -> Iterator[tuple[int, int]]:
        """Yield the corners where every unit that leaves a GPU costs time."""
        if self.feasible(self.units, 0):
            yield self.units, 0
            return
        for share in (0, self.experts_end) if self.experts_end else (0,):
            most = self.most_units(share)
            yield most, share
            if share:
                least = self.least_share(most)
                if least is not None:
                    yield most, least
        if self.experts_end:
            yield from self._border()

    def _least_moved(self, units: int, *, paging: bool) -> Iterator[tuple[int, int]]:
        """Yield so many units with as few experts in host memory as can be; every further one costs time.

        Plans that read from disk are not searched again when an exact look finds the fewest too few: all, then.
        """
        least = 0 if self.feasible(units, 0) else self.least_share(units)
        if least is not None:
            yield units, least
            if least and paging:
                yield units, self.experts_end

    def _corners(self, units: int | None, cpu_moe: int | None) -> Iterator[tuple[int, int]]:
        """Yield (units, blocks with experts in host memory) worth trying; some may not fit."""
        counts = {0, 1} if units is None else {units}
        shares = {0, self.experts_end} if cpu_moe is None else {cpu_moe}
        for share in shares:
            most = self.most_units(share) if units is None else units
            yield most, share
            if units is None:
                yield self.fewest_units(share, most), share
            if cpu_moe is None and self.experts_end:
                yield from ((most, n) for n in self.share_range(most))
        for count in counts:
            for share in shares:
                yield count, share
        if units is None and cpu_moe is None and self.experts_end and not self.feasible(self.units, 0):
            yield from self._border()

    def most_units(self, cpu_moe: int) -> int:
        """Return the most units the GPUs hold."""
        moved = min(cpu_moe, self.blocks)
        guess = self.stack.down_to(self.units, self._spans_room(moved), moved)
        return largest(0, self.units, lambda n: self.feasible(n, moved), guess) or 0

    def _spans_room(self, moved: int) -> int:
        """Return about what all GPUs together have for spans when something stays in host memory."""
        buffers = self.needs.buffers(self.context_tokens, 1, moved, many=len(self.budgets) > 1)
        room = sum(self.rooms("front"))
        if len(self.budgets) == 1:
            return room - buffers.only
        between = (len(self.budgets) - 2) * buffers.between
        return room - buffers.first - between - buffers.last

    def fewest_units(self, cpu_moe: int, most: int) -> int:
        """Return the fewest units that must leave the host for its memory to suffice, at most `most`."""
        fewest = smallest(0, most, lambda n: self.host_holds(n, cpu_moe), 0)
        return most if fewest is None else fewest

    def least_share(self, units: int) -> int | None:
        """Return the fewest blocks whose experts must be in host memory for so many units to fit."""
        guess = self.stack.least_moved(units, self._spans_room(1))
        return smallest(0, self.experts_end, lambda n: self.feasible(units, n), guess)

    def share_range(self, units: int) -> Iterator[int]:
        """Yield the fewest blocks whose experts must be in host memory, and the most that it holds."""
        least = self.least_share(units)
        room = -self.host_short((0,) * (len(self.budgets) + 1))
        guess = self.stack.most_moved(units, room)
        most = largest(0, self.experts_end, lambda n: self.host_holds(units, n), guess)
        yield from (n for n in (least, most) if n is not None)

    def _border(self) -> Iterator[tuple[int, int]]:
        """Walk a little along the border of what fits: fewer units on the GPUs for fewer experts in host memory.

        Blocks are whole, so a point beside a corner can be a little better than the corner itself.
        """
        most = self.most_units(self.experts_end)
        if not most:
            return
        least = self.least_share(most)
        share = self.experts_end if least is None else least
        count = most
        for fewer in range(share - 1, max(-1, share - 1 - BORDER_STEPS), -1):
            # Below that many units the flag adds nothing to the blocks that are in host memory anyway.
            below = self.most_below(count, fewer)
            if below is None:
                return
            count = below
            yield count, fewer

    def most_below(self, count: int, cpu_moe: int) -> int | None:
        """Return the most units up to a count that fit with so many blocks' experts in host memory."""
        return largest(self.units - cpu_moe, count, lambda n: self.feasible(n, cpu_moe), count - 1)
