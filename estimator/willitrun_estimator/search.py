"""The best way to run one model: every quantization x KV type x context x micro-batch x GPU set x layout.

Exact on these spaces by branch and bound. A combination is first given the score it would reach if the whole model
ran on whichever single device is fastest (decode time is linear in the blocks per device, so no layout is faster);
combinations are worked out in falling order of that bound until it drops below the best score found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct, structs

from willitrun_estimator.bounds import BOUND_SLACK, Extremes, extremes, together
from willitrun_estimator.layout import Layouts, Needs
from willitrun_estimator.placement import Placement
from willitrun_estimator.score import (
    Lens,
    Purpose,
    context_factor,
    decode_factor,
    quality_factor,
    score,
    ttft_factor,
)

HOST_ALONE = -1
UNKNOWN_FACTOR = 0.5
"""What an unknown speed counts for: neither praise nor blame, so that quality and context decide."""


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

    def overflow(self, context_tokens: int, ubatch: int, /) -> tuple[int, int, int]:
        """Return the bytes the GPUs cannot hold whatever the layout, those of all experts, and those of all blocks."""
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


class Found(Struct, frozen=True, kw_only=True):
    """One plan that can start, with what it needs and the factors of its score."""

    quant: str
    kv_type: str
    context_tokens: int
    ubatch: int
    gpus: tuple[int, ...]
    placement: Placement
    used_bytes: tuple[int, ...]
    """Per GPU of the set, then the host."""
    rate: float | None
    ttft_s: float | None
    quality: float
    short_bytes: int
    """What the host lacks: weights that have to be read from disk as the engine goes; 0 when all fit."""
    score: float


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


class Objective(Struct, frozen=True, kw_only=True):
    """What is being maximised, and what must hold."""

    purpose: Purpose
    lens: Lens
    min_rate: float | None = None
    max_ttft_s: float | None = None

    def factors(
        self, *, quality: float, rate: float | None, ttft_s: float | None, context_tokens: int
    ) -> tuple[float, float, float, float]:
        """Return quality, decode, first token and context as 0..1; an unknown speed counts as half its benefit."""
        half = self.purpose.half_decode_per_s * self.lens.concurrency
        return (
            quality,
            UNKNOWN_FACTOR if rate is None else decode_factor(rate, half),
            UNKNOWN_FACTOR if ttft_s is None else ttft_factor(ttft_s, self.purpose.half_ttft_s),
            context_factor(context_tokens, self.purpose.context_tokens),
        )

    def at_most(self, quality: float, context_tokens: int) -> float:
        """Return a score that no speed exceeds."""
        context = context_factor(context_tokens, self.purpose.context_tokens)
        return score(quality=quality, decode=1.0, ttft=1.0, context=context, lens=self.lens)

    def judge(self, *, quality: float, rate: float | None, ttft_s: float | None, context_tokens: int) -> float:
        """Return the score of a plan; one that misses a demanded rate or wait is scaled down by how far it misses."""
        kept, decode, ttft, context = self.factors(
            quality=quality, rate=rate, ttft_s=ttft_s, context_tokens=context_tokens
        )
        points = score(quality=kept, decode=decode, ttft=ttft, context=context, lens=self.lens)
        if self.min_rate is not None and rate is not None and rate < self.min_rate:
            points *= 0.1 * rate / self.min_rate
        if self.max_ttft_s is not None and ttft_s is not None and ttft_s > self.max_ttft_s:
            points *= 0.1 * self.max_ttft_s / ttft_s
        return points


def search_quant(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
    *,
    floor: float = 0.0,
) -> list[Found]:
    """Return the plans worked out for one quantization, best first; empty when nothing starts without paging.

    `kl_divergence(quant, kv_type)` is the quality lost; `setup(quant, kv_type, ubatch, gpus)` builds a setup.
    Combinations that cannot exceed a `floor` above 0 are not worked out, so that nothing may be found.
    """
    combinations = bounded(quant, space, objective, kl_divergence, setup)
    found: list[Found] = []
    best = floor
    for combination in combinations:
        if combination.bound <= best and (found or floor > 0):
            break
        for plan in worked_out(quant, combination, space, objective, setup):
            found.append(plan)
            best = max(best, plan.score)
    found.sort(key=lambda plan: -plan.score)
    return found


def bounded(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
) -> list[Combination]:
    """Return every combination with the score it cannot exceed, best bound first."""
    combinations: list[Combination] = []
    narrow, first_type = min(space.ubatches), space.kv_types[0]
    known: dict[tuple[int, int, bool], Extremes] = {}

    def of(gpus: tuple[int, ...], ubatch: int, *, rates: bool) -> Extremes:
        """Put the extremes of single GPUs together; GPUs of one kind are worked out once."""
        parts = []
        for kind in dict.fromkeys(space.kinds[gpu] for gpu in gpus) or (HOST_ALONE,):
            key = kind, ubatch, rates
            if key not in known:
                one = setup(quant, first_type, ubatch, () if kind == HOST_ALONE else (kind,))
                known[key] = extremes(one, rates=rates)
            parts.append(known[key])
        return together(parts)

    qualities = [(kv_type, quality_factor(kl_divergence(quant, kv_type))) for kv_type in space.kv_types]
    for gpus in space.gpu_sets:
        steps = of(gpus, narrow, rates=True)
        waits = {ubatch: of(gpus, ubatch, rates=False) for ubatch in space.ubatches}
        for kv_type, quality in qualities:
            one = setup(quant, kv_type, narrow, gpus)
            for context_tokens in space.contexts:
                for ubatch in space.ubatches:
                    overflow = one.overflow(context_tokens, ubatch)
                    step, wait = steps.least(*overflow), waits[ubatch].least(*overflow)
                    if wait is not None:
                        wait *= one.overlap(ubatch, spilled=overflow[0] > 0)
                    bound = objective.judge(
                        quality=quality,
                        rate=None if step is None else BOUND_SLACK / step,
                        ttft_s=None if wait is None else wait / BOUND_SLACK,
                        context_tokens=context_tokens,
                    )
                    gpu_first = steps.gpu_first and waits[ubatch].gpu_first
                    combinations.append(Combination(bound, gpus, kv_type, context_tokens, ubatch, quality, gpu_first))
    combinations.sort(key=lambda combination: (-combination.bound, combination.ubatch))
    return combinations


def worked_out(
    quant: str,
    combination: Combination,
    space: Space,
    objective: Objective,
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
    *,
    paging: bool = False,
) -> list[Found]:
    """Return the layouts of one combination that start, each with its score."""
    one = setup(quant, combination.kv_type, combination.ubatch, combination.gpus)
    context_tokens = combination.context_tokens
    found = []
    for placement in layouts(one, combination, space):
        used = tuple(one.needs.per_device_bytes(placement, context_tokens))
        short = max(0, one.host_short(used))
        if short and not paging:
            continue
        rate = one.paged_rate(placement, short) if short else one.rate(placement)
        ttft_s = one.paged_ttft(placement, short) if short else one.ttft(placement)
        points = objective.judge(quality=combination.quality, rate=rate, ttft_s=ttft_s, context_tokens=context_tokens)
        found.append(
            Found(
                quant=quant,
                kv_type=combination.kv_type,
                context_tokens=context_tokens,
                ubatch=combination.ubatch,
                gpus=combination.gpus,
                placement=placement,
                used_bytes=used,
                rate=rate,
                ttft_s=ttft_s,
                quality=combination.quality,
                short_bytes=short,
                score=points,
            )
        )
    return found


def layouts_of(one: Setup, context_tokens: int) -> Layouts:
    """Return the layouts of a setup at a context."""
    return Layouts(
        one.needs,
        one.budgets,
        context_tokens,
        experts_end=one.experts_end,
        host_short=one.host_short,
        alike=one.alike,
    )


def layouts(one: Setup, combination: Combination, space: Space) -> list[Placement]:
    """Return the layouts worth trying of one combination."""
    if not combination.gpus:
        return [Placement(gpu_layers=0)]
    return layouts_of(one, combination.context_tokens).candidates(
        units=space.gpu_layers, cpu_moe=space.cpu_moe_layers, gpu_first=combination.gpu_first
    )


def search_paging(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
) -> list[Found]:
    """Return plans that read weights from disk as they go, best first: the last resort when nothing else starts."""
    smallest = structs.replace(space, contexts=(min(space.contexts),), ubatches=(min(space.ubatches),))
    found = [
        plan
        for combination in bounded(quant, smallest, objective, kl_divergence, setup)
        for plan in worked_out(quant, combination, smallest, objective, setup, paging=True)
    ]
    found.sort(key=lambda plan: -plan.score)
    return found
