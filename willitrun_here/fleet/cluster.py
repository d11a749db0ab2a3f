"""A plan over several machines for a model that no single one holds: groups of like machines, then mixed ones.

Rules: tensor parallel inside a machine, pipeline parallel across
(https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html); without NVLink or xGMI pipeline inside as well; the
same tensor parallel size in every stage, so a vLLM group has equal GPU counts; one driver major and one engine version
in a group. Mixed machines join over llama.cpp's RPC. Nothing is started here: commands are printed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quant import ladder
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.parallel import indivisible
from willitrun_here.fleet.where import Planner
from willitrun_probe.machine import Gpu, Machine

Launcher = Literal["vllm", "vllm-on-ray", "llama.cpp-rpc"]
MOST_RPC_GPUS = 15
"""llama.cpp schedules over 16 back ends at most, the CPU among them (GGML_SCHED_MAX_BACKENDS)."""
RPC_QUANT = "Q4_K_M"
"""Planned for over RPC where none is asked for: searching every quantization over so many GPUs takes seconds each."""
LARGEST_GROUP = 16
"""Machines in one group; beyond it pipeline bubbles and network faults make a scheduler's work of it."""


class Node(Struct, frozen=True, kw_only=True):
    """A machine that may join, with the address others reach it under."""

    agent_id: str
    name: str
    address: str
    machine: Machine


class NodeCommand(Struct, frozen=True, kw_only=True):
    """What to type on one machine, in the order of the list."""

    machine: str
    role: Literal["head", "worker", "helper"]
    shell: str


class GroupPlan(Struct, frozen=True, kw_only=True):
    """One way to run the model over several machines."""

    launcher: Launcher
    machines: tuple[str, ...]
    gpus: int
    tensor_parallel: int
    pipeline_parallel: int
    quant: str
    context_tokens: int
    fit: str
    message: str
    decode_tokens_per_s: float | None
    """As if all GPUs sat in one machine: an upper bound, the network is not in it."""
    commands: tuple[NodeCommand, ...]
    checks: tuple[str, ...]
    """What was checked before these commands were printed."""
    notes: tuple[str, ...]
    """What could not be checked from here."""


class ClusterPlan(Struct, frozen=True, kw_only=True):
    """The answer to `fleet plan`."""

    schema: str = "willitrun.cluster/1"
    model: str
    single: tuple[str, ...]
    """Machines that run the model alone; then no group is needed."""
    groups: tuple[GroupPlan, ...]
    reasons: tuple[str, ...]
    """Why groups that were looked at do not run it."""


class Grouped(Struct, frozen=True, kw_only=True):
    """A group whose joint plan fits, before its commands are written."""

    nodes: tuple[Node, ...]
    answer: Answer
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    checks: tuple[str, ...] = ()


def vllm_groups(
    nodes: Iterable[Node], spec: ModelSpec, request: Request, planner: Planner
) -> tuple[list[Grouped], list[str]]:
    """Return, for every set of like machines, the smallest group that runs the model, and why others do not."""
    alike: dict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in nodes:
        if usable_gpus(node.machine):
            alike[_likeness(node.machine)].append(node)
    groups, reasons = [], []
    for members in sorted(alike.values(), key=len, reverse=True):
        label = f"{len(members)}x {_words(members[0].machine)}"
        if len(members) < 2:  # noqa: PLR2004 - a group is at least two
            reasons.append(f"vLLM on {label}: no second machine like it (same GPUs, driver major and vLLM version)")
            continue
        found = _smallest(members, spec, request, planner)
        if isinstance(found, str):
            reasons.append(f"vLLM on {label}: {found}")
        else:
            groups.append(found)
    return groups, reasons


def rpc_group(nodes: Iterable[Node], spec: ModelSpec, request: Request, planner: Planner) -> Grouped | str:
    """Return the smallest group over llama.cpp's RPC, largest machines first, or why there is none.

    The machine with the most RAM leads; helpers come first in llama.cpp's device order, then the leader's own GPUs.
    """
    ranked = sorted(nodes, key=lambda node: (-vram_bytes(node.machine), node.name))[:LARGEST_GROUP]
    if len(ranked) < 2:  # noqa: PLR2004 - a group is at least two
        return "llama.cpp over RPC: there is no second machine"
    reason = "llama.cpp over RPC: nothing was found"
    for count in range(2, len(ranked) + 1):
        head = max(ranked[:count], key=lambda node: node.machine.memory.available_bytes or 0)
        helpers = [node for node in ranked[:count] if node is not head and usable_gpus(node.machine)]
        if not helpers:
            continue
        joint = joined(head, [*helpers, head])
        if len(joint.gpus) > MOST_RPC_GPUS:
            break
        quant = request.quant or (RPC_QUANT if RPC_QUANT in ladder(spec) else None)
        asked = replace(request, engine="llama.cpp", quant=quant, tensor_parallel=None, pipeline_parallel=None)
        answer = _asked(planner, joint, spec, asked)
        if isinstance(answer, str):
            reason = f"llama.cpp over RPC on {count} machines: {answer}"
            continue
        if answer.plan is not None and answer.fit.status in ("comfortable", "fits", "tight"):
            return Grouped(nodes=(*helpers, head), answer=answer, checks=("the whole model fits on the joined GPUs",))
        reason = f"llama.cpp over RPC on {count} machines: {answer.fit.message}"
    return reason


def joined(head: Node, order: Sequence[Node]) -> Machine:
    """Return one machine with the usable GPUs of all nodes in order, and the head's processor and memory.

    Remote GPUs take the head's vendor: over RPC the head's build reaches them, whatever they are.
    """
    vendor = next((gpu.vendor for node in (head, *order) for gpu in usable_gpus(node.machine)), "nvidia")
    gpus = [
        replace(gpu, vendor=vendor, index=None, uuid=None, parent_uuid=None, pci_address=None, numa_node=None)
        for node in order
        for gpu in usable_gpus(node.machine)
    ]
    numbered = tuple(replace(gpu, index=number) for number, gpu in enumerate(gpus))
    return replace(head.machine, name=f"{len(order)} machines", gpus=numbered, findings=())


def usable_gpus(machine: Machine) -> list[Gpu]:
    """Return the GPUs an engine may be given."""
    return [gpu for gpu in machine.gpus if gpu.visible and gpu.usable and not gpu.unified]


def vram_bytes(machine: Machine) -> int:
    """Return the free GPU memory of a machine."""
    return sum(gpu.memory_free_bytes or 0 for gpu in usable_gpus(machine))


def splits(spec: ModelSpec, gpus: int, *, linked: bool) -> int:
    """Return the tensor-parallel size inside a machine: all GPUs where links and heads allow it, else a divisor."""
    if not linked:
        return 1
    shape = format_of("bf16")
    sizes = [size for size in range(gpus, 0, -1) if gpus % size == 0]
    return next((size for size in sizes if indivisible(spec, shape, size) is None), 1)


def partition(layers: int, stages: int) -> tuple[int, ...]:
    """Spread layers over stages as evenly as whole layers allow; the last stages also hold the head and get less."""
    share, rest = divmod(layers, stages)
    return tuple(share + (stage < rest) for stage in range(stages))


def _smallest(members: list[Node], spec: ModelSpec, request: Request, planner: Planner) -> Grouped | str:
    gpus = usable_gpus(members[0].machine)
    linked = any(link.kind in ("nvlink", "xgmi") for gpu in gpus for link in gpu.links)
    tensor = splits(spec, len(gpus), linked=linked)
    ranked = sorted(members, key=lambda node: (-vram_bytes(node.machine), node.name))
    reason = "nothing was found"
    for count in range(2, min(len(ranked), LARGEST_GROUP) + 1):
        nodes = tuple(ranked[:count])
        stages = count * len(gpus) // tensor
        if stages > spec.block_count:
            return f"{stages} pipeline stages are more than its {spec.block_count} layers"
        asked = replace(request, engine="vllm", tensor_parallel=tensor, pipeline_parallel=stages)
        answer = _asked(planner, joined(nodes[0], nodes), spec, asked)
        if isinstance(answer, str):
            reason = answer
        elif answer.plan is not None and answer.plan.engine == "vllm" and answer.fit.status != "too-large":
            checks = (
                f"heads and vocabulary divide by tensor parallel {tensor}",
                f"every pipeline stage has tensor parallel {tensor}",
                f"{_words(nodes[0].machine)} on all {count} machines, {_software(nodes[0].machine)}",
            )
            return Grouped(nodes=nodes, answer=answer, tensor_parallel=tensor, pipeline_parallel=stages, checks=checks)
        else:
            reason = answer.fit.message
    return reason


def _asked(planner: Planner, machine: Machine, spec: ModelSpec, request: Request) -> Answer | str:
    try:
        return planner(machine, spec, request)
    except EstimatorError as error:
        return f"{error.message}; {error.advice}" if error.advice else error.message


def _likeness(machine: Machine) -> tuple[object, ...]:
    gpus = usable_gpus(machine)
    kinds = tuple(sorted((gpu.vendor, gpu.pci_id or gpu.name, gpu.memory_total_bytes or 0) for gpu in gpus))
    return (kinds, _driver_major(machine), _vllm(machine))


def _driver_major(machine: Machine) -> str | None:
    return next((gpu.driver_version.split(".")[0] for gpu in machine.gpus if gpu.driver_version), None)


def _vllm(machine: Machine) -> str | None:
    return next((engine.version for engine in machine.engines if engine.name == "vllm"), None)


def _words(machine: Machine) -> str:
    gpus = usable_gpus(machine)
    names = sorted({gpu.name for gpu in gpus})
    return f"({len(gpus)}x {' + '.join(names)})" if gpus else "(no GPU)"


def _software(machine: Machine) -> str:
    driver, engine = _driver_major(machine), _vllm(machine)
    words = [f"driver {driver}" if driver else "driver unknown", f"vLLM {engine}" if engine else "vLLM not seen"]
    return ", ".join(words)
