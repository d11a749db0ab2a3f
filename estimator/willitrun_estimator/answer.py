"""The whole answer: search, then everything a reader wants to know about the winner and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quant import FORMATS, label_note, ladder, quant_name
from willitrun_estimator import evidence, explain, hardware, pace, vllm_answer
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.device import Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.improve import improvements
from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import (
    Answer,
    Context,
    CurvePoint,
    Fit,
    GpuFacts,
    MachineFacts,
    ModelFacts,
    ModeRow,
    Plan,
    Quality,
    QuantOption,
    ScorePart,
    Serving,
    Speed,
    WorkloadRow,
)
from willitrun_estimator.question import Kit, LlamaSetup, Question
from willitrun_estimator.request import Mode, Request, Workload
from willitrun_estimator.score import LENSES, PURPOSES, grade, score_parts
from willitrun_estimator.search import Found, layouts_of
from willitrun_probe.machine import Machine

Section = Literal[
    "plan", "speed", "context", "serving", "score", "tags", "quants", "workloads", "modes", "curve", "limits",
    "improvements",
]  # fmt: skip
SERVING_MODES = frozenset({"light-api", "scale-out"})
SECTIONS: frozenset[Section] = frozenset(Section.__args__)  # type: ignore[attr-defined]
RANKED_SECTIONS: frozenset[Section] = frozenset({"plan", "speed", "context"})
LEAST_CURVE_TOKENS = 1024


def answer(
    machine: Machine,
    spec: ModelSpec,
    request: Request,
    find: hardware.FindDatasheet,
    *,
    sections: frozenset[Section] = SECTIONS,
    corrections: Corrections | None = None,
) -> Answer:
    """Answer one question about one model on one machine. Raises EstimatorError for questions without an answer.

    `find` looks a GPU's data sheet up. `sections` leaves out what is not wanted: "plan" and "speed" alone cost a
    small part of the whole. `corrections` is what was measured on this very machine.
    """
    plan_on = hardware.devices(machine, request, find)
    return answer_on(plan_on, spec, request, sections=sections, corrections=corrections)


def answer_on(
    devices: Devices,
    spec: ModelSpec,
    request: Request,
    *,
    sections: frozenset[Section] = SECTIONS,
    corrections: Corrections | None = None,
    kit: Kit | None = None,
) -> Answer:
    """Answer for devices that were already merged with their data sheets; many models share them.

    `kit` keeps what questions about this model on these devices can share (see `question.signature`).
    """
    question = Question(spec, devices, request, corrections=corrections, kit=kit)
    if request.engine == "vllm" or (request.engine is None and checkpoint_asked(spec, request)):
        return with_vllm(question)
    quants = quants_to_try(spec, request, devices)
    per_quant = searched(question, quants, every="quants" in sections)
    best, ranked = winner(question, quants, per_quant)
    if best is None:
        return too_large(question, quants)
    result = assembled(question, best, ranked, per_quant, sections)
    return compared(question, result) if request.engine is None and request.mode in SERVING_MODES else result


def with_vllm(question: Question) -> Answer:
    """Answer for vLLM, whatever llama.cpp could do. Raises EstimatorError where vLLM has no back end."""
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
        findings=(*chosen.findings, choice.reason),
        quants=result.quants + (chosen.quants if better is not None else ()),
        modes=result.modes,
        workloads=result.workloads,
    )


def ranked_answer(devices: Devices, spec: ModelSpec, request: Request, *, floor: float) -> Answer | None:
    """Answer for a ranking: plan and speed of the best plan, None when none scores above `floor` (0 asks for any).

    Memory is looked at quickly. Quantizations are tried in falling order of what they could score at all.
    """
    question = Question(spec, devices, request)
    if request.engine == "vllm" or (request.engine is None and checkpoint_asked(spec, request)):
        result = with_vllm(question)
        return result if result.plan is not None and result.score > floor else None
    quants = quants_to_try(spec, request, devices)
    best: Found | None = None
    for ceiling, quant in sorted(((question.ceiling(quant), quant) for quant in quants), reverse=True):
        least = max(floor, best.score if best else 0.0)
        if ceiling <= least:
            break
        found = question.search(quant, floor=least, narrow=True)
        if found and (best is None or found[0].score > best.score):
            best = found[0]
    if best is None:
        return None
    return assembled(question, best, [], {}, RANKED_SECTIONS, exact=False)


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
    if every:
        return {quant: question.search(quant) for quant in quants}
    per_quant: dict[str, list[Found]] = {quant: [] for quant in quants}
    floor = 0.0
    for ceiling, quant in sorted(((question.ceiling(quant), quant) for quant in quants), reverse=True):
        if ceiling <= floor:
            break
        per_quant[quant] = found = question.search(quant, floor=floor)
        if found:
            floor = max(floor, found[0].score)
    return per_quant


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
    if not ranked:
        paged = [one for quant in quants for one in question.search_paging(quant)]
        ranked = sorted(paged, key=lambda one: -one.score)
        for one in ranked:
            per_quant[one.quant].append(one)
    return (ranked[0] if ranked else None), ranked[1:]


def rank(per_quant: dict[str, list[Found]]) -> list[Found]:
    """Return all plans, best first."""
    return sorted((one for found in per_quant.values() for one in found), key=lambda one: -one.score)


def setup_of(question: Question, found: Found) -> LlamaSetup:
    """Return the setup a found plan came from."""
    return question.setup(found.quant, found.kv_type, found.ubatch, found.gpus)


def plan_of(question: Question, found: Found, *, exact: bool = False) -> Plan:
    """Turn a found layout into the plan that launchers translate, its bytes by the quick or the exact look."""
    setup = setup_of(question, found)
    weights, gpus = setup.weights, setup.devices.gpus
    look = setup.memory if exact else setup.needs
    uses = look.uses(found.placement, found.context_tokens)
    on_host = uses[-1].weights_bytes - weights.embedding_bytes - weights.host_extra_bytes
    movable = max(1, sum(use.weights_bytes for use in uses) - weights.embedding_bytes - weights.host_extra_bytes)
    placement, mtp = found.placement, question.spec.mtp_layers
    extra = mtp if placement.gpu_layers > 1 else 0
    split = tuple(float(units) for units in placement.split) if len(gpus) > 1 else ()
    if split and extra:
        last = max(i for i, units in enumerate(split) if units)
        split = tuple(units + (extra if i == last else 0) for i, units in enumerate(split))
    return Plan(
        engine=question.request.engine or "llama.cpp",
        quant=found.quant,
        context_tokens=found.context_tokens,
        kv_type=found.kv_type,
        flash_attention=setup.settings.flash_attention,
        gpu_layers=placement.gpu_layers + extra,
        layers=question.spec.block_count + mtp,
        cpu_moe_layers=placement.cpu_moe_layers,
        tensor_split=split,
        ubatch=found.ubatch,
        batch=setup.settings.batch,
        threads=question.devices.host.threads,
        parallel=setup.settings.parallel,
        kv_unified=setup.settings.kv_unified,
        file_bytes=weights.file_bytes,
        devices=uses,
        memory_bytes=sum(use.total_bytes for use in uses),
        offloaded_fraction=min(1.0, max(0.0, on_host / movable)) if gpus else 0.0,
        backend=gpus[0].backend if gpus else "cpu",
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
        gpu_indexes=tuple(gpu.index for gpu in gpus),
    )


def speed_of(question: Question, found: Found, plan: Plan | None = None) -> Speed:
    """Return how fast a plan is, with intervals; with `plan`, moved towards what was measured here or published."""
    setup = setup_of(question, found)
    estimated = pace.speed(
        setup.speed,
        found.placement,
        prompt_tokens=question.purpose.prompt_tokens,
        depth_tokens=question.request.depth_tokens or 0,
        short_bytes=found.short_bytes,
    )
    if plan is None or found.short_bytes:
        return estimated
    known = evidence.Known(
        plan=plan,
        model=question.spec.name,
        gpus=setup.devices.gpus,
        corrections=question.corrections,
        prompt_tokens=question.purpose.prompt_tokens,
        depth_tokens=question.request.depth_tokens or 0,
    )
    return evidence.informed(estimated, known)


def serving_of(question: Question, found: Found) -> Serving | None:
    """Return the speed against concurrency; a plan that reads from disk serves nobody."""
    if found.short_bytes:
        return None
    return pace.serving(
        setup_of(question, found).speed,
        found.placement,
        purpose=question.purpose,
        context_tokens=found.context_tokens,
        min_decode=question.request.min_decode,
        max_ttft_s=question.request.max_ttft,
    )


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
        limits=explain.limits(plan, best, devices, speed, question.purpose) if "limits" in sections else (),
        improvements=improvements(question, best, per_quant) if "improvements" in sections else (),
        runner_up=explain.runner_up(best, ranked),
        score_parts=parts(question, best),
        request=question.request,
        curve=curve(setup, best, spec) if "curve" in sections else (),
        modes=mode_rows(question, best) if "modes" in sections else (),
        findings=(*spec.findings, *labelled(spec, question.request)),
    )


def labelled(spec: ModelSpec, request: Request) -> tuple[str, ...]:
    """Return what to say about a publisher's label that was taken for a plain mix."""
    note = None if request.quant is None or spec.quant is not None else label_note(request.quant)
    return () if note is None else (note,)


def too_large(question: Question, quants: tuple[str, ...]) -> Answer:
    """Answer that nothing starts, with what the smallest plan would need against what there is."""
    spec, devices = question.spec, question.devices
    smallest = min(quants, key=lambda quant: question.weights(quant).tensor_bytes)
    space = question.space((smallest,))
    gpus = space.gpu_sets[-1]
    units = 0 if not gpus else (spec.block_count + 1 if space.gpu_layers is None else space.gpu_layers)
    setup = question.setup(smallest, space.kv_types[-1], min(space.ubatches), gpus)
    placement = (
        layouts_of(setup, min(space.contexts)).proportional(units, space.cpu_moe_layers or 0)
        if gpus
        else Placement(gpu_layers=0)
    )
    context_tokens = min(space.contexts)
    uses = setup.memory.uses(placement, context_tokens)
    used = tuple(use.total_bytes for use in uses)
    found = Found(
        quant=smallest, kv_type=setup.settings.kv_type_k, context_tokens=context_tokens,
        ubatch=setup.settings.ubatch, gpus=gpus, placement=placement, used_bytes=used,
        rate=None, ttft_s=None, quality=0.0, short_bytes=max(0, setup.host_short(used)), score=0.0,
    )  # fmt: skip
    plan = plan_of(question, found)
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
        improvements=improvements(question, None, {}),
        request=question.request,
        findings=spec.findings,
    )


def model_facts(spec: ModelSpec, question: Question) -> ModelFacts:
    """Return the model as the answer shows it."""
    weights = next(iter(question.profiles.values()))
    return ModelFacts(
        name=spec.name,
        title=spec.title,
        source=spec.source,
        architecture=spec.architecture,
        params=weights.params,
        active_params=weights.active_params,
        max_context_tokens=spec.max_context_tokens,
        capabilities=spec.capabilities,
        license=spec.license,
        release_date=spec.release_date,
        hf_id=spec.hf_id,
    )


def machine_facts(devices: Devices) -> MachineFacts:
    """Return the machine as the answer shows it."""
    return MachineFacts(
        name=devices.name,
        gpus=tuple(
            GpuFacts(
                name=gpu.name,
                memory_total_bytes=gpu.memory_total_bytes,
                memory_free_bytes=gpu.memory_free_bytes,
                bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
                uuid=gpu.uuid,
            )
            for gpu in devices.gpus
        ),
        ram_available_bytes=devices.host.ram_available_bytes,
        cpu=devices.host.cpu_name,
        threads=devices.host.threads,
    )


def context_of(setup: LlamaSetup, found: Found, spec: ModelSpec, *, exact: bool = False) -> Context:
    """Return the largest context this layout holds, and the model's own limit."""
    limits = (*setup.budgets, setup.host_budget)
    if exact:
        safe = setup.safe_tokens(found, spec.max_context_tokens)
    else:
        safe = setup.needs.safe_tokens(found.placement, limits, spec.max_context_tokens)
    return Context(
        safe_tokens=min(max(safe, found.context_tokens), spec.max_context_tokens), max_tokens=spec.max_context_tokens
    )


def parts(question: Question, found: Found) -> tuple[ScorePart, ...]:
    """Return the factors of the score with their reasons."""
    purpose, lens = question.purpose, question.lens
    kept, decode, ttft, context = question.objective.factors(
        quality=found.quality, rate=found.rate, ttft_s=found.ttft_s, context_tokens=found.context_tokens
    )
    rate = "unknown" if found.rate is None else f"{found.rate:.1f}"
    wait = "unknown" if found.ttft_s is None else f"{found.ttft_s:.2f}"
    half = purpose.half_decode_per_s * lens.concurrency
    return score_parts(
        quality=kept,
        decode=decode,
        ttft=ttft,
        context=context,
        lens=lens,
        reasons=(
            f"exp(-4 x KL divergence) of {found.quant} weights and a {found.kv_type} cache",
            f"{rate} / ({rate} + {half:.1f}) tokens/s",
            f"{purpose.half_ttft_s:.0f} / ({purpose.half_ttft_s:.0f} + {wait}) s",
            f"log(1 + {found.context_tokens}/1024) / log(1 + {purpose.context_tokens}/1024), at most 1",
        ),
    )


def quant_options(question: Question, best: Found, per_quant: dict[str, list[Found]]) -> tuple[QuantOption, ...]:
    """Return the quantization table, best quality first."""
    return tuple(
        quant_option(question, quant, found[0] if found else None, best=quant == best.quant)
        for quant, found in per_quant.items()
    )


def quant_option(question: Question, quant: str, found: Found | None, *, best: bool) -> QuantOption:
    """Return one row of the quantization table: this quantization's own best plan."""
    weights = question.weights(quant)
    lost = question.quality(quant)
    kept = Quality(level=lost.level, kl_divergence=lost.kl_divergence, basis=lost.basis)
    if found is None:
        return QuantOption(
            quant=quant,
            bits_per_weight=weights.bits_per_weight,
            file_bytes=weights.file_bytes,
            memory_bytes=weights.tensor_bytes,
            quality=kept,
            status="too-large",
            decode_tokens_per_s=None,
            score=0,
            grade="F",
            best=False,
        )
    plan = plan_of(question, found)
    speed = speed_of(question, found)
    setup = setup_of(question, found)
    return QuantOption(
        quant=quant,
        bits_per_weight=weights.bits_per_weight,
        file_bytes=weights.file_bytes,
        memory_bytes=plan.memory_bytes,
        quality=kept,
        status=explain.status(plan, found.short_bytes),
        decode_tokens_per_s=found.rate,
        score=round(found.score),
        grade=grade(found.score),
        best=best,
        engine=plan.engine,
        context_tokens=found.context_tokens,
        decode=speed.decode_tokens_per_s,
        ttft_s=found.ttft_s,
        headroom_bytes=explain.headroom(plan),
        offloaded_fraction=plan.offloaded_fraction,
        safe_context_tokens=context_of(setup, found, question.spec).safe_tokens,
        devices=plan.devices,
    )


def best_for(question: Question, quant: str, change: Callable[[Request], Request]) -> tuple[Question, Found] | None:
    """Search one quantization again under a changed request; None when nothing starts."""
    other = Question(question.spec, question.devices, change(question.request), question.profiles)
    found = other.search(quant) or other.search_paging(quant)
    return (other, found[0]) if found else None


def workload_rows(question: Question, best: Found) -> tuple[WorkloadRow, ...]:
    """Return the best plan of the chosen quantization for every workload."""
    rows = []
    for workload in PURPOSES:
        asked = question.request

        def changed(request: Request, workload: Workload = workload) -> Request:
            return structs.replace(request, workload=workload)

        result = (question, best) if workload == asked.workload else best_for(question, best.quant, changed)
        if result is None:
            continue
        other, found = result
        plan = plan_of(other, found)
        rows.append(
            WorkloadRow(
                workload=workload,
                grade=grade(found.score),
                status=explain.status(plan, found.short_bytes),
                decode_tokens_per_s=found.rate,
                ttft_s=found.ttft_s,
                context_tokens=found.context_tokens,
                score=round(found.score),
                prompt_tokens=other.purpose.prompt_tokens,
                output_tokens=other.purpose.output_tokens,
            )
        )
    return tuple(rows)


def mode_rows(question: Question, best: Found) -> tuple[ModeRow, ...]:
    """Return the best plan of the chosen quantization under every operating mode."""
    rows = []
    for mode, lens in LENSES.items():

        def changed(request: Request, mode: Mode = mode) -> Request:
            return structs.replace(request, mode=mode)

        result = (question, best) if mode == question.request.mode else best_for(question, best.quant, changed)
        if result is None:
            continue
        other, found = result
        plan = plan_of(other, found)
        rows.append(
            ModeRow(
                mode=mode,
                score=round(found.score),
                grade=grade(found.score),
                quant=found.quant,
                status=explain.status(plan, found.short_bytes),
                context_tokens=found.context_tokens,
                decode_tokens_per_s=speed_of(other, found).decode_tokens_per_s,
                ttft_s=found.ttft_s,
                concurrency=lens.concurrency,
                output_tokens_per_s=found.rate if lens.concurrency > 1 else None,
            )
        )
    return tuple(rows)


def curve(setup: LlamaSetup, found: Found, spec: ModelSpec) -> tuple[CurvePoint, ...]:
    """Return what this layout needs and how fast it is at rising context lengths, filled to the end."""
    sizes, size = [], LEAST_CURVE_TOKENS
    while size < spec.max_context_tokens:
        sizes.append(size)
        size *= 2
    sizes.append(spec.max_context_tokens)
    return tuple(
        CurvePoint(
            context_tokens=tokens,
            device_bytes=tuple(setup.needs.per_device_bytes(found.placement, tokens)),
            decode_tokens_per_s=pace.decode(setup.speed, found.placement, depth_tokens=tokens),
        )
        for tokens in sizes
    )
