"""The plan for vLLM: which GPUs, which checkpoint, which settings, how fast for how many.

`vllm_plan` tries every way to split the equal GPUs of a machine and every checkpoint worth offering, keeps what is sure
to start, and picks by the objective of the asked mode (`objectives`).
"""

from __future__ import annotations

from msgspec import structs

from willitrun_catalog.model import ModelSpec, Moe
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.request import Request
from willitrun_estimator.score import PURPOSES
from willitrun_estimator.vllm import cache
from willitrun_estimator.vllm.formats import FORMATS, Format, format_of, is_format
from willitrun_estimator.vllm.kernels import (
    cache_refused,
    driver_too_old,
    floor,
    kernel,
    newest_for,
)
from willitrun_estimator.vllm.objectives import TIE, objective, targets
from willitrun_estimator.vllm.outcome import Candidate, VllmPlan, assembled, paced, refused, too_large
from willitrun_estimator.vllm.parallel import Split, indivisible, splits
from willitrun_estimator.vllm.repositories import ready_made
from willitrun_estimator.vllm.serving import serving_curve
from willitrun_estimator.vllm.settings import Shortage, settle
from willitrun_estimator.vllm.versions import LATEST, Rules, Version, parse_version, rules

SMALLER_ONLY_FOR = 0.15
"""A checkpoint of fewer bits is taken over the model's own only for this much more of the objective."""
STORED = ("awq", "gptq")
"""Formats tried by themselves where the maker published a checkpoint, in this order."""
LAST_RESORT_BITS = 8
"""Formats of fewer bits are taken by themselves only where nothing else fits: they cost quality."""
SAME_GPUS_TIE = 0.03
"""A split of the same GPUs is taken over a simpler one only for this much more."""
FP8_STREAMED_FROM: Version = (0, 14)
"""Weights are made FP8 one by one while loading (`vllm/model_executor/layers/quantization/fp8.py`)."""


def vllm_plan(spec: ModelSpec, devices: Devices, request: Request, *, version: str | Version | None = None) -> VllmPlan:
    """Plan a model on vLLM.

    `version` goes before `request.engine_version`, the installed one and the newest that the driver runs, in this
    order; `request.parallel` are the sequences at once where `max_num_seqs` is left open. Raises EstimatorError for a
    quantization, KV type or version that vLLM does not have, and for a context longer than the model's own, with which
    vLLM does not start.
    """
    if request.context is not None and request.context > spec.max_context_tokens:
        raise EstimatorError(
            f"--context {request.context} is more than {spec.title} is made for: {spec.max_context_tokens} tokens, "
            "and vLLM refuses a longer --max-model-len",
            f"Take --context {spec.max_context_tokens} or less.",
        )
    if request.max_num_seqs is None and request.parallel is not None:
        request = structs.replace(request, max_num_seqs=request.parallel)
    asked = version or request.engine_version or devices.vllm_version or newest_for(devices.gpus)
    ruled = rules(asked if isinstance(asked, tuple) else parse_version(asked))
    formats = checkpoints(spec, request, ruled.version)
    kv_type = kv_type_of(request.kv_type)
    reason = _refusal(spec, devices, formats, ruled, kv_type)
    if reason is not None:
        return refused(reason, ruled.version)
    best: Candidate | None = None
    shortage: Shortage | None = None
    problems: list[str] = []
    for checkpoint in formats:
        if checkpoint.linear_bits < LAST_RESORT_BITS and best is not None and len(formats) > 1:
            continue
        found, short = _best_split(spec, checkpoint, devices.gpus, request, ruled, kv_type, problems)
        if short is not None and (shortage is None or short.needed_bytes < shortage.needed_bytes):
            shortage = short
        if found is not None and (best is None or found.value > best.value * (1 + SMALLER_ONLY_FOR)):
            best = found
        if best is not None and best.serving is None:
            break
    if best is None:
        return too_large(spec, shortage, problems, ruled.version)
    return assembled(spec, devices, request, ruled, best)


def checkpoints(spec: ModelSpec, request: Request, version: Version = LATEST) -> tuple[Format, ...]:
    """List the checkpoints worth trying: the asked one, or the model's own and what vLLM makes of it while loading.

    AWQ and GPTQ need a repository of their own: they are tried where the model's maker published one, and other formats
    when asked for. Releases before 0.14 load all 16-bit weights before they make FP8 of them, which would not save
    what the plan counts on.
    """
    fixed = request.quant or spec.quant
    if fixed is not None:
        return (format_of(fixed),)
    native = format_of(spec.native_type) if is_format(spec.native_type) else FORMATS["bf16"]
    if native.method != "none":
        return (native,)
    stored = tuple(FORMATS[name] for name in STORED if ready_made(spec, FORMATS[name]) is not None)
    eight = (FORMATS["fp8"],) if version >= FP8_STREAMED_FROM or ready_made(spec, FORMATS["fp8"]) else ()
    return (native, *eight, *stored, FORMATS["bitsandbytes"])


def kv_type_of(asked: str | None) -> str:
    """Translate a KV type into vLLM's words: llama.cpp's 8-bit types become FP8."""
    if asked is None or asked.lower() in {"f16", "auto", "bf16"}:
        return "auto"
    if cache.element_bytes(asked.lower()) == 1:
        return asked.lower() if asked.lower().startswith("fp8") else "fp8"
    return asked.lower()


def _refusal(spec: ModelSpec, devices: Devices, formats: tuple[Format, ...], ruled: Rules, kv_type: str) -> str | None:
    """Say why vLLM cannot be used at all."""
    if not devices.gpus:
        return "vLLM is planned on GPUs only, and there is none to use here"
    reasons = [floor(gpu, ruled.version) for gpu in devices.gpus]
    if all(reasons):
        return reasons[0]
    refused = driver_too_old(devices.gpus, ruled.version) or cache_refused(kv_type, devices.gpus[0])
    if refused is not None:
        return refused
    if spec.source.endswith(".gguf"):
        return "vLLM loads safetensors checkpoints; a GGUF file belongs to llama.cpp"
    if formats[0].pads_experts and not any(isinstance(layer.ffn, Moe) for layer in set(spec.layers)):
        return f"{formats[0].name} quantizes routed experts, and {spec.title} has none"
    hows = [kernel(checkpoint, gpu, ruled.version) for checkpoint in formats for gpu in devices.gpus]
    return hows[0].reason if all(how.how is None for how in hows) else None


def _best_split(
    spec: ModelSpec,
    checkpoint: Format,
    gpus: tuple[Device, ...],
    request: Request,
    ruled: Rules,
    kv_type: str,
    problems: list[str],
) -> tuple[Candidate | None, Shortage | None]:
    """Find the best way to use the GPUs for one checkpoint."""
    usable = tuple(gpu for gpu in gpus if floor(gpu, ruled.version) is None)
    how = kernel(checkpoint, usable[0], ruled.version)
    if how.how is None or (how.how == "emulated" and not _wanted(spec, request, checkpoint)):
        problems.append(how.reason)
        return None, None
    options = splits(
        spec,
        checkpoint,
        usable,
        tensor_parallel=request.tensor_parallel,
        pipeline_parallel=request.pipeline_parallel,
    )
    if not options:
        asked = (request.tensor_parallel or 1) * (request.pipeline_parallel or 1)
        problems.append(
            indivisible(spec, checkpoint, request.tensor_parallel or 1)
            or f"{asked} equal GPUs are asked for and there are {len(usable)} GPUs"
        )
    best: Candidate | None = None
    shortage: Shortage | None = None
    purpose = PURPOSES[request.workload]
    for split in options:
        chosen = tuple(usable[i] for i in split.gpus)
        setup = settle(
            spec,
            checkpoint,
            chosen,
            split,
            request,
            ruled,
            wanted_tokens=purpose.context_tokens,
            kv_type=kv_type,
        )
        if isinstance(setup, Shortage):
            if shortage is None or setup.needed_bytes < shortage.needed_bytes:
                shortage = setup
            continue
        curve = serving_curve(spec, setup, chosen[0], request, ruled) if paced(how, checkpoint) else None
        value = objective(request.mode, curve, targets(request)) if curve is not None else 1.0
        if best is None or value > best.value * (1 + _must_gain(best.setup.split, split)):
            best = Candidate(setup=setup, how=how, serving=curve, value=value)
    return best, shortage


def _wanted(spec: ModelSpec, request: Request, checkpoint: Format) -> bool:
    """Tell whether a checkpoint was asked for, or is the model's own."""
    if request.quant or spec.quant:
        return True
    return is_format(spec.native_type) and format_of(spec.native_type) == checkpoint


def _must_gain(one: Split, other: Split) -> float:
    """Give by how much another split must be better: more for more GPUs, which could do something else."""
    return TIE if other.ranks > one.ranks else SAME_GPUS_TIE
