"""Laying one model in one quantization over given GPUs: which blocks where, under every device's budget.

The blocks a GPU gets are contiguous and llama.cpp fills from the back, so a layout is two numbers (units on GPUs,
blocks with experts in host memory) and a split of the units. Bytes grow with each of them, so the extremes under the
budgets are found by bisection; decode time is linear in the numbers of blocks, so an optimum lies at an extreme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from willitrun_estimator.placement import Placement

BORDER_STEPS = 2
"""Points of the border tried beside a corner: time is linear along it, so only rounding can make one of them better."""


class Needs(Protocol):
    """What a layout needs: bytes per GPU, in order, then the host's."""

    def per_device_bytes(self, placement: Placement, context_tokens: int, /) -> Sequence[int]:
        """Return bytes per GPU and, last, of the host."""
        ...


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """Return the largest n in low..high for which the monotone test holds (true first), None if it never does."""
    if high < low or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def smallest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """Return the smallest n in low..high for which the monotone test holds (false first), None if it never does."""
    if high < low or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


class Layouts:
    """All layouts worth trying of one model on one ordered set of GPUs with given budgets and context."""

    def __init__(
        self,
        needs: Needs,
        budgets: Sequence[int],
        context_tokens: int,
        *,
        blocks: int,
        experts_end: int,
        host_short: Callable[[Sequence[int]], int],
        alike: bool,
    ) -> None:
        self.needs = needs
        self.host_short = host_short
        self.budgets = tuple(max(0, budget) for budget in budgets)
        self.alike = alike
        """The GPUs are equally fast, so that a split only has to fit."""
        self._even: dict[tuple[int, int], Placement | None] = {}
        self.context_tokens = context_tokens
        self.blocks = blocks
        self.units = blocks + 1
        self.experts_end = experts_end
        """One past the last block with routed experts; 0 for a dense model."""

    def fits(self, placement: Placement) -> bool:
        """Tell whether every GPU stays within its budget (the host is judged apart)."""
        used = self.needs.per_device_bytes(placement, self.context_tokens)
        return all(use <= budget for use, budget in zip(used, self.budgets, strict=False))

    def host_holds(self, units: int, cpu_moe: int) -> bool:
        """Tell whether the host has room for what these numbers leave to it; the split does not change that."""
        split = (units,) + (0,) * (len(self.budgets) - 1)
        placement = Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)
        return self.host_short(self.needs.per_device_bytes(placement, self.context_tokens)) <= 0

    def proportional(self, units: int, cpu_moe: int) -> Placement:
        """Share the units by budget: equal cards get equal shares and equal headroom."""
        total = sum(self.budgets) or 1
        cuts, share = [], 0.0
        for budget in self.budgets:
            share += units * budget / total
            cuts.append(round(share))
        cuts[-1] = units
        split = tuple(after - before for before, after in zip((0, *cuts), cuts, strict=False))
        return Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)

    def filled(self, units: int, cpu_moe: int, *, from_back: bool) -> Placement | None:
        """Fill GPU after GPU to its budget, from the first or from the last; None when the units do not fit."""
        count = len(self.budgets)
        split = [0] * count
        left = units
        order = range(count - 1, -1, -1) if from_back else range(count)
        for turn, device in enumerate(order):
            if turn == count - 1:
                split[device] = left
                break

            def holds(take: int, device: int = device, left: int = left) -> bool:
                trial = list(split)
                trial[device] = take
                rest = left - take
                trial[0 if from_back else count - 1] += rest
                used = self.needs.per_device_bytes(
                    Placement(gpu_layers=units, split=tuple(trial), cpu_moe_layers=cpu_moe),
                    self.context_tokens,
                )
                return used[device] <= self.budgets[device]

            take = largest(0, left, holds) or 0
            split[device] = take
            left -= take
        placement = Placement(gpu_layers=units, split=tuple(split), cpu_moe_layers=cpu_moe)
        return placement if self.fits(placement) else None

    def even(self, units: int, cpu_moe: int) -> Placement | None:
        """Return the split by budget, None where it does not fit."""
        key = units, cpu_moe
        if key not in self._even:
            split = self.proportional(units, cpu_moe)
            self._even[key] = split if self.fits(split) else None
        return self._even[key]

    def splits(self, units: int, cpu_moe: int) -> list[Placement]:
        """Return the feasible splits worth trying: even by budget, front-loaded, back-loaded."""
        if len(self.budgets) == 1 or units == 0:
            split = (units,) + (0,) * (len(self.budgets) - 1)
            only = Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)
            return [only] if self.fits(only) else []
        even = self.even(units, cpu_moe)
        if even is not None and self.alike:
            return [even]
        found = [] if even is None else [even]
        for from_back in (False, True):
            filled = self.filled(units, cpu_moe, from_back=from_back)
            if filled is not None and filled not in found:
                found.append(filled)
        return found

    def feasible(self, units: int, cpu_moe: int) -> bool:
        """Tell whether some split of these numbers fits."""
        if self.even(units, cpu_moe) is not None:
            return True
        if len(self.budgets) == 1 or units == 0:
            return False
        return any(self.filled(units, cpu_moe, from_back=back) is not None for back in (False, True))

    def candidates(
        self, *, units: int | None = None, cpu_moe: int | None = None, gpu_first: bool = False
    ) -> list[Placement]:
        """Return the corners of what fits under the budgets; a given number stays fixed.

        Decode time is linear in the blocks on each device, so the best layout is a corner: everything on the GPUs if
        that fits; else as many units as fit with no, with some and with all experts in host memory; and, because a
        host can be the faster device, the same with as little as possible on the GPUs. `gpu_first` says that it is not.
        """
        if gpu_first and units is None and cpu_moe is None:
            corners = list(self._gpu_corners())
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
            if most is None:
                continue
            yield most, share
            if share:
                least = self.least_share(most)
                if least is not None:
                    yield most, least
        if self.experts_end:
            yield from self._border()

    def _corners(self, units: int | None, cpu_moe: int | None) -> Iterator[tuple[int, int]]:
        """Yield (units, blocks with experts in host memory) worth trying; some may not fit."""
        counts = {0, 1} if units is None else {units}
        shares = {0, self.experts_end} if cpu_moe is None else {cpu_moe}
        for share in shares:
            most = self.most_units(share) if units is None else units
            if most is None:
                continue
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

    def most_units(self, cpu_moe: int) -> int | None:
        """Return the most units the GPUs hold, None when not even none do."""
        return largest(0, self.units, lambda n: self.feasible(n, cpu_moe))

    def fewest_units(self, cpu_moe: int, most: int) -> int:
        """Return the fewest units that must leave the host for its memory to suffice, at most `most`."""
        fewest = smallest(0, most, lambda n: self.host_holds(n, cpu_moe))
        return most if fewest is None else fewest

    def least_share(self, units: int) -> int | None:
        """Return the fewest blocks whose experts must be in host memory for so many units to fit."""
        return smallest(0, self.experts_end, lambda n: self.feasible(units, n))

    def share_range(self, units: int) -> Iterator[int]:
        """Yield the fewest blocks whose experts must be in host memory, and the most that it holds."""
        least = self.least_share(units)
        most = largest(0, self.experts_end, lambda n: self.host_holds(units, n))
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
        return largest(self.units - cpu_moe, count, lambda n: self.feasible(n, cpu_moe))
