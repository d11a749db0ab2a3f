"""`launch MODEL --node A --node B`: one vLLM over several machines like this one, the commands of every node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_here.cli.output import note, print_json, print_text
from willitrun_here.errors import DoesNotRunError, UsageError

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.plan import Command
    from willitrun_estimator.request import Request
    from willitrun_here.launch.target import Target
    from willitrun_probe.machine import Machine

SHAPES = ("shell", "ray")
"""vLLM's own way, and a Ray cluster."""


def check(nodes: tuple[str, ...], shape: str, engine: str | None, *, execute: bool) -> None:
    """Refuse what does not go with nodes; raises UsageError."""
    if not nodes:
        if shape == "ray":
            raise UsageError("--as ray joins machines and no --node is given", "Add --node HEAD --node OTHER.")
        return
    if len(set(nodes)) < 2:  # noqa: PLR2004 - one machine is no several
        raise UsageError("--node names the machines of a group and there is one", "Give --node for each, head first.")
    if len(set(nodes)) < len(nodes):
        raise UsageError("--node names the same machine twice", "Give each address once.")
    if engine not in {None, "vllm"}:
        raise UsageError(f"--node is for vLLM and --engine is {engine}", "Drop one of them, or see: fleet plan.")
    if shape not in SHAPES:
        raise UsageError(f"--node has commands for a shell or Ray, not --as {shape}", "Take --as shell or --as ray.")
    if execute:
        raise UsageError("--exec starts the engine here and --node on several machines", "Run the commands on each.")


def plan(machine: Machine, spec: ModelSpec, asked: Request, nodes: tuple[str, ...]) -> Target:
    """Plan the model over that many machines like this one; raises DoesNotRunError with the reason."""
    from msgspec import structs  # noqa: PLC0415 - only for a group

    from willitrun_estimator.hardware import devices  # noqa: PLC0415
    from willitrun_estimator.vllm.across import plan_across  # noqa: PLC0415
    from willitrun_estimator.vllm_answer import reaches  # noqa: PLC0415
    from willitrun_here.ask import sheet_of  # noqa: PLC0415
    from willitrun_here.launch.flags import NEWEST  # noqa: PLC0415
    from willitrun_here.launch.target import Target  # noqa: PLC0415

    asked = structs.replace(asked, engine="vllm")
    each = devices(machine, asked, sheet_of)
    if not reaches(each):
        raise DoesNotRunError(f"vLLM has no back end for the GPUs of {machine.name}", "For others see: fleet plan.")
    found = plan_across(spec, each, asked, len(nodes))
    if found.plan is None:
        raise DoesNotRunError(f"on {len(nodes)} machines: {found.fit.message}", "Name more machines with --node.")
    return Target(plan=found.plan, spec=spec, machine=machine, flags=NEWEST)


def show(target: Target, nodes: tuple[str, ...], shape: str, *, as_json: bool) -> int:
    """Print the commands, each below the machine that it is for."""
    from willitrun_here.launch import vllm_nodes  # noqa: PLC0415 - only for a group

    make = vllm_nodes.ray if shape == "ray" else vllm_nodes.built_in
    commands: tuple[Command, ...] = make(target, nodes)
    if as_json:
        print_json({"as": shape, "nodes": nodes, "plan": target.plan, "commands": commands})
        return 0
    for command in commands:
        where, *more = command.notes
        for remark in more:
            note(f"# {remark}")
        print_text(f"# {where}\n{command.shell}")
    return 0
