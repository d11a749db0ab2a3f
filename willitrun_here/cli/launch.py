"""`launch MODEL`: the tuned command, as a shell line or a file; `--exec` starts it and compares."""

from __future__ import annotations

from typing import Any

import click

from willitrun_here.cli import launch_nodes
from willitrun_here.cli.basic_options import JSON, MACHINE
from willitrun_here.cli.options import question
from willitrun_here.cli.output import note, print_json, print_text
from willitrun_here.cli.question import request
from willitrun_here.errors import DoesNotRunError, UsageError

SHAPES = ("shell", "compose", "systemd", "kubernetes", "modelfile", "docker", "ray")


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("model")
@MACHINE
@question
@click.option("--as", "shape", type=click.Choice(SHAPES), default="shell", help="What to print.")
@click.option("--exec", "execute", is_flag=True, help="Start it, watch it load, compare with the plan.")
@click.option("--check-only", is_flag=True, help="With --exec: stop the engine after the comparison.")
@click.option("--host", default="127.0.0.1", help="Address the server listens on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, help="Port the server listens on.")
@click.option(
    "--node",
    "nodes",
    metavar="HOST",
    multiple=True,
    help="vLLM over several machines like this one: the address of each, head first; --as ray for a Ray cluster.",
)
@JSON
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def launch(
    model: str,
    machine: str,
    shape: str,
    execute: bool,
    check_only: bool,
    host: str,
    port: int,
    nodes: tuple[str, ...],
    as_json: bool,
    extra: tuple[str, ...],
    **options: Any,
) -> int:
    """Print the command that runs MODEL best on this machine; what follows -- goes to the engine unchanged."""
    asked = request(options)
    if check_only and not execute:
        raise UsageError("--check-only belongs to --exec", "Add --exec.")
    if execute and machine != "here":
        raise UsageError(f"--exec starts the engine here and --machine is {machine!r}", "Drop one of them.")
    launch_nodes.check(nodes, shape, asked.engine, execute=execute)
    from msgspec import structs  # noqa: PLC0415

    from willitrun_estimator.answer import Section  # noqa: PLC0415
    from willitrun_here.ask import ask, open_model, target_of  # noqa: PLC0415
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    if execute and shape != "shell":
        raise UsageError(f"--exec starts the engine and --as {shape} prints a file", "Drop one of them.")
    if shape == "modelfile" and asked.engine is None:
        asked = structs.replace(asked, engine="ollama")
    where = open_machine(machine)
    spec = open_model(model)
    if nodes:
        group = structs.replace(launch_nodes.plan(where, spec, asked, nodes), host=host, port=port, extra=extra)
        return launch_nodes.show(group, nodes, shape, as_json=as_json)
    wanted: frozenset[Section] = frozenset({"plan", "speed", "context"})
    result = ask(where, spec, asked, sections=wanted, commands=False)
    if result.plan is None or result.fit.status == "too-large":
        raise DoesNotRunError(result.fit.message, "; ".join(one.message for one in result.improvements))
    target = structs.replace(target_of(result, spec, where, extra=extra), host=host, port=port)
    if execute:
        from willitrun_here.launch.run import execute as execute_plan  # noqa: PLC0415

        return execute_plan(target, result, asked, check_only=check_only, as_json=as_json)
    return show(target, shape, as_json=as_json)


def commands_of(target: Any) -> dict[str, Any]:
    """Return the plan's commands; those for an installed vLLM are checked by its own parser."""
    if target.plan.engine == "vllm":
        from willitrun_here.launch import vllm  # noqa: PLC0415

        return dict(vllm.commands(target, installed=vllm.checked(target)))
    from willitrun_here.ask import all_commands  # noqa: PLC0415

    return dict(all_commands(target))


def show(target: Any, shape: str, *, as_json: bool) -> int:
    """Print the command or the file of a plan."""
    from willitrun_here.launch import docker, kubernetes, ollama, systemd  # noqa: PLC0415

    files = {
        "compose": docker.compose,
        "systemd": systemd.unit,
        "kubernetes": kubernetes.manifest,
        "modelfile": ollama.modelfile,
    }
    plan = target.plan
    if plan.engine == "vllm" and shape == "modelfile":
        raise UsageError("a Modelfile is ollama's and the plan is for vllm", "Add --engine ollama.")
    if plan.backend == "metal" and shape in {"docker", "compose", "kubernetes"}:
        raise UsageError(f"--as {shape}: Metal cannot be reached from a container", "Take --as shell.")
    if shape in files:
        if plan.engine == "vllm":
            from willitrun_here.launch import vllm, vllm_documents  # noqa: PLC0415

            remarks, text = vllm.remarks(target), vllm_documents.document(target, shape)
        else:
            remarks, text = commands_of(target)[plan.engine].notes, files[shape](target)
        for remark in remarks:
            note(f"# {remark}")
        if as_json:
            print_json({"as": shape, "text": text})
        else:
            print_text(text)
        return 0
    commands = commands_of(target)
    built = commands["docker" if shape == "docker" else plan.engine]
    if as_json:
        print_json(built)
    else:
        for text in built.notes:
            note(f"# {text}")
        print_text(built.shell)
    return 0
