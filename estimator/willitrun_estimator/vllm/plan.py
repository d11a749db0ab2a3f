"""The plan for vLLM: which GPUs, which checkpoint, which settings, how fast for how many.

`vllm_plan` tries every way to split the equal GPUs of a machine and every checkpoint worth offering, keeps what is sure
to start, and picks by the objective of the asked mode (`objectives`).
"""

from __future__ import annotations

from msgspec import Struct, structs

from willitrun_catalog.model import ModelSpec, Moe
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Context, DeviceUse, Fit, Limit, Plan, Serving, Speed, Status
from willitrun_estimator.request import Request
from willitrun_estimator.score import PURPOSES
from willitrun_estimator.vllm import cache
from willitrun_estimator.vllm.drafting import drafting_said
from willitrun_estimator.vllm.formats import FORMATS, Format, format_of, is_format
from willitrun_estimator.vllm.kernels import (
    CUDA_13_DRIVER,
    Kernel,
    cache_refused,
    driver_floor,
    driver_too_old,
    floor,
    kernel,
    newest_for,
)
from willitrun_estimator.vllm.limits import limits_of
from willitrun_estimator.vllm.objectives import TIE, objective, targets
from willitrun_estimator.vllm.parallel import Split, indivisible, splits
from willitrun_estimator.vllm.repositories import ready_made
from willitrun_estimator.vllm.serving import pace, serving_curve
from willitrun_estimator.vllm.settings import Setup, Shortage, settle
from willitrun_estimator.vllm.versions import LATEST, Rules, Version, name_of, parse_version, rules
from willitrun_probe.units import format_bytes

SMALLER_ONLY_FOR = 0.15
"""A checkpoint of fewer bits is taken over the model's own only for this much more of the objective."""
STORED = ("awq", "gptq")
"""Formats tried by themselves where the maker published a checkpoint, in this order."""
LAST_RESORT_BITS = 8
"""Formats of fewer bits are taken by themselves only where nothing else fits: they cost quality."""
UNPACED = frozenset({"bitsandbytes"})
"""Formats of which no speed was found; vLLM itself says that they may be slower than no quantization
(`vllm/config/model.py`: "not fully optimized yet"), so they come last."""
SAME_GPUS_TIE = 0.03
"""A split of the same GPUs is taken over a simpler one only for this much more."""
FP8_STREAMED_FROM: Version = (0, 14)
"""Weights are made FP8 one by one while loading (`vllm/model_executor/layers/quantization/fp8.py`)."""
COMFORTABLE_REQUESTS = 4.0
TIGHT_REQUESTS = 1.25
"""Requests of full length the pool holds: above the first `comfortable`, below the second `tight`."""


class VllmPlan(Struct, frozen=True, kw_only=True):
    """The answer for vLLM. `plan` is None where nothing would start; `fit` then has the two numbers."""

    plan: Plan | None
    fit: Fit
    context: Context
    speed: Speed | None
    serving: Serving | None
    limits: tuple[Limit, ...] = ()
    findings: tuple[str, ...] = ()
    value: float = 0.0
    """Of the mode's objective; larger is better."""
    version: Version = LATEST
    concurrency_at_context: float = 0.0
    """Requests of full length at once, as vLLM's own log says it."""
    cache_tokens: int = 0
    """What the log calls "GPU KV cache size"."""


class _Candidate(Struct, frozen=True, kw_only=True):
    setup: Setup
    how: Kernel
    serving: Serving | None
    value: float


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
        return _refused(reason, ruled.version)
    best: _Candidate | None = None
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
        return _too_large(spec, shortage, problems, ruled.version)
    return _assembled(spec, devices, request, ruled, best)


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
) -> tuple[_Candidate | None, Shortage | None]:
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
    best: _Candidate | None = None
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
        curve = serving_curve(spec, setup, chosen[0], request, ruled) if _paced(how, checkpoint) else None
        value = objective(request.mode, curve, targets(request)) if curve is not None else 1.0
        if best is None or value > best.value * (1 + _must_gain(best.setup.split, split)):
            best = _Candidate(setup=setup, how=how, serving=curve, value=value)
    return best, shortage


def _wanted(spec: ModelSpec, request: Request, checkpoint: Format) -> bool:
    """Tell whether a checkpoint was asked for, or is the model's own."""
    if request.quant or spec.quant:
        return True
    return is_format(spec.native_type) and format_of(spec.native_type) == checkpoint


def _paced(how: Kernel, checkpoint: Format) -> bool:
    """Tell whether the batching law knows the kernel: it was fitted on native and Marlin-like ones."""
    return how.how != "emulated" and checkpoint.method not in UNPACED


def _must_gain(one: Split, other: Split) -> float:
    """Give by how much another split must be better: more for more GPUs, which could do something else."""
    return TIE if other.ranks > one.ranks else SAME_GPUS_TIE


def _assembled(spec: ModelSpec, devices: Devices, request: Request, ruled: Rules, best: _Candidate) -> VllmPlan:
    """Turn the winner into the answer."""
    setup = best.setup
    usable = tuple(gpu for gpu in devices.gpus if floor(gpu, ruled.version) is None)
    gpus = tuple(usable[i] for i in setup.split.gpus)
    plan = _plan(spec, devices, setup, best.how, gpus, ruled.version)
    held = cache.concurrency(setup.blocks, setup.blocks_per_request)
    room = min(use.free_bytes - use.total_bytes for use in plan.devices if use.kind == "gpu")
    status: Status = "comfortable" if held >= COMFORTABLE_REQUESTS else "fits" if held >= TIGHT_REQUESTS else "tight"
    split = setup.split
    where = f"on {split.ranks} GPUs" if split.ranks > 1 else f"on {gpus[0].name}"
    fit = Fit(
        status=status,
        headroom_bytes=room,
        host_ram_needed_bytes=0,
        message=(
            f"{spec.title} {setup.checkpoint.name} fits {where} in vLLM: the cache holds {held:.1f} requests of "
            f"{setup.context_tokens} tokens."
        ),
    )
    tokens = cache.cache_tokens(
        setup.layouts[0],
        ruled,
        setup.blocks,
        per_request=setup.blocks_per_request,
        context_tokens=setup.context_tokens,
    )
    return VllmPlan(
        plan=plan,
        fit=fit,
        context=Context(safe_tokens=setup.safe_tokens, max_tokens=setup.longest_tokens),
        speed=pace(spec, setup, gpus[0], request) if _paced(best.how, setup.checkpoint) else None,
        serving=best.serving,
        limits=limits_of(spec, setup, best.how, gpus, best.serving),
        findings=(*_findings(devices, ruled), *_drafting(spec, setup)),
        value=best.value,
        version=ruled.version,
        concurrency_at_context=held * split.data_parallel,
        cache_tokens=tokens,
    )


def _findings(devices: Devices, ruled: Rules) -> tuple[str, ...]:
    """Say which driver the release needs, or that a newer one would allow a newer release."""
    if devices.gpus[0].backend != "cuda":
        return ()
    if ruled.version == newest_for(devices.gpus) < LATEST:
        driver = devices.gpus[0].driver_version
        planned = f"Planned for vLLM {name_of(ruled.version)}, the newest that NVIDIA driver {driver} runs"
        return (f"{planned}; later releases need driver {CUDA_13_DRIVER}.",)
    return (driver_floor(ruled.version),)


def _drafting(spec: ModelSpec, setup: Setup) -> tuple[str, ...]:
    said = drafting_said(spec, setup.checkpoint, tensor_parallel=setup.split.tensor_parallel, kv_type=setup.kv_type)
    return () if said is None else (said,)


def _plan(
    spec: ModelSpec, devices: Devices, setup: Setup, how: Kernel, gpus: tuple[Device, ...], version: Version
) -> Plan:
    split = setup.split
    uses = tuple(_use(gpu, setup, position) for position, gpu in enumerate(gpus))
    host = DeviceUse(
        name=devices.host.cpu_name or "host",
        kind="host",
        weights_bytes=0,
        kv_cache_bytes=0,
        recurrent_bytes=0,
        compute_bytes=0,
        output_bytes=0,
        runtime_bytes=0,
        total_bytes=0,
        free_bytes=devices.host.ram_available_bytes,
    )
    loaded = sum(stage.rank.total_bytes - stage.rank.buffer_bytes for stage in setup.stages)
    return Plan(
        engine="vllm",
        quant=setup.checkpoint.name,
        context_tokens=setup.context_tokens,
        kv_type=setup.kv_type,
        flash_attention=True,
        gpu_layers=spec.block_count + 1,
        layers=spec.block_count,
        cpu_moe_layers=0,
        tensor_split=(),
        ubatch=setup.max_num_batched_tokens,
        batch=setup.max_num_batched_tokens,
        threads=devices.host.threads,
        parallel=setup.max_num_seqs,
        file_bytes=loaded * split.tensor_parallel,
        devices=(*uses, host),
        memory_bytes=sum(use.total_bytes for use in uses),
        offloaded_fraction=0.0,
        backend=gpus[0].backend,
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
        gpu_indexes=tuple(gpu.index for gpu in gpus),
        tensor_parallel=split.tensor_parallel,
        pipeline_parallel=split.pipeline_parallel,
        data_parallel=split.data_parallel,
        gpu_memory_utilization=setup.utilization,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        enforce_eager=setup.enforce_eager,
        kernel=how.name,
        engine_version=name_of(version),
    )


def _use(gpu: Device, setup: Setup, position: int) -> DeviceUse:
    """Give what one GPU holds: ranks are dealt tensor-parallel first, then stage by stage, then replica by replica."""
    stage = position // setup.split.tensor_parallel % setup.split.pipeline_parallel
    one = setup.budgets[stage]
    pool = setup.blocks * setup.layouts[stage].block_bytes
    runtime = one.libraries_bytes + one.graphs_bytes + one.context_bytes
    total = one.weights_bytes + pool + one.activation_bytes + runtime
    return DeviceUse(
        name=gpu.name,
        kind="gpu",
        weights_bytes=one.weights_bytes,
        kv_cache_bytes=pool,
        recurrent_bytes=0,
        compute_bytes=one.activation_bytes,
        output_bytes=0,
        runtime_bytes=runtime,
        total_bytes=total,
        free_bytes=gpu.memory_free_bytes,
        notes=(
            ("NCCL and cuBLAS", one.libraries_bytes, "measured-alike"),
            ("CUDA graphs", one.graphs_bytes, "estimated"),
            ("CUDA context", one.context_bytes, "measured-alike"),
        ),
    )


def _refused(reason: str, version: Version) -> VllmPlan:
    return VllmPlan(
        plan=None,
        fit=Fit(status="too-large", headroom_bytes=0, host_ram_needed_bytes=0, message=reason),
        context=Context(safe_tokens=0, max_tokens=0),
        speed=None,
        serving=None,
        limits=(Limit(code="vllm-refused", message=reason),),
        version=version,
    )


def _too_large(spec: ModelSpec, shortage: Shortage | None, problems: list[str], version: Version) -> VllmPlan:
    if shortage is None:
        return _refused("; ".join(dict.fromkeys(problems)) or f"{spec.title} has no split for these GPUs", version)
    reason = (
        f"{spec.title} needs {format_bytes(shortage.needed_bytes)} {shortage.reason} in vLLM, and "
        f"{format_bytes(shortage.available_bytes)} can be used"
    )
    refused = _refused(reason, version)
    room = shortage.available_bytes - shortage.needed_bytes
    return structs.replace(refused, fit=structs.replace(refused.fit, headroom_bytes=room))
