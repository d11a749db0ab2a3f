"""Plans over several machines: more room, tensor parallel inside, no more GPUs than they are worth."""

from __future__ import annotations

import pytest

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.across import plan_across
from willitrun_estimator.vllm.plan import vllm_plan

H100, GB10 = "NVIDIA H100 SXM5 80 GB", "NVIDIA GB10"


def test_what_no_single_machine_holds_spans_two(machine, model):
    spec, node = model("deepseek-v3.1"), machine(H100, 8, peer_bytes_per_s=450e9)
    assert vllm_plan(spec, node, Request()).plan is None
    plan = plan_across(spec, node, Request(), 2).plan
    assert (plan.tensor_parallel, plan.pipeline_parallel, plan.data_parallel) == (8, 2, 1)
    assert len(plan.gpu_uuids) == 16
    assert plan.gpu_uuids[:8] == plan.gpu_uuids[8:]


def test_stages_are_a_multiple_of_the_machines(machine, model):
    plan = plan_across(model("qwen2.5-14b"), machine("NVIDIA GeForce RTX 3090", 3), Request(quant="awq"), 3).plan
    assert plan.pipeline_parallel % 3 == 0


def test_small_models_do_not_take_every_gpu_of_every_machine(machine, model):
    node = machine("NVIDIA GeForce RTX 4090", 4, peer_bytes_per_s=16e9)
    plan = plan_across(model("qwen3-0.6b"), node, Request(quant="bf16", mode="interactive"), 2).plan
    assert plan.tensor_parallel * plan.pipeline_parallel < 8


def test_a_fixed_degree_is_kept_and_a_refusal_is_said(machine, model):
    node = machine(H100, 4, peer_bytes_per_s=450e9)
    assert plan_across(model("llama-3.3-70b"), node, Request(tensor_parallel=2), 2).plan.tensor_parallel == 2
    assert "needs" in plan_across(model("deepseek-v3.1"), machine(GB10), Request(), 2).fit.message
    assert plan_across(model("llama-3.3-70b"), node, Request(tensor_parallel=16), 2).plan is None
    with pytest.raises(EstimatorError, match="1 machines"):
        plan_across(model("llama-3.3-70b"), node, Request(), 1)
