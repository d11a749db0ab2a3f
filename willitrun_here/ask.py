"""Asking a question from end to end: open the machine and the model, answer, and add the commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.model import ModelSpec
from willitrun_estimator.answer import SECTIONS, Section, answer
from willitrun_estimator.plan import Answer, Command
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request
from willitrun_probe.machine import Gpu, Machine

if TYPE_CHECKING:
    from willitrun_estimator.calibration import Corrections
    from willitrun_here.launch.target import Target


def sheet_of(gpu: Gpu) -> Datasheet | None:
    """Look a probed GPU up: by PCI id and memory, then by name; None when no sheet describes it."""
    from willitrun_catalog.errors import UnknownGpu  # noqa: PLC0415 - only when GPUs are there
    from willitrun_catalog.find import find_datasheet  # noqa: PLC0415
    from willitrun_catalog.shipped import datasheets_by_pci_id  # noqa: PLC0415

    sheets = datasheets_by_pci_id(gpu.pci_id) if gpu.pci_id is not None else ()
    if sheets and gpu.memory_total_bytes is None:
        return sheets[0]
    if sheets:
        # One id can mean several memory sizes; the driver's figure is a little below the nominal one.
        total = gpu.memory_total_bytes or 0
        return min(sheets, key=lambda sheet: abs((sheet.memory_bytes or 0) - total))
    try:
        return find_datasheet(gpu.name, memory_bytes=gpu.memory_total_bytes)
    except UnknownGpu:
        return None


def open_model(text: str) -> ModelSpec:
    """Return the model that a MODEL argument names: a catalog name, a file, a folder, `ollama:` or `hf:`."""
    from willitrun_catalog.readers import open_model as open_any  # noqa: PLC0415

    return open_any(text)


def vllm_commands(target: Target, request: Request) -> dict[str, Command]:
    """Return vLLM's own command beside a llama.cpp plan, where vLLM has a back end and would start."""
    if target.plan.engine != "llama.cpp" or target.plan.backend not in {"cuda", "rocm"}:
        return {}
    from willitrun_estimator.errors import EstimatorError  # noqa: PLC0415 - only with such GPUs
    from willitrun_estimator.hardware import devices  # noqa: PLC0415
    from willitrun_estimator.vllm_answer import planned_for  # noqa: PLC0415
    from willitrun_here.launch import vllm  # noqa: PLC0415

    asked = Request(context=target.plan.context_tokens, mode=request.mode, workload=request.workload)
    try:
        planned = planned_for(target.spec, devices(target.machine, request, sheet_of), asked)
    except EstimatorError:
        return {}
    if planned is None or planned.plan is None:
        return {}
    return {"vllm": vllm.render(structs.replace(target, plan=planned.plan))}


def ollama_commands(target: Target, request: Request, prepared: Prepared) -> dict[str, Command]:
    """Return ollama's own command beside a llama.cpp plan: it places whole layers, so it gets a plan of its own.

    The weights, the context and the slots are those of the llama.cpp plan.
    """
    plan = target.plan
    if plan.engine != "llama.cpp" or request.cpu_moe_layers:
        return {}
    from willitrun_estimator.errors import EstimatorError  # noqa: PLC0415 - beside llama.cpp only
    from willitrun_here.launch import ollama  # noqa: PLC0415

    asked = structs.replace(
        request, engine="ollama", quant=plan.quant, context=plan.context_tokens, parallel=plan.parallel, ubatch=None
    )
    try:
        own = answer(target.machine, target.spec, asked, sheet_of, sections=frozenset({"plan"}), prepared=prepared)
    except EstimatorError:
        return {}
    if own.plan is None or own.fit.status == "too-large":
        return {}
    return {"ollama": ollama.render(structs.replace(target, plan=own.plan))}


def corrections_of(machine: Machine) -> Corrections | None:
    """Return what `calibrate` and earlier launches taught about this machine; nothing for a described one."""
    if not machine.shape_hash:
        return None
    from willitrun_here.calibrate.store import read  # noqa: PLC0415 - only for probed machines

    return read(machine.shape_hash)


def ask(
    machine: Machine,
    spec: ModelSpec,
    request: Request,
    *,
    sections: frozenset[Section] = SECTIONS,
    commands: bool = True,
) -> Answer:
    """Answer one question; the machine's own doubts join the answer's."""
    known = prepared_of(spec)
    result = answer(
        machine, spec, request, sheet_of, sections=sections, corrections=corrections_of(machine), prepared=known
    )
    return completed(result, machine, known, request, commands=commands)


def prepared_of(spec: ModelSpec) -> Prepared:
    """Return a model's sums, for questions about it to share: the catalog's were made when it was compiled."""
    from willitrun_catalog.shipped import sums_of  # noqa: PLC0415 - models of a file need no catalog

    return Prepared(spec, sums_of(spec) if spec.source == "catalog" else None)


def completed(
    result: Answer, machine: Machine, prepared: Prepared, request: Request, *, commands: bool = True
) -> Answer:
    """Add the machine's own doubts to an answer, and the commands of its plan."""
    spec = prepared.spec
    notes = tuple(f"{one.subject}: {one.reason}" for one in machine.findings)
    result = structs.replace(result, findings=(*result.findings, *notes))
    if commands and result.plan is not None and result.fit.status != "too-large":
        target = target_of(result, spec, machine)
        built = dict(all_commands(target)) | ollama_commands(target, request, prepared) | vllm_commands(target, request)
        result = structs.replace(result, commands=built)
    return result


def target_of(result: Answer, spec: ModelSpec, machine: Machine, *, extra: tuple[str, ...] = ()) -> Target:
    """Return the plan with everything a launcher needs, for the llama-server that is installed."""
    from willitrun_here.launch.flags import NEWEST, installed  # noqa: PLC0415
    from willitrun_here.launch.target import Target  # noqa: PLC0415
    from willitrun_here.places import cache_folder  # noqa: PLC0415

    assert result.plan is not None  # noqa: S101 - callers launch what can start
    program = llama_server()
    flags = NEWEST if program is None else installed(program, cache_folder())
    return Target(
        plan=result.plan, spec=spec, machine=machine, flags=flags, program=program or "llama-server", extra=extra
    )


def llama_server() -> str | None:
    """Return the installed llama-server: the one WILLITRUN_LLAMA_SERVER names, else the one on PATH."""
    import os  # noqa: PLC0415 - only when commands are wanted

    from willitrun_here.places import program  # noqa: PLC0415

    return program(os.environ.get("WILLITRUN_LLAMA_SERVER") or "llama-server")


def all_commands(target: Target) -> Iterable[tuple[str, object]]:
    """Yield the plan's own command and the same in a container."""
    from willitrun_here.launch import docker, llama_cpp, ollama  # noqa: PLC0415

    if target.plan.engine == "vllm":
        from willitrun_here.launch import vllm  # noqa: PLC0415

        yield from vllm.commands(target)
        return
    if target.plan.engine == "ollama":
        yield "ollama", ollama.render(target)
        yield "llama.cpp", llama_cpp.render(target)
    else:
        yield "llama.cpp", llama_cpp.render(target)
    if target.plan.backend != "metal":
        yield "docker", docker.render(target)
