"""The whole answer: search, then everything a reader wants to know about the winner and its rivals."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quant import FORMATS, ladder, quant_name
from willitrun_estimator import ceilings, explain, hardware
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.device import Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.found import Found, by_merit
from willitrun_estimator.improve import improvements
from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import (
    Answer,
    Context,
    Fit,
)
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.score import grade
from willitrun_estimator.sections import (
    context_of,
    curve,
    labelled,
    machine_facts,
    mode_rows,
    model_facts,
    parts,
    plan_of,
    quant_options,
    serving_of,
    setup_of,
    speed_of,
    with_options,
    workload_rows,
)
from willitrun_estimator.surpass import surpassing
from willitrun_estimator.sweep import best_of, sweep
from willitrun_probe.machine import Machine

Section = Literal[
    "plan", "speed", "context", "serving", "score", "tags", "quants", "workloads", "modes", "curve", "limits",
    "improvements",
]  # fmt: skip
SERVING_MODES = frozenset({"light-api", "scale-out"})
SECTIONS: frozenset[Section] = frozenset(Section.__args__)  # type: ignore[attr-defined]
RANKED_SECTIONS: frozenset[Section] = frozenset({"plan", "speed", "context"})


def answer(
    machine: Machine,
    spec: ModelSpec,
    request: Request,
    find: hardware.FindDatasheet,
    *,
    sections: frozenset[Section] = SECTIONS,
    corrections: Corrections | None = None,
    prepared: Prepared | None = None,
) -> Answer:
    """Answer one question about one model on one machine. Raises EstimatorError for questions without an answer.

    `find` looks a GPU's data sheet up. `sections` leaves out what is not wanted: "plan" and "speed" alone cost a
    small part of the whole. `corrections` is what was measured on this very machine, `prepared` are the model's sums
    where they are at hand.
    """
    plan_on = hardware.devices(machine, request, find)
    return answer_on(plan_on, spec, request, sections=sections, corrections=corrections, prepared=prepared)


def answer_on(
    devices: Devices,
    spec: ModelSpec,
    request: Request,
    *,
    sections: frozenset[Section] = SECTIONS,
    corrections: Corrections | None = None,
    prepared: Prepared | None = None,
    advice: bool = True,
) -> Answer:
    """Answer for devices that were already merged with their data sheets; many models share them.

    `prepared` are the model's sums where other questions share them. Without `advice` an answer that nothing starts
    does not say what would help.
    """
    question = Question(spec, devices, request, corrections=corrections, prepared=prepared)
    if asks_vllm(spec, request):
        return with_vllm(question)
    quants = quants_to_try(spec, request, devices)
    per_quant = searched(question, quants, every="quants" in sections)
    best, ranked = winner(question, quants, per_quant)
    if best is None:
        return too_large(question, quants, advice=advice)
    result = assembled(question, best, ranked, per_quant, sections)
    if request.engine is None and request.mode in SERVING_MODES:
        return compared(question, result)
    return suggested(question, result) if request.engine is None and "improvements" in sections else result


def suggested(question: Question, result: Answer) -> Answer:
    """Beside a llama.cpp plan for one user, say when vLLM would be faster on this machine, and by how much."""
    if not question.devices.gpus:
        return result
    from willitrun_estimator import vllm_answer  # noqa: PLC0415 - a third of the estimator, for GPUs alone

    found = vllm_answer.worth_changing(question, result.serving)
    return structs.replace(result, improvements=(*result.improvements, *found))


def with_vllm(question: Question) -> Answer:
    """Answer for vLLM, whatever llama.cpp could do. Raises EstimatorError where vLLM has no back end."""
    from willitrun_estimator import vllm_answer  # noqa: PLC0415 - as in `suggested`

    planned = vllm_answer.planned_for(question.spec, question.devices, question.request)
    if planned is None:
        raise EstimatorError(
            "vLLM needs NVIDIA or AMD GPUs and none can be used here", "Take --engine llama.cpp, or leave --engine out."
        )
    question.weights(planned.plan.quant if planned.plan is not None else question.request.quant or "BF16")
    return vllm_answer.vllm_answer(
        question, planned, model_facts(question.spec, question), machine_facts(question.devices)
    )


def compared(question: Question, result: Answer) -> Answer:
    """For a serving mode, answer with the engine that serves it better and say by how much."""
    from willitrun_estimator import vllm_answer  # noqa: PLC0415 - as in `suggested`

    better, choice = vllm_answer.better_engine(
        question,
        result.serving,
        lambda planned: vllm_answer.vllm_answer(question, planned, result.model, result.machine),
    )
    if choice is None:
        return result
    chosen = result if better is None else better
    return structs.replace(
        chosen,
        engine_choice=choice,
        quants=result.quants + (chosen.quants if better is not None else ()),
        modes=result.modes,
        workloads=result.workloads,
    )


class Prospect(NamedTuple):
    """A question with scores that no answer exceeds, found without a search."""

    question: Question
    ceilings: dict[str, float]
    """By quantization; empty where vLLM is asked for, of which nothing is known beforehand."""

    @property
    def most(self) -> float:
        """The best of them, 0..100."""
        return max(self.ceilings.values(), default=100.0)


def prospect(devices: Devices, spec: ModelSpec, request: Request, prepared: Prepared) -> Prospect:
    """Return what could come of a question at best."""
    question = Question(spec, devices, request, prepared=prepared)
    if asks_vllm(spec, request):
        return Prospect(question, {})
    quants = quants_to_try(spec, request, devices)
    return Prospect(question, {quant: ceilings.cheap(question, quant) for quant in quants})


def ranked_answer(
    devices: Devices,
    spec: ModelSpec,
    request: Request,
    *,
    floor: float,
    prepared: Prepared | None = None,
    known: Prospect | None = None,
) -> Answer | None:
    """Answer for a ranking: plan and speed of the best plan, None when none scores above `floor` (0 asks for any).

    Memory is looked at quickly. Quantizations are tried in falling order of what they could score at all, which may be
    `known`.
    """
    question = Question(spec, devices, request, prepared=prepared) if known is None else known.question
    if asks_vllm(spec, request):
        result = with_vllm(question)
        return result if result.plan is not None and result.score > floor else None
    quants = quants_to_try(spec, request, devices)
    best = best_of(question, quants, floor=floor, narrow=True, ceilings=None if known is None else known.ceilings)
    if best is None:
        return None
    return assembled(question, best, [], {}, RANKED_SECTIONS, exact=False)


def asks_vllm(spec: ModelSpec, request: Request) -> bool:
    """Tell whether a request is for vLLM: by name, or by weights or a cache type that only vLLM has."""
    if request.engine is None:
        return request.kv_type == "fp8" or checkpoint_asked(spec, request)
    return request.engine == "vllm"


def checkpoint_asked(spec: ModelSpec, request: Request) -> bool:
    """Tell whether the weights asked for are a checkpoint format that only vLLM loads."""
    quant = spec.quant if request.quant is None else quant_name(request.quant)
    return quant in FORMATS and quant != "MXFP4"


def quants_to_try(spec: ModelSpec, request: Request, devices: Devices) -> tuple[str, ...]:
    """Return the fixed quantization, or those worth offering; a file has the one it has."""
    if request.quant is None:
        return ladder(spec, cpu_only=not devices.gpus)
    if spec.quant is not None and request.quant.casefold() == spec.quant.casefold():
        return (spec.quant,)
    name = quant_name(request.quant)
    if name == "MXFP4":
        name = "MXFP4_MOE"  # the same blocks under the name llama-quantize gives them
    if name in FORMATS:
        raise EstimatorError(
            f"{name} is a checkpoint format that {request.engine} does not load",
            "Take --engine vllm, or a GGUF quantization.",
        )
    if spec.quant is not None and name != spec.quant:
        raise EstimatorError(f"{spec.title} is a {spec.quant} file and cannot be run as {name}", "Leave --quant out.")
    return (name,)


def searched(question: Question, quants: tuple[str, ...], *, every: bool) -> dict[str, list[Found]]:
    """Search every quantization; unless all are wanted, those that cannot win are left out or cut short."""
    if every or len(quants) == 1:
        return {quant: question.search(quant) for quant in quants}
    return {quant: [] for quant in quants} | dict(sweep(question, quants))


def winner(
    question: Question, quants: tuple[str, ...], per_quant: dict[str, list[Found]]
) -> tuple[Found | None, list[Found]]:
    """Return the best plan and all others, best first; plans that page from disk only when nothing else starts.

    The best one holds by the exact memory model too.
    """
    ranked = rank(per_quant)
    sure: list[Found] = []
    while ranked and not any(ranked[0] is one for one in sure):
        quant = ranked[0].quant
        per_quant[quant] = question.verified(per_quant[quant])
        sure += per_quant[quant][:1]
        ranked = rank(per_quant)
    if ranked:
        better = surpassing(question, ranked[0], per_quant)
        if better is not ranked[0]:
            per_quant[better.quant] = [better, *per_quant[better.quant]]
            ranked = [better, *ranked]
    else:
        ranked = question.last_resorts(quants)
        for one in ranked:
            per_quant[one.quant].append(one)
    return (ranked[0] if ranked else None), ranked[1:]


def rank(per_quant: dict[str, list[Found]]) -> list[Found]:
    """Return the plans of all quantizations, best first; what comes first in one of them is its candidate."""
    firsts = by_merit(found[0] for found in per_quant.values() if found)
    others = [one for found in per_quant.values() for one in found[1:]]
    return [*firsts[:1], *sorted([*firsts[1:], *others], key=lambda one: -one.score)]


def assembled(
    question: Question,
    best: Found,
    ranked: list[Found],
    per_quant: dict[str, list[Found]],
    sections: frozenset[Section],
    *,
    exact: bool = True,
) -> Answer:
    """Put the answer together, section by section; not `exact` for rankings, which look at memory quickly."""
    spec, devices = question.spec, question.devices
    plan = plan_of(question, best, exact=exact)
    if "limits" in sections:
        plan = with_options(question, best, plan)
    speed = speed_of(question, best, plan) if sections & {"speed", "tags", "limits"} else None
    fit = explain.fit(plan, best, spec.title)
    setup = setup_of(question, best)
    return Answer(
        model=model_facts(spec, question),
        machine=machine_facts(devices),
        plan=plan,
        fit=fit,
        speed=speed if "speed" in sections else None,
        context=context_of(setup, best, spec, exact=exact)
        if "context" in sections
        else Context(safe_tokens=0, max_tokens=0),
        serving=serving_of(question, best) if "serving" in sections else None,
        score=round(best.score),
        grade=grade(best.score),
        tags=explain.tags(plan, setup.devices, fit.status, speed) if "tags" in sections else None,
        quants=quant_options(question, best, per_quant) if "quants" in sections else (),
        workloads=workload_rows(question, best) if "workloads" in sections else (),
        limits=explain.limits(plan, best, devices, speed, question.purpose, longest_tokens=spec.max_context_tokens)
        if "limits" in sections
        else (),
        improvements=improvements(question, best, per_quant) if "improvements" in sections else (),
        runner_up=explain.runner_up(best, ranked),
        score_parts=parts(question, best),
        request=question.request,
        curve=curve(setup, best, spec) if "curve" in sections else (),
        modes=mode_rows(question, best) if "modes" in sections else (),
        findings=(*spec.findings, *labelled(spec, question.request)),
    )


def too_large(question: Question, quants: tuple[str, ...], *, advice: bool = True) -> Answer:
    """Answer that nothing starts, with what the smallest plan would need against what there is."""
    spec, devices = question.spec, question.devices
    smallest = min(quants, key=lambda quant: question.weights(quant).tensor_bytes)
    space = question.space
    gpus = space.gpu_sets[-1]
    units = 0 if not gpus else (spec.block_count + 1 if space.gpu_layers is None else space.gpu_layers)
    setup = question.setup(smallest, space.kv_types[-1], min(space.ubatches), gpus)
    layouts = setup.layouts(min(space.contexts))
    placement = Placement(
        gpu_layers=units,
        split=layouts.proportional(units) if gpus else (),
        cpu_moe_layers=space.cpu_moe_layers or 0 if gpus else 0,
    )
    context_tokens = min(space.contexts)
    uses = setup.memory.uses(placement, context_tokens)
    used = tuple(use.total_bytes for use in uses)
    found = Found(
        quant=smallest, kv_type=setup.settings.kv_type_k, context_tokens=context_tokens,
        ubatch=setup.settings.ubatch, gpus=gpus, placement=placement, used_bytes=used,
        rate=None, ttft_s=None, quality=0.0, short_bytes=max(0, setup.host_short(used)), score=0.0,
    )  # fmt: skip
    plan = plan_of(question, found, exact=True)
    why = explain.refusal(uses, setup.budgets, found.short_bytes) or "no layout leaves the margin on every device"
    return Answer(
        model=model_facts(spec, question),
        machine=machine_facts(devices),
        plan=plan,
        fit=Fit(
            status="too-large",
            headroom_bytes=min(
                [budget - use for budget, use in zip(setup.budgets, used, strict=False)] + [-found.short_bytes]
            ),
            host_ram_needed_bytes=uses[-1].total_bytes,
            message=f"{spec.title} {smallest} does not run here: {why}.",
        ),
        speed=None,
        context=Context(safe_tokens=0, max_tokens=spec.max_context_tokens),
        serving=None,
        score=0,
        grade="F",
        tags=None,
        quants=(),
        workloads=(),
        limits=(),
        improvements=improvements(question, None, {quant: [] for quant in quants}) if advice else (),
        request=question.request,
        findings=spec.findings,
    )
