"""The estimator as the fleet uses it: on facts of another machine, without ids or programs of this one."""

from __future__ import annotations

import hashlib
from itertools import islice

from msgspec import structs

from willitrun_catalog import shipped
from willitrun_catalog.find import find_model
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quant import ladder
from willitrun_estimator.answer import Section, answer
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here import __version__
from willitrun_here.ask import all_commands, sheet_of
from willitrun_probe.machine import Gpu, Machine

ON_GPU = frozenset({"comfortable", "fits", "tight"})
RUNGS = frozenset({"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ2_M"})
"""The steps of the ladder that are tried: about a bit apart, as each costs a search."""
WORTH = "Q4_K_M"
"""Below this, more GPUs are tried before a smaller quantization, and it is the first one tried with host memory."""
SECTIONS: frozenset[Section] = frozenset({"plan", "speed", "score"})


def plan(machine: Machine, spec: ModelSpec, request: Request) -> Answer:
    """Answer one question by the whole search, with the command of the winning plan for the newest engine known."""
    return _with_command(answer(machine, spec, request, sheet_of, sections=SECTIONS), machine, spec)


def screen(machine: Machine, spec: ModelSpec, request: Request) -> Answer:
    """Answer fast: the best quantization that fits on one GPU, else on all, else a plan with layers in host memory.

    The whole search weighs every quantization, cache type and set of GPUs against each other, which is too slow for
    tens of shapes at once; both agree on whether a model runs. Questions that fix a quantization or an engine, ask
    for several users or for a machine without GPUs go through the whole search.
    """
    gpus = [gpu for gpu in machine.gpus if gpu.visible and gpu.usable]
    if request.quant or spec.quant or request.engine or request.concurrency > 1 or not gpus:
        return plan(machine, spec, request)
    quants = [quant for quant in ladder(spec) if quant in RUNGS] or list(ladder(spec))
    alone = _freest_alone(machine, gpus)
    found = _fitting(alone or machine, spec, request, quants[:1])
    if found is None:
        smallest = _answer(machine, spec, request, quants[-1])
        if smallest.fit.status == "too-large":
            return smallest
        if smallest.fit.status in ON_GPU:
            good = quants[1 : _position(quants, WORTH) + 1]
            found = _fitting(alone, spec, request, good) if alone is not None else None
            found = found or _fitting(machine, spec, request, quants[:-1]) or smallest
        else:
            found = _answer(machine, spec, request, WORTH) if WORTH in quants else smallest
            found = smallest if found.fit.status == "too-large" else found
    decode = found.speed.decode_tokens_per_s if found.speed is not None else None
    if request.min_decode is not None and decode is not None and decode.expected < request.min_decode:
        return plan(machine, spec, request)
    return _with_command(found, machine, spec)


def _freest_alone(machine: Machine, gpus: list[Gpu]) -> Machine | None:
    """Return the machine with the freest of several equal GPUs alone; None where they are not several or not equal."""
    if len(gpus) == 1 or len({(gpu.name, gpu.memory_total_bytes) for gpu in gpus}) > 1:
        return None
    freest = max(gpus, key=lambda gpu: gpu.memory_free_bytes or 0)
    shown = tuple(gpu if gpu is freest else structs.replace(gpu, visible=False) for gpu in machine.gpus)
    return structs.replace(machine, gpus=shown)


def _fitting(machine: Machine, spec: ModelSpec, request: Request, quants: list[str]) -> Answer | None:
    """Find the first quantization of a ladder, best first, that fits on the GPUs; fitting is monotone, so by halves."""
    best: Answer | None = None
    low, high = 0, len(quants)
    while low < high:
        middle = (low + high) // 2
        result = _answer(machine, spec, request, quants[middle])
        if result.plan is not None and result.fit.status in ON_GPU:
            best, high = result, middle
        else:
            low = middle + 1
    return best


def _position(quants: list[str], quant: str) -> int:
    return quants.index(quant) if quant in quants else len(quants)


def _answer(machine: Machine, spec: ModelSpec, request: Request, quant: str) -> Answer:
    asked = structs.replace(request, quant=quant, engine="llama.cpp")
    return answer(machine, spec, asked, sheet_of, sections=SECTIONS)


def _with_command(result: Answer, machine: Machine, spec: ModelSpec) -> Answer:
    from willitrun_here.launch.flags import NEWEST  # noqa: PLC0415 - only where a plan was found
    from willitrun_here.launch.target import Target  # noqa: PLC0415

    if result.plan is None or result.fit.status == "too-large":
        return result
    target = Target(plan=result.plan, spec=spec, machine=machine, flags=NEWEST)
    # The engine that was planned for comes first; the others would be translated for nobody.
    return structs.replace(result, commands=dict(islice(all_commands(target), 1)))


def find_catalog_model(text: str) -> ModelSpec:
    """Return the catalog model a name means; raises CatalogError. Never opens a file or an address."""
    return find_model(text).spec


def model_names() -> tuple[str, ...]:
    """Return the names of the catalog."""
    return shipped.model_names()


def catalog_version() -> str:
    """Return what stored plans depend on beside machine, model and question: this program and its catalog."""
    return f"{__version__}-{hashlib.sha256(shipped.COMPILED.read_bytes()).hexdigest()[:16]}"
