"""Ceilings are above what they bound, for every shipped model: else a search would leave out what can win."""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_catalog.quant import ladder
from willitrun_catalog.shipped import models
from willitrun_estimator import ceilings
from willitrun_estimator.found import Bar
from willitrun_estimator.hardware import devices
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.sweep import best_of, sweep
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

MACHINES = ("RTX 3090, 64 GiB RAM", "Tesla T4, 16 GiB RAM", "RTX 4090, RTX 3060, 64 GiB RAM", "64 GiB RAM")


def question(model, words: str, **asked) -> Question:
    request = Request(**asked)
    return Question(model, devices(open_machine(words), request, sheet_of), request)


@pytest.mark.parametrize("words", MACHINES)
def test_the_cheap_ceiling_is_above_the_sharp_one_and_that_above_the_best_plan(words):
    for model in random.Random(words).sample(list(models()), 40):
        asked = question(model, words)
        for quant in ladder(model):
            sharp = ceilings.sharp(asked, quant)
            assert ceilings.cheap(asked, quant) >= sharp, (model.name, quant)
        quant = random.Random(model.name).choice(ladder(model))
        found = asked.search(quant, narrow=True)
        assert not found or found[0].score <= ceilings.sharp(asked, quant) * 1.0001, (model.name, quant)


@pytest.mark.parametrize("words", ["2x RTX 3090, 64 GiB RAM", "8x H100 80GB, 1024 GiB RAM", "M2 Max", MACHINES[2]])
def test_waits_that_several_gpus_share_do_not_lower_a_ceiling(words):
    for model in random.Random(words).sample(list(models()), 12):
        asked = question(model, words, workload="agentic")
        quant = random.Random(model.name).choice(ladder(model))
        found = asked.search(quant)
        assert not found or found[0].score <= ceilings.sharp(asked, quant) * 1.0001, (model.name, quant)


def test_no_quantization_stores_less_than_the_bound_says():
    for model in models():
        asked = question(model, MACHINES[0])
        for quant in ladder(model)[::4]:
            bits = ceilings.least_bits(asked, quant)
            if bits is None:
                assert model.native_type == "mxfp4"
                continue
            weights = asked.weights(quant)
            held = weights.cumulative_resident_bytes[-1] + weights.cumulative_expert_bytes[-1] + weights.output_bytes
            assert held >= asked.prepared.elements(quant).held * bits / 8, (model.name, quant)


def test_a_sweep_finds_what_searching_everything_finds():
    draw = random.Random(4)
    for model in draw.sample(list(models()), 25):
        words, asked = draw.choice(MACHINES), {"workload": draw.choice(("chat", "agentic"))}
        every = question(model, words, **asked)
        searched = [found for quant in ladder(model) for found in every.search(quant)[:1]]
        swept = best_of(question(model, words, **asked), ladder(model))
        expected = max((found.score for found in searched), default=None)
        assert (None if swept is None else swept.score) == expected, (model.name, words)


def test_a_sweep_stops_where_nothing_can_exceed_the_floor():
    model = next(model for model in models() if model.name == "llama-3.1-8b-instruct")
    asked = question(model, MACHINES[0])
    assert list(sweep(asked, ladder(model), bar=Bar(100.0, 100.0))) == []
    assert asked.tried.keys() <= {ladder(model)[0]}, "one is weighed to count the weights"


def test_unknown_rates_leave_quality_alone_to_bound():
    known = open_machine(MACHINES[0])
    plan_on = devices(known, Request(), lambda gpu: None)
    model = find_model("llama-3.1-8b").spec
    assert plan_on.gpus[0].bandwidth_bytes_per_s is None
    asked = Question(model, plan_on, Request())
    quant = ladder(model)[0]
    assert ceilings.least_seconds(plan_on, asked.prepared.elements(quant), 2.0) is None
    unbounded = structs.replace(
        plan_on, host=structs.replace(plan_on.host, ram_available_bytes=2**60), name="with room for everything"
    )
    assert ceilings.cheap(Question(model, unbounded, Request()), quant) == pytest.approx(100.0)
