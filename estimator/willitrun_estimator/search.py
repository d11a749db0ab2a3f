"""The best way to run one model: every quantization x KV type x context x micro-batch x GPU set x layout.

Exact on these spaces by branch and bound. A combination is first given the score it would reach if the whole model
ran on whichever single device is fastest (decode time is linear in the blocks per device, so no layout is faster);
combinations are worked out in falling order of that bound until it drops below the best score found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from msgspec import structs

from willitrun_estimator.cuts import cut_layouts
from willitrun_estimator.found import Bar, Found, by_merit
from willitrun_estimator.layout import Laid
from willitrun_estimator.placement import Placement
from willitrun_estimator.points import Combination, MakeSetup, Setup, Space, bounded
from willitrun_estimator.score import Objective

MOST_SAVED = 0.8
"""Of the blocks with experts on the host, what is left at least when the heaviest go first: mixes give half of the
blocks a sixth more bits."""
NO_BAR = Bar()


def search_quant(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: MakeSetup,
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
            if any(map(combination.settled_by, found)):
                continue
        for plan in worked_out(quant, combination, space, objective, setup, bar=bar):
            found.append(plan)
            bar = bar.raised(plan)
    return levelled(by_merit(found), objective, setup)


def levelled(
    found: list[Found],
    objective: Objective,
    setup: MakeSetup,
) -> list[Found]:
    """Return the plans with the units of the best one split so that the fullest GPU has most room left."""
    if not found or len(found[0].gpus) == 1 or found[0].placement.overrides:
        return found
    best, placement = found[0], found[0].placement
    one = setup(best.quant, best.kv_type, best.ubatch, best.gpus)
    split = one.layouts(best.context_tokens).level(placement.gpu_layers, placement.cpu_moe_layers)
    if split is None or split == placement.split:
        return found
    placement = structs.replace(placement, split=split)
    used = tuple(one.needs.per_device_bytes(placement, best.context_tokens))
    return by_merit([*found, judged(one, best.quant, best, objective, placement, used, best.short_bytes)])


def worked_out(
    quant: str,
    combination: Combination,
    space: Space,
    objective: Objective,
    setup: MakeSetup,
    *,
    paging: bool = False,
    bar: Bar = NO_BAR,
) -> list[Found]:
    """Return the layouts of one combination that start, each with its score; cuts only where they can pass a bar."""
    one = setup(quant, combination.kv_type, combination.ubatch, combination.gpus)
    context_tokens = combination.context_tokens
    layouts = one.layouts(context_tokens)
    found: list[Found] = []

    def judge(laid: Iterable[Laid]) -> None:
        for placement, used in laid:
            short = max(0, one.host_short(used))
            if paging or not short:
                found.append(judged(one, quant, combination, objective, placement, used, short))

    if not combination.gpus:
        judge(layouts.laid("host", lambda: [Placement(gpu_layers=0)]))
        return found
    fixed, gpu_first = (space.gpu_layers, space.cpu_moe_layers), combination.gpu_first
    judge(
        layouts.laid(
            (*fixed, gpu_first, paging), lambda: layouts.candidates(*fixed, gpu_first=gpu_first, paging=paging)
        )
    )
    if one.experts_end and space.cpu_moe_layers is None:
        bound = math.inf if bar is NO_BAR else cut_bound(one, combination, objective, found)
        if bar.passes(bound, may_be_whole=combination.may_be_whole):
            judge(layouts.laid("cut", lambda: cut_layouts(layouts, space.gpu_layers)))
    return found


def cut_bound(one: Setup, combination: Combination, objective: Objective, found: Iterable[Found]) -> float:
    """Return a score that no cut layout exceeds, from those of whole blocks.

    Cutting saves less than a block on each GPU, and putting the heaviest on the host less than a fifth of them.
    """
    units, context_tokens = one.blocks + 1, combination.context_tokens
    least = min((plan.parted for plan in found if plan.placement.gpu_layers == units), default=one.experts_end)
    moved = max(0, int(MOST_SAVED * least) - len(combination.gpus))
    split = one.layouts(context_tokens).proportional(units)
    ideal = Placement(gpu_layers=units, split=split, cpu_moe_layers=moved)
    return objective.judge(
        quality=combination.quality, rate=one.rate(ideal), ttft_s=one.ttft(ideal), context_tokens=context_tokens
    )


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


def search_paging(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: MakeSetup,
    *,
    combinations: list[Combination] | None = None,
) -> list[Found]:
    """Return plans that read weights from disk as they go, best first: the last resort when nothing else starts."""
    if combinations is None:
        combinations = bounded(quant, space, objective, kl_divergence, setup)
    return by_merit(
        plan
        for combination in combinations
        for plan in worked_out(quant, combination, space, objective, setup, paging=True)
    )
