"""The answer when vLLM runs the model, and the choice between the engines for the serving modes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_estimator import explain
from willitrun_estimator.device import Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import (
    Answer,
    EngineChoice,
    Improvement,
    MachineFacts,
    ModelFacts,
    Plan,
    Quality,
    QuantOption,
    ScorePart,
    Serving,
    Speed,
)
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_estimator.score import grade, quality_factor, score, score_parts
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.objectives import TIE, at, choose_engine, objective, targets
from willitrun_estimator.vllm.outcome import VllmPlan
from willitrun_estimator.vllm.plan import vllm_plan
from willitrun_estimator.vllm.repositories import ready_made

BACKENDS = frozenset({"cuda", "rocm"})
CHECKPOINTS = ("BF16", "FP8", "AWQ", "GPTQ-INT4", "NVFP4", "MXFP4")
"""Checkpoint formats shown beside the GGUF quantizations."""


def reaches(devices: Devices) -> bool:
    """Tell whether vLLM has a back end for these GPUs."""
    return bool(devices.gpus) and devices.gpus[0].backend in BACKENDS


def vllm_answer(question: Question, planned: VllmPlan, model: ModelFacts, machine: MachineFacts) -> Answer:
    """Put the answer together from a vLLM plan."""
    plan, speed, serving = planned.plan, planned.speed, planned.serving
    points, parts = (0.0, ()) if plan is None else scored(question, plan, speed, serving)
    options = checkpoint_options(question, None if plan is None else plan.quant)
    return Answer(
        model=model,
        machine=machine,
        plan=plan,
        fit=planned.fit,
        speed=speed,
        context=planned.context,
        serving=serving,
        score=round(points),
        grade=grade(points),
        tags=None if plan is None else explain.tags(plan, question.devices, planned.fit.status, speed),
        quants=options,
        workloads=(),
        limits=planned.limits,
        improvements=smaller_checkpoints(question, planned) if plan is not None else fitting(question, options),
        score_parts=parts,
        request=question.request,
        findings=(*question.spec.findings, *planned.findings),
    )


def fitting(question: Question, options: tuple[QuantOption, ...]) -> tuple[Improvement, ...]:
    """Where nothing fits by itself, name the best checkpoint that would; something for nothing counts its score."""
    if not options or question.request.quant is not None:
        return ()
    best = max(options, key=lambda one: one.score)
    repository = ready_made(question.spec, format_of(best.quant)) or "it needs a repository of its own"
    message = f"{best.quant} fits: --quant {best.quant} ({repository})"
    return (Improvement(code="smaller-checkpoint", message=message, gain=best.score / 100),)


def smaller_checkpoints(question: Question, planned: VllmPlan) -> tuple[Improvement, ...]:
    """Offer the checkpoints of fewer bits that the model's maker published, where they serve the mode better."""
    plan, request = planned.plan, question.request
    if plan is None or planned.serving is None or request.quant is not None:
        return ()
    bits, wanted = format_of(plan.quant).linear_bits, targets(request)
    found = []
    for name in CHECKPOINTS:
        repository = ready_made(question.spec, format_of(name))
        if repository is None or format_of(name).linear_bits >= bits:
            continue
        other = vllm_plan(question.spec, question.devices, structs.replace(request, engine="vllm", quant=name))
        if other.plan is None or other.serving is None:
            continue
        gain = objective(request.mode, other.serving, wanted) / objective(request.mode, planned.serving, wanted) - 1
        if gain > TIE:
            alone, now = other.serving.output_tokens_per_s[0], planned.serving.output_tokens_per_s[0]
            message = (
                f"{repository} gives {alone:.0f} tokens/s for one user, {plan.quant} {now:.0f}, at "
                f"{question.quality(name).level} quality: --quant {name}"
            )
            found.append(Improvement(code="ready-checkpoint", message=message, gain=gain))
    return tuple(sorted(found, key=lambda one: -one.gain)[:1])


def scored(
    question: Question, plan: Plan, speed: Speed | None, serving: Serving | None
) -> tuple[float, tuple[ScorePart, ...]]:
    """Return the score of a vLLM plan by the same formula, and its parts."""
    lost = question.quality(plan.quant).kl_divergence or 0.0
    rate: float | None = None
    if question.lens.concurrency > 1 and serving is not None:
        rate = at(serving, question.lens.concurrency)[0]
    elif speed is not None and speed.decode_tokens_per_s is not None:
        rate = speed.decode_tokens_per_s.expected
    wait = None if speed is None or speed.ttft_s is None else speed.ttft_s.expected
    kept, decode, ttft, context = question.objective.factors(
        quality=quality_factor(lost), rate=rate, ttft_s=wait, context_tokens=plan.context_tokens
    )
    parts = score_parts(
        quality=kept,
        decode=decode,
        ttft=ttft,
        context=context,
        lens=question.lens,
        reasons=(
            f"exp(-4 x KL divergence) of {plan.quant}",
            "rate / (rate + half)",
            "half / (half + wait)",
            "log scale",
        ),
    )
    return score(quality=kept, decode=decode, ttft=ttft, context=context, lens=question.lens), parts


def planned_for(spec: ModelSpec, devices: Devices, request: Request) -> VllmPlan | None:
    """Plan with vLLM where its back ends reach; None elsewhere."""
    return vllm_plan(spec, devices, request) if reaches(devices) else None


def checkpoint_options(question: Question, chosen: str | None) -> tuple[QuantOption, ...]:
    """Return a row for every checkpoint format that vLLM could load here."""
    rows = []
    for name in CHECKPOINTS:
        option = checkpoint_option(question, name, best=name == chosen)
        if option is not None:
            rows.append(option)
    return tuple(rows)


def checkpoint_option(question: Question, name: str, *, best: bool) -> QuantOption | None:
    """Return one format's row, None where the GPUs or the model cannot use it; MXFP4 only as the model's own format."""
    if format_of(name).pads_experts and question.spec.native_type != "mxfp4":
        return None
    request = structs.replace(question.request, engine="vllm", quant=name, gpu_layers=None, cpu_moe_layers=None)
    if request.kv_type not in (None, "f16", "bf16", "fp8"):
        request = structs.replace(request, kv_type=None)
    planned = vllm_plan(question.spec, question.devices, structs.replace(request, ubatch=None))
    plan = planned.plan
    if plan is None:
        return None
    lost, params = question.quality(name), question.weights(name).params + question.spec.non_text_params
    points, _ = scored(question, plan, planned.speed, planned.serving)
    decode = None if planned.speed is None else planned.speed.decode_tokens_per_s
    wait = None if planned.speed is None or planned.speed.ttft_s is None else planned.speed.ttft_s.expected
    return QuantOption(
        quant=name,
        bits_per_weight=8 * plan.file_bytes / params,
        file_bytes=plan.file_bytes,
        memory_bytes=plan.memory_bytes,
        quality=Quality(level=lost.level, kl_divergence=lost.kl_divergence, basis=lost.basis),
        status=planned.fit.status,
        decode_tokens_per_s=None if decode is None else decode.expected,
        score=round(points),
        grade=grade(points),
        best=best,
        engine="vllm",
        context_tokens=plan.context_tokens,
        decode=decode,
        ttft_s=wait,
        headroom_bytes=planned.fit.headroom_bytes,
        offloaded_fraction=0.0,
        safe_context_tokens=planned.context.safe_tokens,
        devices=plan.devices,
    )


def better_engine(
    question: Question, llama_serving: Serving | None, build: Callable[[VllmPlan], Answer]
) -> tuple[Answer | None, EngineChoice | None]:
    """Compare vLLM with llama.cpp under the mode's objective; return vLLM's answer when it wins, and the choice."""
    planned = comparable(question)
    if planned is None:
        return None, None
    choice = choose_engine(question.request.mode, planned.serving, llama_serving, targets(question.request))
    if choice is None or choice.engine != "vllm":
        return None, choice
    return build(planned), choice


def comparable(question: Question) -> VllmPlan | None:
    """Plan the question with vLLM to hold it against llama.cpp; None where it does not start or would not be asked.

    A quantization, KV type or option that only llama.cpp has decides the engine, and so does a build that was named.
    """
    request = question.request
    only_llama = request.gpu_layers, request.cpu_moe_layers, request.ubatch
    if any(fixed is not None for fixed in only_llama) or request.flash_attention is False:
        return None
    try:
        planned = planned_for(question.spec, question.devices, request)
    except EstimatorError:
        return None
    return None if planned is None or planned.plan is None or planned.serving is None else planned


def worth_changing(question: Question, llama_serving: Serving | None) -> tuple[Improvement, ...]:
    """Say by how much vLLM would serve the mode better than the llama.cpp plan; nothing where it would not."""
    planned = comparable(question) if llama_serving is not None else None
    if planned is None:
        return ()
    choice = choose_engine(question.request.mode, planned.serving, llama_serving, targets(question.request))
    if choice is None or choice.engine != "vllm":
        return ()
    return (Improvement(code="engine-vllm", message=f"{choice.reason}: --engine vllm", gain=choice.gain),)
