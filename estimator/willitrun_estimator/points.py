"""The points of a search's space, each with the score it cannot exceed.

GPUs of one kind are bounded once, and a set that holds everything speaks for the sets that add to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Protocol

from msgspec import Struct, structs

from willitrun_estimator.bounds import BOUND_SLACK, Extremes, extremes, together
from willitrun_estimator.found import Found
from willitrun_estimator.layout import Layouts
from willitrun_estimator.needs import Needs
from willitrun_estimator.placement import Placement
from willitrun_estimator.score import Objective, quality_factor


class Setup(Protocol):
    """One model in one quantization on one GPU set with fixed settings: what it needs and how fast it is."""

    @property
    def needs(self) -> Needs:
        """Bytes per device of any layout."""
        ...

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        ...

    @property
    def experts_end(self) -> int:
        """One past the last block with routed experts; 0 for a dense model."""
        ...

    @property
    def alike(self) -> bool:
        """The GPUs of the set are equally fast."""
        ...

    @property
    def budgets(self) -> Sequence[int]:
        """Bytes each GPU of the set may be given."""
        ...

    def layouts(self, context_tokens: int, /) -> Layouts:
        """Return the layouts at a context, with what is known of them."""
        ...

    def overflow(self, context_tokens: int, ubatch: int, /) -> tuple[int, int, int]:
        """Return the bytes the GPUs cannot hold whatever the layout, those of all experts, and those of all blocks.

        More GPUs never hold less.
        """
        ...

    def overlap(self, ubatch: int, /, *, spilled: bool) -> float:
        """Return the least time of a prompt, relative to its micro-batches one after the other on all devices."""
        ...

    def host_short(self, used_bytes: Sequence[int], /) -> int:
        """Return the bytes the host lacks for a layout's needs; 0 or less when it has room."""
        ...

    def rate(self, placement: Placement, /) -> float | None:
        """Return the decode rate the lens looks at (aggregate for serving modes), tokens per second."""
        ...

    def ttft(self, placement: Placement, /) -> float | None:
        """Return the time to the first token for the workload's prompt, in seconds."""
        ...

    def paged_ttft(self, placement: Placement, short_bytes: int, /) -> float | None:
        """Return the time to the first token when `short_bytes` of the weights are read from disk, in seconds."""
        ...

    def paged_rate(self, placement: Placement, short_bytes: int, /) -> float | None:
        """Return the decode rate when `short_bytes` of the weights are read from disk, tokens per second."""
        ...


class Space(Struct, frozen=True, kw_only=True):
    """The values each dimension may take; a dimension the user fixed has one value."""

    kv_types: tuple[str, ...]
    contexts: tuple[int, ...]
    ubatches: tuple[int, ...]
    gpu_sets: tuple[tuple[int, ...], ...]
    """Indexes into `Devices.gpus`; the empty set is the host alone."""
    kinds: tuple[int, ...]
    """For each GPU the first one that is as fast."""
    gpu_layers: int | None = None
    cpu_moe_layers: int | None = None


class Combination(Struct, frozen=True):
    """One point of the space before its layout is chosen, with the score it cannot exceed."""

    bound: float
    gpus: tuple[int, ...]
    kv_type: str
    context_tokens: int
    ubatch: int
    quality: float
    gpu_first: bool
    """Whatever leaves a GPU costs time, so that only what does not fit is left to the host."""
    may_be_whole: bool
    """Nothing has to be on the host as far as sums tell."""
    as_one: bool = False
    """The GPUs are of one kind and nothing overlaps on several of them, so that all on fewer is as fast."""

    def settled_by(self, plan: Found) -> bool:
        """Tell whether nothing is better than a plan: it is wholly on these GPUs, or on some of them `as_one`.

        A block cut between GPUs costs a trip, so that with more of them whole blocks can be faster.
        """
        if not plan.whole or (plan.kv_type, plan.context_tokens, plan.ubatch) != self.point:
            return False
        return plan.gpus == self.gpus or (
            self.as_one and not plan.placement.overrides and set(plan.gpus) < set(self.gpus)
        )

    @property
    def point(self) -> tuple[str, int, int]:
        """Cache type, context and micro-batch."""
        return self.kv_type, self.context_tokens, self.ubatch


MakeSetup = Callable[[str, str, int, tuple[int, ...]], Setup]
"""Builds a setup of a quantization, cache type, micro-batch and GPU set."""


def bounded(
    quant: str, space: Space, objective: Objective, kl_divergence: Callable[[str, str], float], setup: MakeSetup
) -> list[Combination]:
    """Return every combination that may have a layout with the score it cannot exceed, best bound first."""
    combinations: list[Combination] = []
    reach = Reach(quant, space, objective, setup)
    qualities = [(kv_type, quality_factor(kl_divergence(quant, kv_type))) for kv_type in space.kv_types]
    roomy: dict[tuple[str, int, int], list[Combination]] = {}
    """Those `as_one` that may be whole: what is true of them is true with more GPUs."""
    for gpus in space.gpu_sets:
        kinds = tuple(dict.fromkeys([space.kinds[gpu] for gpu in gpus]))
        for (kv_type, quality), context_tokens, ubatch in product(qualities, space.contexts, space.ubatches):
            fewer = roomy.setdefault((kv_type, context_tokens, ubatch), [])
            same = next((one for one in fewer if set(one.gpus) < set(gpus)), None) if len(kinds) == 1 else None
            if same is not None:
                combinations.append(structs.replace(same, gpus=gpus))
                continue
            point = reach.of(gpus, kinds, kv_type, quality, context_tokens, ubatch)
            if point is not None:
                combinations.append(point)
                if point.as_one and point.may_be_whole:
                    fewer.append(point)
    combinations.sort(key=lambda combination: (-combination.bound, combination.ubatch))
    return combinations


class Reach:
    """What the points of one quantization can reach at most."""

    def __init__(self, quant: str, space: Space, objective: Objective, setup: MakeSetup) -> None:
        self.quant, self.space, self.objective, self.setup = quant, space, objective, setup
        self.narrow = min(space.ubatches)
        self._extremes: dict[tuple[tuple[int, ...], int, bool], Extremes] = {}

    def of(
        self,
        gpus: tuple[int, ...],
        kinds: tuple[int, ...],
        kv_type: str,
        quality: float,
        context_tokens: int,
        ubatch: int,
    ) -> Combination | None:
        """Return a point with its bound, None where it has no layout."""
        one = self.setup(self.quant, kv_type, self.narrow, gpus)
        overflow = one.overflow(context_tokens, ubatch)
        if all_units(self.space, one) and overflow[0] > overflow[1]:
            return None  # experts alone may leave, and they are too few
        steps, waits = self.extremes(kinds, self.narrow, rates=True), self.extremes(kinds, ubatch, rates=False)
        step, wait = steps.least(*overflow), waits.least(*overflow)
        if wait is not None:
            wait *= one.overlap(ubatch, spilled=overflow[0] > 0)
        bound = self.objective.judge(
            quality=quality,
            rate=None if step is None else BOUND_SLACK / step,
            ttft_s=None if wait is None else wait / BOUND_SLACK,
            context_tokens=context_tokens,
        )
        gpu_first = steps.gpu_first and waits.gpu_first
        return Combination(
            bound=bound,
            gpus=gpus,
            kv_type=kv_type,
            context_tokens=context_tokens,
            ubatch=ubatch,
            quality=quality,
            gpu_first=gpu_first,
            may_be_whole=bool(gpus) and overflow[0] <= 0,
            as_one=len(kinds) == 1 and gpu_first and one.overlap(ubatch, spilled=True) == 1.0,
        )

    def extremes(self, kinds: tuple[int, ...], ubatch: int, *, rates: bool) -> Extremes:
        """Return the extremes of GPUs of some kinds, from those of single ones; worked out once."""
        key = kinds, ubatch, rates
        known = self._extremes.get(key)
        if known is None:
            if len(kinds) > 1:
                known = together([self.extremes((kind,), ubatch, rates=rates) for kind in kinds])
            else:
                one = self.setup(self.quant, self.space.kv_types[0], ubatch, kinds)
                known = extremes(one, rates=rates, all_units=all_units(self.space, one))
            self._extremes[key] = known
        return known


def all_units(space: Space, one: Setup) -> bool:
    """Tell whether every block and the head have to be on GPUs."""
    return space.gpu_layers is not None and bool(one.budgets) and space.gpu_layers > one.blocks
