"""The best way to run one model: every quantization x KV type x context x micro-batch x GPU set x layout.

Exact on these spaces by branch and bound. A combination is first given the score it would reach if the whole model
ran on whichever single device is fastest (decode time is linear in the blocks per device, so no layout is faster);
combinations are worked out in falling order of that bound until it drops below the best score found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec import Struct, structs

from willitrun_estimator.bounds import BOUND_SLACK, Extremes, extremes, together
from willitrun_estimator.cuts import cut_layouts
from willitrun_estimator.found import Bar, Found, by_merit
from willitrun_estimator.layout import Layouts, Needs
from willitrun_estimator.placement import Placement
from willitrun_estimator.score import Objective, quality_factor

HOST_ALONE = -1
MOST_SAVED = 0.8
"""Of the blocks with experts on the host, what is left at least when the heaviest go first: mixes give half of the
blocks a sixth more bits."""
NO_BAR = Bar()


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


def search_quant(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
    *,
    bar: Bar = NO_BAR,
    combinations: list[Combination] | None = None,
) -> list[Found]:
    """Return the plans worked out for one quantization, best first; empty when nothing starts without paging.

    `kl_divergence(quant, kv_type)` is the quality lost; `setup(quant, kv_type, ubatch, gpus)` builds a setup.
    Combinations that cannot pass a `bar` are not worked out, so that nothing may be found; `combinations` are those of
    `bounded` where they are known.
    """
    if combinations is None:
        combinations = bounded(quant, space, objective, kl_divergence, setup)
    found: list[Found] = []
    for combination in combinations:
        if found or bar is not NO_BAR:
            if combination.bound <= bar.whole:
                break
            if not bar.passes(combination.bound, may_be_whole=combination.may_be_whole):
                continue
        for plan in worked_out(quant, combination, space, objective, setup, bar=bar):
            found.append(plan)
            bar = bar.raised(plan)
    return levelled(by_merit(found), objective, setup)


def levelled(
    found: list[Found],
    objective: Objective,
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
) -> list[Found]:
    """Return the plans with the units of the best one split so that the fullest GPU has most room left."""
    if not found or len(found[0].gpus) == 1 or found[0].placement.overrides:
        return found
    best, placement = found[0], found[0].placement
    one = setup(best.quant, best.kv_type, best.ubatch, best.gpus)
    split = layouts_of(one, best.context_tokens).level(placement.gpu_layers, placement.cpu_moe_layers)
    if split is None or split == placement.split:
        return found
    placement = structs.replace(placement, split=split)
    used = tuple(one.needs.per_device_bytes(placement, best.context_tokens))
    return by_merit([*found, judged(one, best.quant, best, objective, placement, used, best.short_bytes)])


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
                    point = gpus, kv_type, context_tokens, ubatch, quality, gpu_first
                    combinations.append(Combination(bound, *point, bool(gpus) and overflow[0] <= 0))
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
    bar: Bar = NO_BAR,
) -> list[Found]:
    """Return the layouts of one combination that start, each with its score; cuts only where they can pass a bar."""
    one = setup(quant, combination.kv_type, combination.ubatch, combination.gpus)
    context_tokens = combination.context_tokens
    found: list[Found] = []

    def judge(placements: Iterable[Placement]) -> None:
        for placement in placements:
            used = tuple(one.needs.per_device_bytes(placement, context_tokens))
            short = max(0, one.host_short(used))
            if paging or not short:
                found.append(judged(one, quant, combination, objective, placement, used, short))

    if not combination.gpus:
        judge([Placement(gpu_layers=0)])
        return found
    whole = layouts_of(one, context_tokens)
    judge(whole.candidates(units=space.gpu_layers, cpu_moe=space.cpu_moe_layers, gpu_first=combination.gpu_first))
    if one.experts_end and space.cpu_moe_layers is None:
        least = min((plan.parted for plan in found if plan.placement.gpu_layers > one.blocks), default=one.experts_end)
        # Cutting saves less than a block on each GPU, and putting the heaviest on the host less than a fifth of them.
        moved = max(0, int(MOST_SAVED * least) - len(combination.gpus))
        ideal = Placement(gpu_layers=one.blocks + 1, split=whole.proportional(one.blocks + 1), cpu_moe_layers=moved)
        bound = objective.judge(
            quality=combination.quality,
            rate=one.rate(ideal),
            ttft_s=one.ttft(ideal),
            context_tokens=context_tokens,
        )
        if bar.passes(bound, may_be_whole=combination.may_be_whole):
            judge(cut_layouts(whole, space.gpu_layers))
    return found


def judged(
    one: Setup,
    quant: str,
    point: Combination | Found,
    objective: Objective,
    placement: Placement,
    used: tuple[int, ...],
    short: int,
) -> Found:
    """Return a layout of one point of the space, its bytes and what the host lacks, as a plan with speeds and score."""
    context_tokens = point.context_tokens
    rate = one.paged_rate(placement, short) if short else one.rate(placement)
    ttft_s = one.paged_ttft(placement, short) if short else one.ttft(placement)
    front = max(one.blocks + 1 - placement.gpu_layers, placement.cpu_moe_layers)
    parted = sum(map(bool, one.needs.expert_parts[:front])) if one.experts_end else 0
    parted += sum(apart.device is None for apart in placement.overrides)
    spare = [budget - use for budget, use, count in zip(one.budgets, used, placement.split, strict=False) if count]
    return Found(
        quant=quant,
        kv_type=point.kv_type,
        context_tokens=context_tokens,
        ubatch=point.ubatch,
        gpus=point.gpus,
        placement=placement,
        used_bytes=used,
        rate=rate,
        ttft_s=ttft_s,
        quality=point.quality,
        short_bytes=short,
        score=objective.judge(quality=point.quality, rate=rate, ttft_s=ttft_s, context_tokens=context_tokens),
        whole=placement.gpu_layers > one.blocks and not parted,
        parted=parted,
        spare_bytes=min(spare, default=0),
    )


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
    return by_merit(found)
