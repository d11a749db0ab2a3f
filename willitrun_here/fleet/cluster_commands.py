"""The commands of a plan over several machines, complete for every node.

Flags: vLLM's multi-node serving (https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html), `ray start`
(https://docs.ray.io/en/latest/cluster/cli.html), llama.cpp's RPC back end (tools/rpc/README.md of llama.cpp).
"""

from __future__ import annotations

import shlex

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.plan import Plan
from willitrun_here.fleet.cluster import Grouped, GroupPlan, Launcher, Node, NodeCommand, partition, usable_gpus

RAY_PORT = 6379
RPC_PORT = 50052


def vllm_native(group: Grouped, spec: ModelSpec) -> GroupPlan:
    """Write vLLM's own multi-node commands: one `vllm serve` a machine."""
    serve, environment = _vllm_serve(group, spec)
    head = group.nodes[0]
    commands = []
    for rank, node in enumerate(group.nodes):
        words = [*serve, "--nnodes", str(len(group.nodes)), "--node-rank", str(rank), "--master-addr", head.address]
        words += ["--headless"] if rank else []
        line = shlex.join([f"VLLM_HOST_IP={node.address}", *environment, *words])
        commands.append(NodeCommand(machine=node.name, role="worker" if rank else "head", shell=line))
    notes = (
        "Traffic between the machines is neither encrypted nor authenticated: a private network only.",
        "Every machine needs the same image, the model under the same name, and the same vLLM.",
    )
    return _group_plan("vllm", group, tuple(commands), notes)


def vllm_on_ray(group: Grouped, spec: ModelSpec) -> GroupPlan:
    """Write the commands for a Ray cluster made of these machines."""
    serve, environment = _vllm_serve(group, spec)
    head, *others = group.nodes
    start = ["ray", "start", "--head", f"--node-ip-address={head.address}", f"--port={RAY_PORT}", _ray_gpus(head)]
    commands = [NodeCommand(machine=head.name, role="head", shell=shlex.join([f"VLLM_HOST_IP={head.address}", *start]))]
    for node in others:
        join = ["ray", "start", f"--address={head.address}:{RAY_PORT}", f"--node-ip-address={node.address}"]
        line = shlex.join([f"VLLM_HOST_IP={node.address}", *join, _ray_gpus(node)])
        commands.append(NodeCommand(machine=node.name, role="worker", shell=line))
    line = shlex.join([*environment, *serve, "--distributed-executor-backend", "ray"])
    commands.append(NodeCommand(machine=head.name, role="head", shell=line))
    notes = (
        "Type the last command when `ray status` shows all machines.",
        "Ray must be in the image beside vLLM; anybody who reaches its ports can run programs: a private network only.",
    )
    return _group_plan("vllm-on-ray", group, tuple(commands), notes)


def llama_rpc(group: Grouped) -> GroupPlan:
    """Write llama.cpp's RPC commands: a server on every helper, then llama-server on the head.

    llama.cpp lists RPC devices first, in `--rpc` order, then its own; the split follows that order.
    """
    *helpers, head = group.nodes
    plan = _plan(group)
    commands = [
        NodeCommand(
            machine=node.name,
            role="helper",
            shell=shlex.join(["ggml-rpc-server", "-H", node.address, "-p", str(RPC_PORT), "-c"]),
        )
        for node in helpers
    ]
    known = group.answer.commands.get("llama.cpp")
    serve = list(known.argv) if known is not None else ["llama-server", "-c", str(plan.context_tokens), "-ngl", "all"]
    serve += ["--rpc", ",".join(f"{node.address}:{RPC_PORT}" for node in helpers)]
    if known is None and plan.tensor_split:
        serve += ["-ts", ",".join(f"{share:g}" for share in plan.tensor_split)]
    environment = [f"{name}={value}" for name, value in known.env.items() if "VISIBLE" not in name] if known else []
    commands.append(NodeCommand(machine=head.name, role="head", shell=shlex.join([*environment, *serve])))
    notes = (
        "llama.cpp calls its RPC back end a proof of concept, never to be opened to a network that is not trusted.",
        "All machines need the same llama.cpp build with GGML_RPC=ON.",
        "Speed falls with the network between the machines; it is not in the estimate.",
    )
    return _group_plan("llama.cpp-rpc", group, tuple(commands), notes)


def _vllm_serve(group: Grouped, spec: ModelSpec) -> tuple[list[str], list[str]]:
    plan = _plan(group)
    known = group.answer.commands.get("vllm")
    words = _without_parallel(list(known.argv)) if known is not None else _plain_serve(plan, spec)
    words += ["--tensor-parallel-size", str(group.tensor_parallel)]
    words += ["--pipeline-parallel-size", str(group.pipeline_parallel)]
    environment = []
    if spec.block_count % group.pipeline_parallel:
        shares = ",".join(str(share) for share in partition(spec.block_count, group.pipeline_parallel))
        environment.append(f"VLLM_PP_LAYER_PARTITION={shares}")
    return words, environment


def _plain_serve(plan: Plan, spec: ModelSpec) -> list[str]:
    words = ["vllm", "serve", spec.hf_id or spec.name, "--max-model-len", str(plan.context_tokens)]
    if plan.gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", f"{plan.gpu_memory_utilization:g}"]
    if plan.max_num_seqs is not None:
        words += ["--max-num-seqs", str(plan.max_num_seqs)]
    return words


def _without_parallel(words: list[str]) -> list[str]:
    """Drop the parallel sizes of the single-machine command, with their values."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"):
            skip = True
        elif not word.startswith(("--tensor-parallel-size=", "--pipeline-parallel-size=")):
            kept.append(word)
    return kept


def _ray_gpus(node: Node) -> str:
    return f"--num-gpus={len(usable_gpus(node.machine))}"


def _plan(group: Grouped) -> Plan:
    assert group.answer.plan is not None  # noqa: S101 - a group is made only around a plan
    return group.answer.plan


def _group_plan(
    launcher: Launcher, group: Grouped, commands: tuple[NodeCommand, ...], notes: tuple[str, ...]
) -> GroupPlan:
    plan, speed = _plan(group), group.answer.speed
    decode = speed.decode_tokens_per_s if speed is not None else None
    return GroupPlan(
        launcher=launcher,
        machines=tuple(node.name for node in group.nodes),
        gpus=sum(len(usable_gpus(node.machine)) for node in group.nodes),
        tensor_parallel=group.tensor_parallel,
        pipeline_parallel=group.pipeline_parallel,
        quant=plan.quant,
        context_tokens=plan.context_tokens,
        fit=group.answer.fit.status,
        message=group.answer.fit.message,
        decode_tokens_per_s=None if decode is None else decode.expected,
        commands=commands,
        checks=group.checks,
        notes=notes,
    )
