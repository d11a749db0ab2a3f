"""The sections of an answer: plan, speed, tables and curves of what the search found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quant import label_note
from willitrun_estimator import evidence, explain, overhead, pace
from willitrun_estimator.device import Devices
from willitrun_estimator.found import Found
from willitrun_estimator.plan import (
    Context,
    CurvePoint,
    ExpertsApart,
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
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.score import LENSES, PURPOSES, grade, score_parts
from willitrun_estimator.setup import LlamaSetup

LEAST_CURVE_TOKENS = 1024


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
    layers = question.spec.block_count + mtp
    apart = tuple(
        ExpertsApart(
            block=one.block,
            tensors=one.tensors,
            device=one.device,
            whole=one.bytes == weights.layers[one.block].expert_bytes,
        )
        for one in placement.overrides
    )
    extra = mtp if placement.gpu_layers > 1 else 0
    asked = question.request.gpu_layers
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
        gpu_layers=min(asked, layers + 1) if isinstance(asked, int) and gpus else placement.gpu_layers + extra,
        layers=layers,
        cpu_moe_layers=placement.cpu_moe_layers + sum(one.whole and one.device is None for one in apart),
        tensor_split=split,
        experts_apart=apart,
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


def with_options(question: Question, found: Found, plan: Plan) -> Plan:
    """Add to the host's notes what options that nobody asked for would take."""
    setup = setup_of(question, found)
    settings = structs.replace(setup.settings, context_tokens=found.context_tokens)
    *gpus, host = plan.devices
    notes = overhead.option_notes(setup.weights, settings, gpus=len(gpus))
    return structs.replace(plan, devices=(*gpus, structs.replace(host, notes=(*host.notes, *notes))))


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


def labelled(spec: ModelSpec, request: Request) -> tuple[str, ...]:
    """Return what to say about a publisher's label that was taken for a plain mix."""
    note = None if request.quant is None or spec.quant is not None else label_note(request.quant)
    return () if note is None else (note,)


def model_facts(spec: ModelSpec, question: Question) -> ModelFacts:
    """Return the model as the answer shows it."""
    weights = next(iter(question.tried.values()))
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
    speed = speed_of(question, found, plan)
    setup = setup_of(question, found)
    return QuantOption(
        quant=quant,
        bits_per_weight=weights.bits_per_weight,
        file_bytes=weights.file_bytes,
        memory_bytes=plan.memory_bytes,
        quality=kept,
        status=explain.status(plan, found.short_bytes),
        decode_tokens_per_s=rate_of(question, found, speed),
        score=round(found.score),
        grade=grade(found.score),
        best=best,
        engine=plan.engine,
        context_tokens=found.context_tokens,
        decode=speed.decode_tokens_per_s,
        ttft_s=wait_of(found, speed),
        headroom_bytes=explain.headroom(plan),
        offloaded_fraction=plan.offloaded_fraction,
        safe_context_tokens=context_of(setup, found, question.spec).safe_tokens,
        devices=plan.devices,
    )


def rate_of(question: Question, found: Found, speed: Speed) -> float | None:
    """Return the rate a table shows: of one stream with all that is known of the plan, of all together for serving."""
    decode = speed.decode_tokens_per_s
    served = max(question.lens.concurrency, question.request.concurrency) > 1
    return found.rate if served or decode is None else decode.expected


def wait_of(found: Found, speed: Speed) -> float | None:
    """Return the first token's wait that a table shows."""
    return found.ttft_s if speed.ttft_s is None else speed.ttft_s.expected


def best_for(question: Question, quant: str, request: Request) -> tuple[Question, Found] | None:
    """Search one quantization again under a changed request; None when nothing starts."""
    other = Question(
        question.spec, question.devices, request, corrections=question.corrections, prepared=question.prepared
    )
    found = other.search(quant) or other.last_resorts([quant])
    return (other, found[0]) if found else None


def under(
    question: Question, best: Found, requests: Iterable[Request]
) -> Iterator[tuple[Question, Found, Plan, Speed]]:
    """Yield the best plan of the chosen quantization under each changed request that lets one start."""
    for request in requests:
        result = (question, best) if request == question.request else best_for(question, best.quant, request)
        if result is not None:
            other, found = result
            plan = plan_of(other, found)
            yield other, found, plan, speed_of(other, found, plan)


def workload_rows(question: Question, best: Found) -> tuple[WorkloadRow, ...]:
    """Return the best plan of the chosen quantization for every workload."""
    requests = [structs.replace(question.request, workload=workload) for workload in PURPOSES]
    return tuple(
        WorkloadRow(
            workload=other.request.workload,
            grade=grade(found.score),
            status=explain.status(plan, found.short_bytes),
            decode_tokens_per_s=rate_of(other, found, speed),
            ttft_s=wait_of(found, speed),
            context_tokens=found.context_tokens,
            score=round(found.score),
            prompt_tokens=other.purpose.prompt_tokens,
            output_tokens=other.purpose.output_tokens,
        )
        for other, found, plan, speed in under(question, best, requests)
    )


def mode_rows(question: Question, best: Found) -> tuple[ModeRow, ...]:
    """Return the best plan of the chosen quantization under every operating mode."""
    requests = [structs.replace(question.request, mode=mode) for mode in LENSES]
    return tuple(
        ModeRow(
            mode=other.request.mode,
            score=round(found.score),
            grade=grade(found.score),
            quant=found.quant,
            status=explain.status(plan, found.short_bytes),
            context_tokens=found.context_tokens,
            decode_tokens_per_s=speed.decode_tokens_per_s,
            ttft_s=wait_of(found, speed),
            concurrency=other.lens.concurrency,
            output_tokens_per_s=found.rate if other.lens.concurrency > 1 else None,
        )
        for other, found, plan, speed in under(question, best, requests)
    )


def curve(setup: LlamaSetup, found: Found, spec: ModelSpec) -> tuple[CurvePoint, ...]:
    """Return what this layout needs and how fast it is at rising context lengths, filled to the end."""
    sizes, size = [], LEAST_CURVE_TOKENS
    while size < spec.max_context_tokens:
        sizes.append(size)
        size *= 2
    sizes.append(spec.max_context_tokens)
    held = setup.needs.per_device_bytes(found.placement, found.context_tokens)[-1]
    points = []
    for tokens in sizes:
        needed = tuple(setup.needs.per_device_bytes(found.placement, tokens))
        # What a plan already reads from disk grows with the context; a plan that reads nothing does not begin to.
        short = max(0, found.short_bytes + needed[-1] - held) if found.short_bytes else 0
        rate = pace.decode(setup.speed, found.placement, depth_tokens=tokens, short_bytes=short)
        points.append(CurvePoint(context_tokens=tokens, device_bytes=needed, decode_tokens_per_s=rate))
    return tuple(points)
