from __future__ import annotations

import shlex
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from willitrun_estimator.request import Request
from willitrun_here.fleet.cluster import Node, partition, rpc_group, splits, vllm_groups
from willitrun_here.fleet.cluster_commands import llama_rpc, vllm_native, vllm_on_ray
from willitrun_probe.machine import Link


def node(name, machine, address=None):
    return Node(agent_id=str(uuid.uuid4()), name=name, address=address or name, machine=machine)


def nvlinked(machine):
    links = (Link(kind="nvlink", peer="x", bytes_per_s=450e9),)
    return replace(machine, gpus=tuple(replace(gpu, links=links) for gpu in machine.gpus))


@pytest.fixture
def eights(make_machine):
    return [
        node(f"n{number}", nvlinked(make_machine(f"n{number}", gpus=8, total=80, engines=(("vllm", "0.11.0"),))), f"10.0.0.{number}")  # noqa: E501
        for number in (1, 2, 3)
    ]  # fmt: skip


def test_like_machines_form_the_smallest_group_tensor_inside_pipeline_across(eights, make_spec, make_planner):
    groups, reasons = vllm_groups(eights, make_spec(layers=61), Request(), make_planner(1000))
    (group,) = groups
    assert (len(group.nodes), group.tensor_parallel, group.pipeline_parallel) == (2, 8, 2)
    assert reasons == []


def test_the_native_commands_are_complete_for_every_node(eights, make_spec, make_planner):
    spec = make_spec(layers=61)
    (group,), _ = vllm_groups(eights, spec, Request(), make_planner(1000))
    plan = vllm_native(group, spec)
    head, worker = (shlex.split(command.shell) for command in plan.commands)
    assert [command.role for command in plan.commands] == ["head", "worker"]
    for rank, words in enumerate((head, worker)):
        assert words[0] == f"VLLM_HOST_IP=10.0.0.{rank + 1}"
        assert words[1] == "VLLM_PP_LAYER_PARTITION=31,30"
        assert words[2:4] == ["vllm", "serve"]
        options = dict(zip(words, words[1:], strict=False))  # noqa: RUF007
        assert options["--tensor-parallel-size"] == "8"
        assert options["--pipeline-parallel-size"] == "2"
        assert (options["--nnodes"], options["--node-rank"], options["--master-addr"]) == ("2", str(rank), "10.0.0.1")
    assert ("--headless" in head, "--headless" in worker) == (False, True)


def test_the_ray_commands_start_the_cluster_and_then_serve(eights, make_spec, make_planner):
    (group,), _ = vllm_groups(eights, make_spec(), Request(), make_planner(1000))
    plan = vllm_on_ray(group, make_spec())
    shells = [command.shell for command in plan.commands]
    assert shells[0] == "VLLM_HOST_IP=10.0.0.1 ray start --head --node-ip-address=10.0.0.1 --port=6379 --num-gpus=8"
    assert (
        shells[1] == "VLLM_HOST_IP=10.0.0.2 ray start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2 --num-gpus=8"
    )
    assert shells[2].endswith("--tensor-parallel-size 8 --pipeline-parallel-size 2 --distributed-executor-backend ray")


def test_machines_that_differ_in_driver_engine_or_gpus_never_share_a_vllm_group(make_machine, make_spec, make_planner):
    nodes = [
        node("a", make_machine("a", gpus=4, total=80)),
        node("b", make_machine("b", gpus=4, total=80, driver="560.1")),
        node("c", make_machine("c", gpus=4, total=80, engines=(("vllm", "0.11.0"),))),
        node("d", make_machine("d", gpus=2, total=80)),
        node("e", make_machine("e", gpus=4, total=80, vendor="amd", model="AMD Instinct MI300X")),
    ]
    groups, reasons = vllm_groups(nodes, make_spec(), Request(), make_planner(500))
    assert groups == []
    assert len(reasons) == 5
    assert all("no second machine like it" in reason for reason in reasons)


def test_without_nvlink_pipeline_is_used_inside_as_well(make_machine, make_spec, make_planner):
    nodes = [node(name, make_machine(name, gpus=4, total=24)) for name in ("a", "b")]
    (group,), _ = vllm_groups(nodes, make_spec(), Request(), make_planner(150))
    assert (group.tensor_parallel, group.pipeline_parallel) == (1, 8)


@pytest.mark.parametrize(("heads", "kv_heads", "gpus", "size"), [(32, 8, 8, 8), (40, 8, 8, 8), (28, 4, 8, 4), (36, 4, 6, 2), (9, 3, 4, 1)])  # fmt: skip  # noqa: E501
def test_heads_must_divide(make_spec, heads, kv_heads, gpus, size):
    spec = make_spec(heads=heads, kv_heads=kv_heads)
    assert splits(spec, gpus, linked=True) == size
    assert splits(spec, gpus, linked=False) == 1


def test_more_stages_than_layers_are_refused(make_machine, make_spec, make_planner):
    nodes = [node(name, make_machine(name, gpus=8, total=24)) for name in ("a", "b")]
    groups, (reason,) = vllm_groups(nodes, make_spec(layers=12), Request(), make_planner(300))
    assert groups == []
    assert "16 pipeline stages are more than its 12 layers" in reason


@given(st.integers(1, 200), st.integers(1, 64))
def test_layers_are_spread_evenly_and_all(layers, stages):
    shares = partition(layers, stages)
    assert sum(shares) == layers
    assert len(shares) == stages
    assert max(shares) - min(shares) <= 1


def test_mixed_machines_join_over_rpc_in_llama_cpps_device_order(make_machine, make_spec, make_planner):
    nodes = [
        node("big", make_machine("big", gpus=2, total=24, ram=256, ram_free=200), "10.0.0.1"),
        node("amd", make_machine("amd", gpus=1, total=32, vendor="amd", model="AMD Instinct MI100"), "10.0.0.2"),
        node("old", make_machine("old", gpus=1, total=8), "10.0.0.3"),
    ]
    group = rpc_group(nodes, make_spec(), Request(), make_planner(70))
    plan = llama_rpc(group)
    assert plan.machines == ("amd", "big")
    helper, head = plan.commands
    assert (helper.machine, helper.shell) == ("amd", "ggml-rpc-server -H 10.0.0.2 -p 50052 -c")
    assert head.machine == "big"
    assert head.shell.endswith("--rpc 10.0.0.2:50052")


def test_why_there_is_no_group_is_said_with_numbers(make_machine, make_spec, make_planner):
    nodes = [node(name, make_machine(name)) for name in ("a", "b")]
    assert "needs" in rpc_group(nodes, make_spec(), Request(), make_planner(500))
    assert "no second machine" in rpc_group(nodes[:1], make_spec(), Request(), make_planner(500))
    _, reasons = vllm_groups(nodes, make_spec(), Request(quant="impossible"), make_planner(30))
    assert reasons == ["vLLM on 2x (1x NVIDIA GeForce RTX 3090): no such quantization; take another"]
