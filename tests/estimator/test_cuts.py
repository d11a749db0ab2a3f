"""Placements with blocks cut in two: their bytes by three ways of adding up, and what they mean for speed."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.estimator.test_fit import MIB, devices
from willitrun_catalog.shipped import model, models
from willitrun_estimator.cuts import orders_of
from willitrun_estimator.expert_parts import expert_parts
from willitrun_estimator.found import Found
from willitrun_estimator.placement import Override, Placement
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.weights import weight_profile


def asked(name: str, gpus: list[list[int]], quant: str = "Q4_K_M") -> Question:
    request = Request(quant=quant, context=8192, kv_type="f16", ubatch=512, margin_bytes=1024 * MIB)
    return Question(model(name), devices(gpus), request)


def cut_plans(question: Question, quant: str = "Q4_K_M") -> list[Found]:
    return [plan for plan in question.search(quant) if plan.placement.overrides]


def test_matrices_of_experts_add_up_to_the_experts() -> None:
    for spec in models():
        profile = weight_profile(spec, "Q4_K_M")
        parts = expert_parts(spec, "Q4_K_M")
        for layer, one in zip(profile.layers, parts, strict=True):
            assert sum(size for _, size in one) in {0, layer.expert_bytes}, spec.name
        if profile.cumulative_expert_bytes[-1]:
            assert any(parts), spec.name


def test_overrides_move_bytes_and_lose_none() -> None:
    question = asked("qwen3-30b-a3b", [[12288, 9000], [8192, 6000]])
    (plan, *_) = cut_plans(question)
    setup = question.setup(plan.quant, plan.kv_type, plan.ubatch, plan.gpus)
    bare = structs.replace(plan.placement, overrides=())
    for look in (setup.memory, setup.needs):
        moved = [use.weights_bytes for use in look.uses(plan.placement, 8192)]
        before = [use.weights_bytes for use in look.uses(bare, 8192)]
        shifts = plan.placement.shifts(setup.blocks, len(plan.gpus))
        assert [after - now for after, now in zip(moved, before, strict=True)] == shifts
        assert sum(shifts) == 0
    exact = setup.memory.per_device_bytes(plan.placement, 8192)
    assert sum(use.total_bytes for use in setup.memory.uses(plan.placement, 8192)) == sum(exact)


def test_home_and_kind_of_a_placement() -> None:
    down = Override(block=3, tensors=("ffn_down_exps",), device=1, bytes=10)
    placement = Placement(gpu_layers=7, split=(4, 3), overrides=(down,))
    assert [placement.home(block, 8) for block in range(9)] == [None, None, 0, 0, 0, 0, 1, 1, 1]
    assert placement.shifts(8, 2) == [-10, 10, 0]
    assert placement.kind(8) == "front"
    every = structs.replace(placement, gpu_layers=9, split=(5, 4))
    assert every.kind(8) == "whole"
    on_host = structs.replace(down, device=None)
    assert structs.replace(every, cpu_moe_layers=3, overrides=(on_host,)).kind(8) == "front"
    assert structs.replace(every, overrides=(on_host,)).kind(8) == "scattered"
    assert structs.replace(every, cpu_moe_layers=3, overrides=(on_host,)).shifts(8, 2) == [-10, 0, 10]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_fewer_matrices_on_the_host_are_faster(concurrency: int) -> None:
    question = asked("qwen3-30b-a3b", [[12288, 11900]])
    setup = question.setup("Q4_K_M", "f16", 512, (0,))
    blocks, (parts, *_) = setup.blocks, expert_parts(model("qwen3-30b-a3b"), "Q4_K_M")
    rates = []
    for count in (3, 2, 1, 0):
        one = Override(
            block=20,
            tensors=tuple(name for name, _ in parts[:count]),
            device=None,
            bytes=sum(size for _, size in setup.needs.expert_parts[20][:count]),
        )
        placement = Placement(
            gpu_layers=blocks + 1, split=(blocks + 1,), cpu_moe_layers=20, overrides=(one,) if count else ()
        )
        rates.append(setup.speed.aggregate(placement, concurrency) or 0.0)
    assert rates == sorted(rates)
    assert rates[0] > 0
    whole = Placement(gpu_layers=blocks + 1, split=(blocks + 1,), cpu_moe_layers=21)
    assert rates[0] == pytest.approx(setup.speed.aggregate(whole, concurrency), rel=1e-6)


def test_a_block_cut_between_gpus_costs_a_trip() -> None:
    question = asked("qwen3-30b-a3b", [[24564, 23900], [24564, 23900]])
    setup = question.setup("Q4_K_M", "f16", 512, (0, 1))
    units = setup.blocks + 1
    split = (units - 20, 20)
    name, size = setup.needs.expert_parts[10][0]
    cut = Placement(
        gpu_layers=units, split=split, overrides=(Override(block=units - 21, tensors=(name,), device=1, bytes=size),)
    )
    straight = setup.speed.decode_s(Placement(gpu_layers=units, split=split))
    assert straight is not None
    assert setup.speed.decode_s(cut) == pytest.approx(straight + 2 * setup.speed.device_s)
    assert setup.speed.prefill_s(cut) == setup.speed.prefill_s(Placement(gpu_layers=units, split=split))


def test_prompts_copy_or_compute_what_is_on_the_host() -> None:
    question = asked("qwen3-30b-a3b", [[12288, 11900]])
    setup = question.setup("Q4_K_M", "f16", 512, (0,))
    units = setup.blocks + 1
    name, size = setup.needs.expert_parts[20][0]
    plain = Placement(gpu_layers=units, split=(units,), cpu_moe_layers=20)
    cut = structs.replace(plain, overrides=(Override(block=20, tensors=(name,), device=None, bytes=size),))
    for tokens in (512, 8):
        less = setup.speed.prefill_s(plain, prompt_tokens=tokens)
        more = setup.speed.prefill_s(cut, prompt_tokens=tokens)
        assert less is not None
        assert more is not None
        assert more > less
    paged = setup.speed.reread_s(cut, 1 << 30, 1)
    assert paged is None or paged[0] > 0


def test_a_fixed_number_of_expert_layers_is_not_cut() -> None:
    request = Request(quant="Q4_K_M", context=8192, cpu_moe_layers=30)
    question = Question(model("qwen3-30b-a3b"), devices([[12288, 11900]]), request)
    assert all(not plan.placement.overrides for plan in question.search("Q4_K_M"))


def test_orders_of_matrices_add_up_and_are_kept() -> None:
    parts = expert_parts(model("qwen3-30b-a3b"), "Q4_K_M")
    orders = orders_of(parts)
    assert orders_of(parts) is orders
    for order in orders.from_block(3):
        assert sorted(order.blocks) == list(range(3, len(parts)))
        for count, total in enumerate(order.bytes):
            full, rest = order.at(count)
            gone = [size for block in order.blocks[:full] for _, size in parts[block]]
            gone += [size for _, size in parts[order.blocks[full]][:rest]] if rest else []
            assert (len(gone), sum(gone)) == (count, total)
        assert order.whole(order.blocks[0]) is order.whole(order.blocks[0])


def test_layouts_are_kept_until_an_exact_look() -> None:
    question = asked("qwen3-30b-a3b", [[12288, 11900]])
    setup = question.setup("Q4_K_M", "f16", 512, (0,))
    known = setup.layouts(8192)
    assert setup.layouts(8192) is known
    assert setup.layouts(4096) is not known
    setup.look(lenient=True)
    assert setup.layouts(8192) is not known
    setup.look(lenient=False)
    assert setup.layouts(8192) is known
    (plan, *_) = question.search("Q4_K_M")
    setup.holds(plan)
    assert setup.layouts(8192) is not known
