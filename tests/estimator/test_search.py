"""The search against brute force over the same space, on random small machines."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

import pytest

from willitrun_catalog.quant import ladder
from willitrun_catalog.shipped import models
from willitrun_estimator.hardware import devices
from willitrun_estimator.placement import Placement
from willitrun_estimator.question import Question
from willitrun_estimator.quick import Buffers
from willitrun_estimator.request import Request
from willitrun_estimator.score import LENSES, PURPOSES, quality_factor
from willitrun_estimator.search import Objective, Space, bounded, search_paging, search_quant, worked_out
from willitrun_estimator.setup import least_overlap
from willitrun_estimator.stack import Stack
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine


class Needs:
    """Bytes of a made-up model: blocks with and without experts, a cache that grows with the context."""

    def __init__(self, model: Model, quant_bytes: int, kv_bytes: int, gpus: int) -> None:
        self.model, self.quant_bytes, self.kv_bytes = model, quant_bytes, kv_bytes
        self.own = (0,) * (gpus + 1)

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

    def buffers(self, context_tokens: int, units: int, moved: int, *, many: bool) -> Buffers:
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
        return (*used, host)


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
        for units in range(blocks + 2):
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


def searched(model: Model, space: Space) -> float:
    def setup(quant: str, kv_type: str, ubatch: int, gpus: tuple[int, ...]) -> MadeUp:
        return MadeUp(model, quant, kv_type, ubatch, gpus)

    best = 0.0
    for quant in QUANTS:
        found = search_quant(quant, space, OBJECTIVE, lambda q, kv: KL[q] + KV_KL[kv], setup, floor=best)
        for plan in found:
            used = setup(quant, plan.kv_type, plan.ubatch, plan.gpus).needs.per_device_bytes(
                plan.placement, plan.context_tokens
            )
            budgets = [model.budgets[i] for i in plan.gpus]
            assert all(use <= budget for use, budget in zip(used, budgets, strict=False))
            assert sum(plan.placement.split) == plan.placement.gpu_layers
        if found:
            best = max(best, found[0].score)
    return best


@pytest.mark.parametrize("chunk", range(10))
def test_the_search_finds_what_brute_force_finds_on_a_thousand_machines(chunk: int) -> None:
    for seed in range(chunk * 100, chunk * 100 + 100):
        rng = random.Random(seed)
        model = made_up_model(rng)
        sets = ((0,),) if len(model.budgets) == 1 else ((0,), (1,), (0, 1))
        space = Space(
            kv_types=SPACE.kv_types,
            contexts=SPACE.contexts,
            ubatches=SPACE.ubatches,
            gpu_sets=sets,
            kinds=tuple(range(len(model.budgets))),
        )
        expected = brute_force(model, space)
        assert searched(model, space) == pytest.approx(expected, rel=1e-9), (seed, model)


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
    search_quant("small", space, OBJECTIVE, lambda q, kv: KL[q] + KV_KL[kv], setup, floor=99.0)
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
        assert (found[0].score if found else None) == max(every, default=None), (model.name, quant)


def test_only_what_overlaps_shortens_a_bound() -> None:
    assert least_overlap(1, 512, 8192) == least_overlap(2, 512, 512) == least_overlap(2, 2048, 8192) == 1.0
    assert 0.5 < least_overlap(2, 512, 8192) < 1.0
    assert least_overlap(4, 512, 8192) < least_overlap(2, 512, 8192)
