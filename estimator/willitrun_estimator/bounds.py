"""What no layout of a combination can beat: the times of single devices, mixed by what cannot be on the GPUs.

Time is linear in the blocks on each device, so a mixture is no faster than the fastest device it uses; and what the
GPUs cannot hold has to be computed, or copied, from host memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from willitrun_estimator.placement import Placement

BOUND_SLACK = 1.005
"""Headroom of the bound over single-device speeds, for terms that a mixed layout may save (a head on another card)."""


class Timed(Protocol):
    """A model on one GPU, or on the host alone, as far as bounds look at it."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        ...

    @property
    def experts_end(self) -> int:
        """One past the last block with routed experts; 0 for a dense model."""
        ...

    @property
    def budgets(self) -> Sequence[int]:
        """One for each GPU."""
        ...

    def rate(self, placement: Placement, /) -> float | None:
        """Return the decode rate the lens looks at, tokens per second."""
        ...

    def ttft(self, placement: Placement, /) -> float | None:
        """Return the time to the first token, in seconds."""
        ...


class Extremes(Struct, frozen=True):
    """Seconds (of a token or a wait): all on the fastest GPU, its experts on the host, its blocks, and everything.

    None where a device's speed is unknown, infinite what cannot be. Time is linear in what lies where, so a mixture
    that leaves so many bytes to the host is no faster than `least` says.
    """

    whole: float | None
    experts: float | None
    blocks: float | None
    host: float | None
    slowest: float | None
    """All on the slowest GPU."""

    @property
    def gpu_first(self) -> bool:
        """Whether even the slowest GPU is faster than leaving anything to the host."""
        others = [time for time in (self.experts, self.blocks, self.host) if time is not None]
        return self.slowest is not None and self.slowest <= min(others, default=0.0)

    def least(self, over_bytes: int, expert_bytes: int, movable_bytes: int) -> float | None:
        """Return the least seconds when at least `over_bytes` cannot be on GPUs; blocks leave them, the head last."""
        if self.whole is None or self.blocks is None:
            return self.host
        if self.host is None:
            return None
        low = min(self.whole, self.blocks, self.host, self.whole if self.experts is None else self.experts)
        if over_bytes <= 0 or low < self.whole:
            return low
        over = min(over_bytes, movable_bytes)
        plain = self.whole + over * (self.blocks - self.whole) / max(movable_bytes, 1)
        if self.experts is None or not expert_bytes:
            return min(plain, max(self.host, low))
        first = min(over, expert_bytes)
        rest = max(movable_bytes - expert_bytes, 1)
        mixed = self.whole + first * (self.experts - self.whole) / expert_bytes
        if over > first:
            mixed += (over - first) * max(0.0, self.blocks - self.experts) / rest
        return min(plain, mixed, max(self.host, low))


def extremes(one: Timed, *, rates: bool, all_units: bool = False) -> Extremes:
    """Work out the extremes of token times (`rates`) or of waits on one GPU and its host, or on a host alone.

    With `all_units` every block and the head stay on GPUs, whatever becomes of experts.
    """

    def seconds(placement: Placement) -> float | None:
        if not rates:
            return one.ttft(placement)
        rate = one.rate(placement)
        return None if not rate else 1.0 / rate

    if not one.budgets:
        return Extremes(None, None, None, seconds(Placement(gpu_layers=0)), None)
    units = one.blocks + 1
    whole = seconds(Placement(gpu_layers=units, split=(units,)))
    moved = None
    if one.experts_end:
        moved = seconds(Placement(gpu_layers=units, split=(units,), cpu_moe_layers=one.experts_end))
    if all_units:
        never = None if whole is None or (one.experts_end and moved is None) else math.inf
        return Extremes(whole, moved, never, never, whole)
    bare = seconds(Placement(gpu_layers=1, split=(1,)))
    return Extremes(whole, moved, bare, seconds(Placement(gpu_layers=0, split=(0,))), whole)


def together(parts: Sequence[Extremes]) -> Extremes:
    """Return the extremes of several GPUs that share a host."""
    if len(parts) == 1:
        return parts[0]
    whole = [part.whole for part in parts]
    return Extremes(
        fastest(whole),
        fastest(part.experts for part in parts),
        fastest(part.blocks for part in parts),
        fastest(part.host for part in parts),
        None if None in whole else max(time for time in whole if time is not None),
    )


def fastest(seconds: Iterable[float | None]) -> float | None:
    """Return the least of the times; None when one is unknown."""
    least: float | None = None
    for value in seconds:
        if value is None:
            return None
        if least is None or value < least:
            least = value
    return least
