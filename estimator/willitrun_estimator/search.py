"""The best way to run one model: every quantization x KV type x context x micro-batch x GPU set x layout.

Exact on these spaces by branch and bound. A combination is first given the score it would reach if the whole model
ran on whichever single device is fastest (decode time is linear in the blocks per device, so no layout is faster);
combinations are worked out in falling order of that bound until it drops below the best score found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Protocol

from msgspec import Struct, structs

from willitrun_estimator.bounds import BOUND_SLACK, Extremes, extremes, together
from willitrun_estimator.cuts import cut_layouts
from willitrun_estimator.found import Bar, Found, by_merit
from willitrun_estimator.layout import Laid, Layouts, Needs
from willitrun_estimator.placement import Placement
from willitrun_estimator.score import Objective, quality_factor

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
            if any(map(combination.settled_by, found)):
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
    split = one.layouts(best.context_tokens).level(placement.gpu_layers, placement.cpu_moe_layers)
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
    """Return every combination that may have a layout with the score it cannot exceed, best bound first."""
    combinations: list[Combination] = []
    narrow, first_type = min(space.ubatches), space.kv_types[0]
    mixed: dict[tuple[tuple[int, ...], int, bool], Extremes] = {}

    def of(kinds: tuple[int, ...], ubatch: int, *, rates: bool) -> Extremes:
        """Return the extremes of GPUs of some kinds, from those of single ones; worked out once."""
        key = kinds, ubatch, rates
        known = mixed.get(key)
        if known is None:
            if len(kinds) > 1:
                known = together([of((kind,), ubatch, rates=rates) for kind in kinds])
            else:
                one = setup(quant, first_type, ubatch, kinds)
                known = extremes(one, rates=rates, all_units=all_units(space, one))
            mixed[key] = known
        return known

    qualities = [(kv_type, quality_factor(kl_divergence(quant, kv_type))) for kv_type in space.kv_types]
    roomy: dict[tuple[str, int, int], list[Combination]] = {}
    """Those `as_one` that may be whole: what is true of them is true with more GPUs."""
    for gpus in space.gpu_sets:
        kinds = tuple(dict.fromkeys([space.kinds[gpu] for gpu in gpus]))
        for kv_type, quality in qualities:
            for context_tokens, ubatch in product(space.contexts, space.ubatches):
                fewer = roomy.setdefault((kv_type, context_tokens, ubatch), [])
                same = next((one for one in fewer if set(one.gpus) < set(gpus)), None) if len(kinds) == 1 else None
                if same is not None:
                    combinations.append(structs.replace(same, gpus=gpus))
                    continue
                one = setup(quant, kv_type, narrow, gpus)
                overflow = one.overflow(context_tokens, ubatch)
                if all_units(space, one) and overflow[0] > overflow[1]:
                    continue  # experts alone may leave, and they are too few
                steps, waits = of(kinds, narrow, rates=True), of(kinds, ubatch, rates=False)
                step, wait = steps.least(*overflow), waits.least(*overflow)
                if wait is not None:
                    wait *= one.overlap(ubatch, spilled=overflow[0] > 0)
                bound = objective.judge(
                    quality=quality,
                    rate=None if step is None else BOUND_SLACK / step,
                    ttft_s=None if wait is None else wait / BOUND_SLACK,
                    context_tokens=context_tokens,
                )
                gpu_first = steps.gpu_first and waits.gpu_first
                point = Combination(
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
                combinations.append(point)
                if point.as_one and point.may_be_whole:
                    fewer.append(point)
    combinations.sort(key=lambda combination: (-combination.bound, combination.ubatch))
    return combinations


def all_units(space: Space, one: Setup) -> bool:
    """Tell whether every block and the head have to be on GPUs."""
    return space.gpu_layers is not None and bool(one.budgets) and space.gpu_layers > one.blocks


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
        least = min((plan.parted for plan in found if plan.placement.gpu_layers > one.blocks), default=one.experts_end)
        # Cutting saves less than a block on each GPU, and putting the heaviest on the host less than a fifth of them.
        moved = max(0, int(MOST_SAVED * least) - len(combination.gpus))
        ideal = Placement(gpu_layers=one.blocks + 1, split=layouts.proportional(one.blocks + 1), cpu_moe_layers=moved)
        bound = objective.judge(
            quality=combination.quality,
            rate=one.rate(ideal),
            ttft_s=one.ttft(ideal),
            context_tokens=context_tokens,
        )
        if bar.passes(bound, may_be_whole=combination.may_be_whole):
            judge(layouts.laid("cut", lambda: cut_layouts(layouts, space.gpu_layers)))
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


def search_paging(
    quant: str,
    space: Space,
    objective: Objective,
    kl_divergence: Callable[[str, str], float],
    setup: Callable[[str, str, int, tuple[int, ...]], Setup],
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
