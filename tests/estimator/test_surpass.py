"""Answers at the edge: a device with exactly a plan's bytes free gets that plan, and one with a byte less does not."""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from tests.estimator.test_fit import MIB, devices
from willitrun_catalog.shipped import model
from willitrun_estimator.answer import answer_on
from willitrun_estimator.device import Devices
from willitrun_estimator.plan import Answer
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request

CASES = [
    ("llama-3.1-8b-instruct", [[8192, 7900]], None),
    ("llama-3.1-8b-instruct", [[6144, 5000]], "Q6_K"),
    ("qwen2.5-14b-instruct", [[8192, 7600], [8192, 7000]], None),
    ("qwen3-32b", [[24564, 23000]], "Q5_K_M"),
    ("gemma-3-27b-it", [[16384, 15000], [8192, 7500]], "Q4_K_M"),
    ("qwen3-30b-a3b", [[12288, 11000]], "Q4_K_M"),
    ("gpt-oss-20b", [[8192, 7800], [8192, 4500]], None),
    ("phi-3.5-moe-instruct", [[16384, 14000]], None),
    ("llama-3.3-70b-instruct", [[24564, 23500], [24564, 20000]], None),
    ("granite-4.0-h-small", [[16384, 15500]], "Q4_K_M"),
]


def answered(prepared: Prepared, plan_on: Devices, request: Request) -> Answer:
    return answer_on(plan_on, prepared.spec, request, sections=frozenset({"plan"}), prepared=prepared)


def with_free(plan_on: Devices, result: Answer, less: int = 0) -> Devices:
    """Leave every planned GPU exactly what the plan takes and the margin; the others keep what they have."""
    assert result.plan is not None
    gpus = list(plan_on.gpus)
    for place, use in enumerate(result.plan.devices[:-1]):
        at = next(i for i, gpu in enumerate(gpus) if gpu.uuid == result.plan.gpu_uuids[place])
        margin = max(0, 256 * MIB - use.runtime_bytes)
        gpus[at] = structs.replace(gpus[at], memory_free_bytes=use.total_bytes + margin - (less if place == 0 else 0))
    return structs.replace(plan_on, gpus=tuple(gpus))


def layout(result: Answer) -> tuple[object, ...]:
    assert result.plan is not None
    plan = result.plan
    return plan.quant, plan.kv_type, plan.context_tokens, plan.ubatch, plan.gpu_layers, plan.experts_apart


@pytest.mark.parametrize(("name", "gpus", "quant"), CASES, ids=str)
def test_exactly_a_plan_s_bytes_give_that_plan_again_and_a_byte_less_does_not(
    name: str, gpus: list[list[int]], quant: str | None
) -> None:
    rng = random.Random(f"{name} {gpus}")
    prepared = Prepared(model(name))
    request = Request(quant=quant, margin_bytes=256 * MIB, context=8192)
    for _ in range(3):
        some = devices([[total, free - rng.randrange(900)] for total, free in gpus])
        plan_on = structs.replace(
            some, gpus=tuple(structs.replace(gpu, uuid=f"GPU-{i}") for i, gpu in enumerate(some.gpus))
        )
        first = answered(prepared, plan_on, request)
        exact = with_free(plan_on, first)
        again = answered(prepared, exact, request)
        assert again.plan is not None
        assert first.plan is not None
        assert again.score >= first.score - 1
        assert layout(again) == layout(first)
        less = answered(prepared, with_free(plan_on, first, less=1), request)
        assert less.plan is not None
        for use in less.plan.devices[:-1]:
            free = next(gpu.memory_free_bytes for gpu in exact.gpus if gpu.name == use.name)
            assert use.total_bytes <= free
        assert (layout(less), less.plan.devices) != (layout(first), first.plan.devices)
