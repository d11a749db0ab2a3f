"""The search against brute force over the same space, on random small machines."""

from __future__ import annotations

import itertools
import math
import operator
import random
from typing import NamedTuple

import pytest
from msgspec import structs

from willitrun_catalog.quant import ladder
from willitrun_catalog.shipped import models
from willitrun_estimator.bounds import extremes
from willitrun_estimator.cuts import Cuts, Order, cut_layouts, leaving
from willitrun_estimator.found import Bar, Found, by_merit
from willitrun_estimator.hardware import devices
from willitrun_estimator.layout import ROOM_STEP, Layouts
from willitrun_estimator.placement import Override, Placement
from willitrun_estimator.points import Combination, Space, bounded
from willitrun_estimator.question import Question
from willitrun_estimator.quick import Buffers
from willitrun_estimator.request import Request
from willitrun_estimator.score import LENSES, PURPOSES, Objective, quality_factor
from willitrun_estimator.search import NO_BAR, search_paging, search_quant, worked_out
from willitrun_estimator.setup import least_overlap
from willitrun_estimator.stack import Stack
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine


class Needs:
    """Bytes of a made-up model: blocks with and without experts, a cache that grows with the context."""

    def __init__(self, model: Model, quant_bytes: int, kv_bytes: int, gpus: int) -> None:
        self.model, self.quant_bytes, self.kv_bytes, self.gpus = model, quant_bytes, kv_bytes, gpus
        self.expert_parts = [parts_of(size * quant_bytes) for size in model.experts]

    def own(self, kind: str) -> tuple[int, ...]:
        return (0,) * (self.gpus + 1)

    def cache_bytes(self, context_tokens: int) -> int:
        return context_tokens // 1024 * self.kv_bytes

    def stack(self, context_tokens: int) -> Stack:
        model, times, cache = self.model, self.quant_bytes, self.cache_bytes(context_tokens)
        lean = list(itertools.accumulate((size * times + cache for size in model.resident), initial=0))
        return Stack(
            lean=lean,
            experts=list(itertools.accumulate((size * times for size in model.experts), initial=0)),
            head_bytes=model.head * times,
            host=lean,
            host_bytes=model.embedding,
            host_head_bytes=model.head * times,
        )

    def buffers(self, context_tokens: int, units: int, moved: int, *, many: bool, scattered: bool = False) -> Buffers:
        return Buffers(*(self.model.context,) * 4, host=0)

    def per_device_bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Add up block by block, so that the search's sums are held against something else."""
        model, times, cache = self.model, self.quant_bytes, self.cache_bytes(context_tokens)
        blocks = len(model.resident)
        first = blocks + 1 - placement.gpu_layers
        used, host, unit = [], model.embedding, first
        for count in placement.split:
            total = model.context if count else 0
            for index in range(unit, unit + count):
                if index == blocks:
                    total += model.head * times
                    continue
                total += model.resident[index] * times + cache
                if index >= placement.cpu_moe_layers:
                    total += model.experts[index] * times
                else:
                    host += model.experts[index] * times
            used.append(total)
            unit += count
        for index in range(min(first, blocks)):
            host += (model.resident[index] + model.experts[index]) * times + cache
        if first > blocks:
            host += model.head * times
        return tuple(map(operator.add, (*used, host), placement.shifts(blocks, self.gpus)))


def parts_of(size: int) -> tuple[tuple[str, int], ...]:
    """Return the matrices of a block's experts, what leaves first in front."""
    third = size // 3
    named = (("ffn_down_exps", third), ("ffn_gate_exps", third), ("ffn_up_exps", size - 2 * third))
    return named if size else ()


class Model(NamedTuple):
    resident: tuple[int, ...]
    experts: tuple[int, ...]
    head: int
    embedding: int
    context: int
    speeds: tuple[float, ...]
    host_speed: float
    budgets: tuple[int, ...]
    host_budget: int


class MadeUp:
    """A setup whose decode time is bytes over each device's speed."""

    def __init__(self, model: Model, quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> None:
        self.model = model
        self.quant_bytes = {"big": 2, "small": 1}[quant]
        self.needs = Needs(model, self.quant_bytes, {"f16": 4, "q8_0": 2}[kv_type], len(gpus))
        self.blocks = len(model.resident)
        self.experts_end = max((i + 1 for i, size in enumerate(model.experts) if size), default=0)
        self.budgets = tuple(model.budgets[i] for i in gpus)
        self.speeds = tuple(model.speeds[i] for i in gpus)
        self.ubatch = ubatch
        self.alike = len(set(self.speeds)) == 1

    def layouts(self, context_tokens: int) -> Layouts:
        return Layouts(
            self.needs,
            self.budgets,
            context_tokens,
            experts_end=self.experts_end,
            host_short=self.host_short,
            alike=self.alike,
        )

    def overflow(self, context_tokens: int, ubatch: int) -> tuple[int, int, int]:
        stack = self.needs.stack(context_tokens)
        over = stack.all_bytes - sum(self.budgets)
        return over, stack.experts[-1], stack.all_bytes - stack.head_bytes

    def overlap(self, ubatch: int, *, spilled: bool) -> float:
        return 1.0  # waits here are sums over the devices

    def host_short(self, used: tuple[int, ...]) -> int:
        return used[-1] - self.model.host_budget

    def seconds(self, placement: Placement) -> float:
        model, blocks = self.model, self.blocks
        total, unit = 0.0, blocks + 1 - placement.gpu_layers
        for count, speed in zip(placement.split, self.speeds, strict=True):
            for index in range(unit, unit + count):
                if index == blocks:
                    total += model.head * self.quant_bytes / speed
                    continue
                total += model.resident[index] * self.quant_bytes / speed
                there = speed if index >= placement.cpu_moe_layers else model.host_speed
                total += model.experts[index] * self.quant_bytes / there
            unit += count
        first = blocks + 1 - placement.gpu_layers
        for index in range(min(first, blocks)):
            total += (model.resident[index] + model.experts[index]) * self.quant_bytes / model.host_speed
        if first > blocks:
            total += model.head * self.quant_bytes / model.host_speed
        for one in placement.overrides:
            home = placement.home(one.block, blocks)
            there = model.host_speed if one.device is None else self.speeds[one.device]
            assert home is not None
            total += one.bytes * (1 / there - 1 / self.speeds[home])
        return total

    def rate(self, placement: Placement) -> float:
        return 800.0 / self.seconds(placement)

    def ttft(self, placement: Placement) -> float:
        return self.seconds(placement) * 2.5 / (self.ubatch / 512) ** 0.5

    def paged_ttft(self, placement: Placement, short_bytes: int) -> float:
        return self.ttft(placement) + short_bytes

    def paged_rate(self, placement: Placement, short_bytes: int) -> float:
        return 800.0 / (self.seconds(placement) + short_bytes)


def made_up_model(rng: random.Random) -> Model:
    blocks = rng.randint(1, 6)
    moe = rng.random() < 0.5
    dense, expert = rng.randint(5, 40), rng.randint(30, 120)
    gpus = rng.choice((1, 1, 2))
    alike = rng.random() < 0.5
    speeds = (rng.choice((20.0, 50.0)),) * gpus if alike else tuple(rng.choice((10.0, 30.0, 80.0)) for _ in range(gpus))
    whole = blocks * (dense + (expert if moe else 0))
    return Model(
        resident=(dense,) * blocks,
        experts=(expert if moe else 0,) * blocks,
        head=rng.randint(5, 30),
        embedding=rng.randint(1, 10),
        context=rng.randint(0, 5),
        speeds=speeds,
        host_speed=rng.choice((2.0, 5.0, 12.0)),
        budgets=tuple(round(rng.uniform(0.1, 2.2) * whole) for _ in range(gpus)),
        host_budget=round(rng.uniform(0.8, 4.0) * whole) + 80,
    )


KL = {"big": 0.0, "small": 0.08}
KV_KL = {"f16": 0.0, "q8_0": 0.01}
QUANTS = ("big", "small")
SPACE = Space(
    kv_types=("f16", "q8_0"),
    contexts=(4096, 8192),
    ubatches=(512, 2048),
    gpu_sets=((0,), (1,), (0, 1)),
    kinds=(0, 1),
)
OBJECTIVE = Objective(purpose=PURPOSES["chat"], lens=LENSES["balanced"])


def brute_force(model: Model, space: Space) -> float:
    """Try everything: every split of every number of units, every number of blocks with experts in RAM."""
    best = 0.0
    blocks = len(model.resident)
    for quant, kv_type, context, ubatch, gpus in itertools.product(
        QUANTS, space.kv_types, space.contexts, space.ubatches, space.gpu_sets
    ):
        setup = MadeUp(model, quant, kv_type, ubatch, gpus)
        for units in range(blocks + 2) if space.gpu_layers is None else (space.gpu_layers,):
            for split in splits(units, len(gpus)):
                for cpu_moe in range(setup.experts_end + 1):
                    placement = Placement(gpu_layers=units, split=split, cpu_moe_layers=cpu_moe)
                    used = setup.needs.per_device_bytes(placement, context)
                    if any(use > budget for use, budget in zip(used, setup.budgets, strict=False)):
                        continue
                    if setup.host_short(used) > 0:
                        continue
                    points = OBJECTIVE.judge(
                        quality=quality_factor(KL[quant] + KV_KL[kv_type]),
                        rate=setup.rate(placement),
                        ttft_s=setup.ttft(placement),
                        context_tokens=context,
                    )
                    best = max(best, points)
    return best


def splits(units: int, count: int) -> list[tuple[int, ...]]:
    if count == 1:
        return [(units,)]
    return [(first, units - first) for first in range(units + 1)]


def searched(model: Model, space: Space) -> Found | None:
    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    best, bar = None, NO_BAR
    for quant in QUANTS:
        found = search_quant(quant, space, OBJECTIVE, lambda q, kv: KL[q] + KV_KL[kv], setup, bar=bar)
        for plan in found:
            used = setup(quant, plan.kv_type, plan.ubatch, plan.gpus).needs.per_device_bytes(
                plan.placement, plan.context_tokens
            )
            budgets = [model.budgets[i] for i in plan.gpus]
            assert all(use <= budget for use, budget in zip(used, budgets, strict=False))
            assert sum(plan.placement.split) == plan.placement.gpu_layers
            bar = bar.raised(plan)
            best = plan if best is None or plan.score > best.score else best
    return best


@pytest.mark.parametrize("all_units", [False, True])
@pytest.mark.parametrize("chunk", range(10))
def test_the_search_finds_what_brute_force_finds_on_a_thousand_machines(chunk: int, *, all_units: bool) -> None:
    for seed in range(chunk * 100, chunk * 100 + 100):
        rng = random.Random(seed)
        model = made_up_model(rng)
        sets = ((0,),) if len(model.budgets) == 1 else ((0,), (1,), (0, 1))
        space = Space(
            kv_types=SPACE.kv_types,
            contexts=SPACE.contexts,
            ubatches=SPACE.ubatches,
            gpu_sets=sets,
            kinds=tuple(model.speeds.index(speed) for speed in model.speeds),
            gpu_layers=len(model.resident) + 1 if all_units else None,
        )
        expected = brute_force(model, space)
        best = searched(model, space)
        assert (0.0 if best is None else best.score) >= expected * (1 - 1e-9), (seed, model)
        if best is None or not best.placement.overrides:
            assert (0.0 if best is None else best.score) == pytest.approx(expected, rel=1e-9), (seed, model)


def test_gpus_that_a_whole_plan_does_without_are_not_looked_at() -> None:
    model = Model((10,) * 4, (0,) * 4, 10, 5, 0, (30.0,) * 3, 5.0, (100,) * 3, 10_000)
    asked: set[tuple[int, ...]] = set()

    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        asked.add(gpus)
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    sets = ((0,), (0, 1), (0, 1, 2))
    space = Space(kv_types=("f16",), contexts=(1024,), ubatches=(512,), gpu_sets=sets, kinds=(0, 0, 0))
    (plan,) = search_quant("small", space, OBJECTIVE, lambda q, kv: 0.0, setup)
    assert (plan.gpus, plan.whole, asked) == ((0,), True, {(0,)})
    unlike = structs.replace(space, kinds=(0, 1, 0))
    assert len(search_quant("small", unlike, OBJECTIVE, lambda q, kv: 0.0, setup)) > 1


def test_a_cut_between_gpus_settles_nothing_for_more_of_them() -> None:
    point = Combination(
        bound=90.0, gpus=(0, 1, 2), kv_type="f16", context_tokens=4096, ubatch=512, quality=0.9, gpu_first=True,
        may_be_whole=True, as_one=True,
    )  # fmt: skip
    whole = found_plan(whole=True)
    cut = Placement(gpu_layers=7, split=(4, 3), overrides=(Override(block=3, tensors=("a",), device=1, bytes=1),))
    assert point.settled_by(whole)
    assert not point.settled_by(found_plan())
    assert not point.settled_by(found_plan(whole=True, context_tokens=8192))
    assert not point.settled_by(found_plan(whole=True, placement=cut))
    assert structs.replace(point, gpus=(0, 1)).settled_by(found_plan(whole=True, placement=cut))
    assert not structs.replace(point, as_one=False).settled_by(whole)


def test_blocks_that_must_be_on_gpus_are_not_bounded_by_a_host() -> None:
    for host_speed in (5.0, 50.0):
        model = Model((40,) * 4, (60,) * 4, 10, 5, 0, (30.0,), host_speed, (300,), 10_000)
        one = MadeUp(model, "small", "f16", 512, (0,))
        free, pinned = (extremes(one, rates=True, all_units=flag) for flag in (False, True))
        assert free.gpu_first == pinned.gpu_first == (host_speed < 30.0)
        assert pinned.least(0, 240, 400) == min(pinned.whole or 0.0, pinned.experts or 0.0)
        assert pinned.least(240, 240, 400) == pytest.approx(pinned.experts)
        assert (free.least(241, 240, 400) or 0.0) < math.inf
    slow = extremes(MadeUp(model._replace(host_speed=5.0), "small", "f16", 512, (0,)), rates=True, all_units=True)
    assert slow.least(241, 240, 400) == math.inf


def fewest_on_host(setup: MadeUp, context: int) -> int | None:
    """Try every split of all blocks, and every way of cutting the last block of a GPU: fewest matrices on the host."""
    blocks, count, parts = setup.blocks, len(setup.budgets), setup.needs.expert_parts
    order = [(block, part) for block in range(blocks) for part in parts[block]]
    for on_host in range(len(order) + 1):
        gone: dict[int, tuple[tuple[str, int], ...]] = {}
        for block, part in order[:on_host]:
            gone[block] = (*gone.get(block, ()), part)
        away = tuple(leaving(block, taken, None) for block, taken in gone.items())
        for split in splits(blocks + 1, count):
            ends = list(itertools.accumulate(split))
            ways: list[tuple[Override | None, ...]] = []
            for device in range(count - 1):
                last = ends[device] - 1
                cuttable = split[device] and split[device + 1] and last < blocks and last not in gone
                some = range(1, len(parts[last]) + 1) if cuttable else ()
                ways.append((None, *(leaving(last, parts[last][:n], device + 1) for n in some)))
            for chosen in itertools.product(*ways):
                placement = Placement(
                    gpu_layers=blocks + 1, split=split, overrides=(*away, *(one for one in chosen if one is not None))
                )
                used = setup.needs.per_device_bytes(placement, context)
                if all(use <= budget for use, budget in zip(used, setup.budgets, strict=False)):
                    return on_host
    return None


def test_cut_blocks_leave_as_little_to_the_host_as_any_way_of_cutting() -> None:
    counted = 0
    for seed in range(900):
        model = made_up_model(random.Random(seed))
        setup = MadeUp(model, "small", "f16", 512, tuple(range(len(model.budgets))))
        if not setup.experts_end or len(model.budgets) > 2:
            continue
        layouts = setup.layouts(4096)
        expected = fewest_on_host(setup, 4096)
        found = Cuts(layouts, setup.blocks + 1, Order(setup.needs.expert_parts, range(setup.blocks))).best()
        if expected is None:
            assert found is None, seed
            continue
        assert found is not None, seed
        used = setup.needs.per_device_bytes(found, 4096)
        assert all(use <= budget for use, budget in zip(used, setup.budgets, strict=False)), seed
        assert 3 * found.cpu_moe_layers + sum(len(o.tensors) for o in found.overrides if o.device is None) == expected
        counted += any(one.device is not None for one in found.overrides)
    assert counted > 20


def test_the_heaviest_blocks_go_to_the_host_first() -> None:
    experts = (30, 60, 30, 60, 30, 60)
    model = Model((5,) * 6, experts, 10, 5, 0, (30.0,), 5.0, (160,), 10_000)
    setup = MadeUp(model, "small", "f16", 512, (0,))
    found = list(cut_layouts(setup.layouts(4096)))
    front, heavy = found
    assert {one.block for one in heavy.overrides if len(one.tensors) == 3} <= {1, 3, 5}
    assert front.kind(6) == "front"
    assert heavy.kind(6) == "scattered"
    assert front.cpu_moe_layers > 0


def found_plan(**fields: object) -> Found:
    values = {
        "quant": "Q4_K_M", "kv_type": "f16", "context_tokens": 4096, "ubatch": 512, "gpus": (0, 1),
        "placement": Placement(gpu_layers=7, split=(4, 3)), "used_bytes": (50, 50, 10), "rate": 10.0, "ttft_s": 1.0,
        "quality": 0.9, "short_bytes": 0, "score": 80.0,
    }  # fmt: skip
    return Found(**(values | fields))


def test_scores_within_a_point_are_told_apart_by_what_is_on_the_gpus_and_by_room() -> None:
    higher = found_plan(quant="Q6_K", score=80.6)
    whole = found_plan(whole=True)
    assert by_merit([higher, whole])[0] is whole
    assert by_merit([found_plan(quant="Q6_K", score=81.2), whole])[0].quant == "Q6_K"
    roomy = found_plan(score=79.6, whole=True, spare_bytes=9)
    assert by_merit([whole, roomy])[0] is roomy
    fewer = found_plan(score=80.4, placement=Placement(gpu_layers=6, split=(3, 3)), spare_bytes=99)
    assert by_merit([fewer, found_plan(parted=3)])[0].placement.gpu_layers == 7
    assert by_merit([found_plan(parted=4, score=80.3), found_plan(parted=3)])[0].parted == 3
    assert by_merit([]) == []


def test_a_split_is_levelled_where_the_score_does_not_mind() -> None:
    unit = 1 << 26
    speeds = (30.0 * unit, 30.0 * unit)
    model = Model((10 * unit,) * 6, (0,) * 6, 10 * unit, 5, 0, speeds, 5.0 * unit, (100 * unit, 60 * unit), 1 << 40)

    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    space = Space(kv_types=("f16",), contexts=(1024,), ubatches=(512,), gpu_sets=((0, 1),), kinds=(0, 0))
    best = search_quant("small", space, OBJECTIVE, lambda q, kv: 0.0, setup)[0]
    rooms = []
    for split in splits(7, 2):
        placement = Placement(gpu_layers=7, split=split)
        used = setup("small", "f16", 512, (0, 1)).needs.per_device_bytes(placement, 1024)
        rooms.append(min(budget - use for budget, use in zip(model.budgets, used, strict=False)))
    assert best.spare_bytes > max(rooms) - ROOM_STEP


def test_a_quantization_that_cannot_win_is_cut_short() -> None:
    model = made_up_model(random.Random(3))
    calls: list[tuple[str, str, int, tuple[int, ...]]] = []

    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        calls.append((quant, kv_type, ubatch, gpus))
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    space = Space(
        kv_types=("f16", "q8_0"),
        contexts=(4096, 8192),
        ubatches=(512,),
        gpu_sets=((0,),),
        kinds=(0,),
    )
    search_quant("small", space, OBJECTIVE, lambda q, kv: KL[q] + KV_KL[kv], setup, bar=Bar(99.0, 99.0))
    with_floor = len(calls)
    calls.clear()
    search_quant("small", space, OBJECTIVE, lambda q, kv: KL[q] + KV_KL[kv], setup)
    assert with_floor < len(calls)


def test_paging_is_offered_when_ram_is_short_and_is_slower() -> None:
    model = Model((40,) * 4, (0,) * 4, 10, 5, 0, (30.0,), 5.0, (60,), 30)

    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    space = Space(kv_types=("f16",), contexts=(4096,), ubatches=(512,), gpu_sets=((0,),), kinds=(0,))
    assert search_quant("big", space, OBJECTIVE, lambda q, kv: 0.0, setup) == []
    (paged, *_) = search_paging("big", space, OBJECTIVE, lambda q, kv: 0.0, setup)
    assert paged.short_bytes > 0
    assert paged.rate == pytest.approx(
        800.0 / (setup("big", "f16", 512, (0,)).seconds(paged.placement) + paged.short_bytes)
    )


def test_with_all_blocks_on_gpus_paging_plans_leave_few_experts_or_all_of_them() -> None:
    def found(model: Model) -> tuple[list[Found], list[Found]]:
        def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
            return MadeUp(model, quant, kv_type, ubatch, gpus)

        gpus = tuple(range(len(model.budgets)))
        units = len(model.resident) + 1
        space = Space(
            kv_types=("f16",), contexts=(1024,), ubatches=(512,), gpu_sets=(gpus,), kinds=(0, 0), gpu_layers=units
        )
        asked = "small", space, OBJECTIVE, lambda q, kv: 0.0, setup
        return search_quant(*asked), search_paging(*asked)

    plans, paging = found(Model((10,) * 4, (42,) * 4, 10, 5, 0, (30.0,), 5.0, (160,), 60))
    assert not plans
    assert {plan.placement.cpu_moe_layers for plan in paging if not plan.placement.overrides} == {2, 4}
    assert {plan.placement.gpu_layers for plan in paging} == {5}
    assert found(Model((25, 25), (10, 10), 10, 5, 0, (30.0, 30.0), 5.0, (34, 34), 60)) == ([], [])


def test_a_demand_that_is_missed_scales_the_score_down() -> None:
    demanding = Objective(purpose=PURPOSES["chat"], lens=LENSES["balanced"], min_rate=20.0, max_ttft_s=1.0)
    kept = demanding.judge(quality=1.0, rate=20.0, ttft_s=1.0, context_tokens=8192)
    slow = demanding.judge(quality=1.0, rate=10.0, ttft_s=1.0, context_tokens=8192)
    late = demanding.judge(quality=1.0, rate=20.0, ttft_s=4.0, context_tokens=8192)
    assert slow < kept * 0.06
    assert late < kept * 0.03


@pytest.mark.parametrize(
    "words", ["2x RTX 3090, 64 GiB RAM", "4x Tesla T4, 128 GiB RAM", "RTX 4090, RTX 3060, 64 GiB RAM"]
)
def test_prompts_that_several_gpus_overlap_are_not_cut_off(words: str) -> None:
    draw = random.Random(words)
    for model in draw.sample(list(models()), 8):
        request = Request(workload=draw.choice(("agentic", "rag")))
        asked = Question(model, devices(open_machine(words), request, sheet_of), request)
        quant = draw.choice(ladder(model))
        space, objective, lost, setup = asked.space, asked.objective, asked.kl_divergence, asked.setup
        every = [
            plan.score
            for combination in bounded(quant, space, objective, lost, setup)
            for plan in worked_out(quant, combination, space, objective, setup)
        ]
        found = asked.search(quant)
        assert max((plan.score for plan in found), default=None) == max(every, default=None), (model.name, quant)


def test_only_what_overlaps_shortens_a_bound() -> None:
    assert least_overlap(1, 512, 8192) == least_overlap(2, 512, 512) == least_overlap(2, 2048, 8192) == 1.0
    assert 0.5 < least_overlap(2, 512, 8192) < 1.0
    assert least_overlap(4, 512, 8192) < least_overlap(2, 512, 8192)


def test_units_that_do_not_fit_have_no_level_split() -> None:
    model = Model((10,) * 6, (0,) * 6, 10, 5, 0, (30.0, 30.0), 5.0, (30, 20), 10_000)
    layouts = MadeUp(model, "small", "f16", 512, (0, 1)).layouts(1024)
    assert layouts.level(7, 0) is None
    assert sum(layouts.level(2, 0) or ()) == 2
