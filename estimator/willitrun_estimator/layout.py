"""Laying one model in one quantization over given GPUs: which blocks where, under every device's budget.

The blocks a GPU gets are contiguous and llama.cpp fills from the back, so a layout is two numbers (units on GPUs,
blocks with experts in host memory) and a split of the units. Bytes grow with each of them, so the extremes under the
budgets are found by bisection; decode time is linear in the numbers of blocks, so an optimum lies at an extreme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from willitrun_estimator.placement import Placement


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
        self, needs: Needs, budgets: Sequence[int], context_tokens: int, *, blocks: int, experts_end: int
    ) -> None:
        self.needs = needs
        self.budgets = tuple(budgets)
        self.context_tokens = context_tokens
        self.blocks = blocks
        self.units = blocks + 1
        self.experts_end = experts_end
        """One past the last block with routed experts; 0 for a dense model."""

    def fits(self, placement: Placement) -> bool:
        """Tell whether every GPU stays within its budget (the host is judged apart)."""
        used = self.needs.per_device_bytes(placement, self.context_tokens)
        return all(use <= budget for use, budget in zip(used, self.budgets, strict=False))

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

    def splits(self, units: int, cpu_moe: int) -> list[Placement]:
        """Return the feasible splits worth trying: even by budget, front-loaded, back-loaded."""
        if len(self.budgets) == 1 or units == 0:
            split = (units,) + (0,) * (len(self.budgets) - 1)
            only = Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)
            return [only] if self.fits(only) else []
        found: list[Placement] = []
        even = self.proportional(units, cpu_moe)
        if self.fits(even):
            found.append(even)
        for from_back in (False, True):
            filled = self.filled(units, cpu_moe, from_back=from_back)
            if filled is not None and filled not in found:
                found.append(filled)
        return found

    def feasible(self, units: int, cpu_moe: int) -> bool:
        """Tell whether some split of these numbers fits."""
        return bool(self.splits(units, cpu_moe))

    def candidates(self, *, units: int | None = None, cpu_moe: int | None = None) -> Iterator[Placement]:
        """Yield the extreme layouts under the budgets; a given number stays fixed.

        Everything on the GPUs if that fits. Else, for a mixture of experts, for each number of blocks on GPUs the
        fewest blocks with experts in host memory; for a dense model the most units that fit.
        """
        blocks, experts_end = self.blocks, self.experts_end
        if units is not None and cpu_moe is not None:
            yield from self.splits(units, cpu_moe)
            return
        if units is not None:
            least = smallest(0, experts_end, lambda n: self.feasible(units, n))
            if least is not None:
                yield from self.splits(units, least)
            return
        if cpu_moe is not None:
            most = largest(0, self.units, lambda n: self.feasible(n, cpu_moe))
            if most is not None:
                yield from self.splits(most, cpu_moe)
            return
        everything = self.splits(self.units, 0)
        if everything:
            yield from everything
            return
        if experts_end:
            yield from self._expert_frontier(blocks, experts_end)
        else:
            most = largest(0, blocks, lambda n: self.feasible(n, 0))
            if most is not None:
                yield from self.splits(most, 0)

    def _expert_frontier(self, blocks: int, experts_end: int) -> Iterator[Placement]:
        """Walk the border of what fits: fewer units on the GPUs against fewer experts in host memory."""
        most = largest(0, blocks + 1, lambda n: self.feasible(n, experts_end))
        if most is None:
            return
        least = smallest(0, experts_end, lambda n: self.feasible(most, n))
        if least is None:
            return
        yield from self.splits(most, least)
        # Experts below the first block on a GPU are in host memory whatever the flag says, so the walk ends where
        # the flag stops adding anything.
        plain = largest(0, most, lambda n: self.feasible(n, 0))
        if plain:
            yield from self.splits(plain, 0)
