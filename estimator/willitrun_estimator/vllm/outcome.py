"""What a vLLM plan comes to: the winner of `plan` as the answer's values, or why nothing starts."""

from __future__ import annotations

from msgspec import Struct, structs

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Device, Devices
from willitrun_estimator.plan import Context, DeviceUse, Fit, Limit, Plan, Serving, Speed, Status
from willitrun_estimator.request import Request
from willitrun_estimator.vllm import cache
from willitrun_estimator.vllm.drafting import drafting_said
from willitrun_estimator.vllm.formats import Format
from willitrun_estimator.vllm.kernels import CUDA_13_DRIVER, Kernel, driver_floor, floor, newest_for
from willitrun_estimator.vllm.limits import limits_of
from willitrun_estimator.vllm.serving import pace
from willitrun_estimator.vllm.settings import Setup, Shortage
from willitrun_estimator.vllm.versions import LATEST, Rules, Version, name_of
from willitrun_probe.units import format_bytes

UNPACED = frozenset({"bitsandbytes"})
"""Formats of which no speed was found; vLLM itself says that they may be slower than no quantization
(`vllm/config/model.py`: "not fully optimized yet"), so they come last."""
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


class Candidate(Struct, frozen=True, kw_only=True):
    """A setup that starts, with its speeds and its worth to the mode."""

    setup: Setup
    how: Kernel
    serving: Serving | None
    value: float


def paced(how: Kernel, checkpoint: Format) -> bool:
    """Tell whether the batching law knows the kernel: it was fitted on native and Marlin-like ones."""
    return how.how != "emulated" and checkpoint.method not in UNPACED


def assembled(spec: ModelSpec, devices: Devices, request: Request, ruled: Rules, best: Candidate) -> VllmPlan:
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
        speed=pace(spec, setup, gpus[0], request) if paced(best.how, setup.checkpoint) else None,
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


def refused(reason: str, version: Version) -> VllmPlan:
    """Say why vLLM cannot be used."""
    return VllmPlan(
        plan=None,
        fit=Fit(status="too-large", headroom_bytes=0, host_ram_needed_bytes=0, message=reason),
        context=Context(safe_tokens=0, max_tokens=0),
        speed=None,
        serving=None,
        limits=(Limit(code="vllm-refused", message=reason),),
        version=version,
    )


def too_large(spec: ModelSpec, shortage: Shortage | None, problems: list[str], version: Version) -> VllmPlan:
    """Say what is short on the way that needs least, or what else stands against every way."""
    if shortage is None:
        return refused("; ".join(dict.fromkeys(problems)) or f"{spec.title} has no split for these GPUs", version)
    reason = (
        f"{spec.title} needs {format_bytes(shortage.needed_bytes)} {shortage.reason} in vLLM, and "
        f"{format_bytes(shortage.available_bytes)} can be used"
    )
    answer = refused(reason, version)
    room = shortage.available_bytes - shortage.needed_bytes
    return structs.replace(answer, fit=structs.replace(answer.fit, headroom_bytes=room))
