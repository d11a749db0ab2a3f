"""Whatever the machine, the model and the request: a plan is one whose start the engine's own checks let pass."""

from __future__ import annotations

from functools import cache as remembered

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.model import Attention, Dense, Mla, Moe, Recurrent
from willitrun_catalog.shipped import datasheets, model_names
from willitrun_catalog.shipped import model as catalog_model
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.families import family
from willitrun_estimator.request import Request
from willitrun_estimator.vllm import cache, memory
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.kernels import cache_refused, driver_branch, floor, kernel, least_driver
from willitrun_estimator.vllm.plan import vllm_plan
from willitrun_estimator.vllm.settings import caches_prefixes
from willitrun_estimator.vllm.versions import parse_version, rules
from willitrun_probe.units import GIB

HOST = Host(ram_total_bytes=64 * GIB, ram_available_bytes=48 * GIB, bandwidth_bytes_per_s=50e9, threads=8)
VOCAB_STEP = 64
GROUP = 128


@remembered
def cards():
    return tuple(
        sheet
        for sheet in datasheets()
        if sheet.vendor in {"nvidia", "amd"} and (sheet.memory_usable_bytes or sheet.memory_bytes)
    )


@remembered
def names():
    return tuple(model_names())


@st.composite
def machines(draw):
    sheet = draw(st.sampled_from(cards()))
    total = sheet.memory_usable_bytes or sheet.memory_bytes
    peer = draw(st.sampled_from([None, 16e9, 450e9]))
    driver = draw(st.sampled_from([None, "470.82.01", "535.54.03", "580.95.05"])) if sheet.vendor == "nvidia" else None
    used = draw(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    gpus = tuple(
        Device(
            name=sheet.name,
            backend="cuda" if sheet.vendor == "nvidia" else "rocm",
            family=family(
                vendor=sheet.vendor,
                compute_capability=sheet.compute_capability,
                gfx_target=sheet.gfx_target,
                name=sheet.name,
            ),
            memory_total_bytes=total,
            memory_free_bytes=round(total * (1 - share**6)),
            bandwidth_bytes_per_s=sheet.bandwidth_bytes_per_s,
            flops_per_s=sheet.fp16_flops_per_s,
            unified=sheet.unified,
            uuid=f"GPU-{place}",
            index=place,
            compute_capability=sheet.compute_capability,
            gfx_target=sheet.gfx_target,
            peer_bytes_per_s=peer,
            driver_version=driver,
        )
        for place, share in enumerate(used)
    )
    return Devices(name="m", gpus=gpus, host=HOST)


def maybe(strategy):
    """Mostly leave an option out: too many at once ask for what nothing can do."""
    return st.integers(0, 3).flatmap(lambda turn: st.none() if turn else strategy)


REQUESTS = st.builds(
    Request,
    engine=st.just("vllm"),
    mode=st.sampled_from(["balanced", "interactive", "light-api", "scale-out"]),
    quant=maybe(st.sampled_from(["bf16", "fp8", "awq", "gptq", "w8a8", "nvfp4", "mxfp4", "bnb"])),
    context=maybe(st.integers(1, 200_000)),
    kv_type=maybe(st.sampled_from(["f16", "q8_0", "fp8"])),
    engine_version=maybe(st.sampled_from(["0.10", "0.14", "0.19", "0.26", "0.33"])),
    tensor_parallel=maybe(st.integers(1, 8)),
    pipeline_parallel=maybe(st.integers(1, 4)),
    gpu_memory_utilization=maybe(st.floats(0.1, 1.0)),
    max_num_seqs=maybe(st.integers(1, 2048)),
    max_num_batched_tokens=maybe(st.integers(1024, 65536)),
    enforce_eager=st.booleans(),
    concurrency=st.integers(1, 300),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machine=machines(), name=st.data(), request=REQUESTS)
def test_a_plan_passes_every_check_of_the_engines_start(machine, name, request):
    spec = catalog_model(name.draw(st.sampled_from(names())))
    try:
        found = vllm_plan(spec, machine, request)
    except EstimatorError:
        event("refused")
        return
    if found.plan is None:
        event("does not fit")
        assert found.fit.status == "too-large"
        assert found.fit.message
        return
    event("planned")
    plan, ruled, checkpoint = found.plan, rules(parse_version(found.plan.engine_version)), format_of(found.plan.quant)
    chosen = [gpu for gpu in machine.gpus if gpu.uuid in plan.gpu_uuids]
    assert len(chosen) == plan.tensor_parallel * plan.pipeline_parallel * plan.data_parallel
    for gpu in chosen:
        assert floor(gpu, ruled.version) is None
        assert kernel(checkpoint, gpu, ruled.version).how is not None
        assert cache_refused(plan.kv_type, gpu) is None
        branch = driver_branch(gpu)
        assert branch is None or branch >= least_driver(ruled.version)
    splits_evenly(spec, plan, checkpoint)
    sizes(spec, plan, request)
    fits(plan, chosen, ruled)
    holds_requests(spec, plan, ruled)


def splits_evenly(spec, plan, checkpoint):
    """Assert the divisions that vLLM makes: heads, state heads, vocabulary, widths and whole groups of weights."""
    ranks = plan.tensor_parallel
    assert (-(-spec.vocab_size // VOCAB_STEP) * VOCAB_STEP) % ranks == 0
    assert plan.pipeline_parallel <= spec.block_count
    for layer in set(spec.layers):
        for mixer in layer.mixers:
            if isinstance(mixer, Attention | Mla):
                assert mixer.heads % ranks == 0
            if isinstance(mixer, Attention):
                assert mixer.kv_heads % ranks == 0 or ranks % mixer.kv_heads == 0
            if isinstance(mixer, Recurrent):
                assert mixer.heads % ranks == 0
        width = layer.ffn.width if isinstance(layer.ffn, Dense) else getattr(layer.ffn, "shared_width", 0)
        assert width % ranks == 0
        if ranks > 1 and checkpoint.method in {"awq", "gptq", "fp8"}:
            assert width // ranks % GROUP == 0
        if isinstance(layer.ffn, Moe) and layer.ffn.width % ranks:
            assert layer.ffn.experts % ranks == 0


def sizes(spec, plan, request):
    """Assert what the batch flags must obey among themselves, and that what was asked for stayed."""
    assert 1 <= plan.max_num_seqs <= plan.max_num_batched_tokens
    assert 1 <= plan.context_tokens <= spec.max_context_tokens
    for asked, given_ in (
        (request.tensor_parallel, plan.tensor_parallel),
        (request.pipeline_parallel, plan.pipeline_parallel),
        (request.gpu_memory_utilization, plan.gpu_memory_utilization),
        (request.max_num_batched_tokens, plan.max_num_batched_tokens),
    ):
        assert asked in {None, given_}
    if request.context is not None:
        assert plan.context_tokens == min(request.context, spec.max_context_tokens)


def fits(plan, chosen, ruled):
    """Assert that what is requested is free, after the CUDA context where it is not shared memory."""
    for gpu, use in zip(chosen, plan.devices, strict=False):
        total = memory.cuda_total_bytes(gpu)
        outside = 0 if gpu.unified else memory.CONTEXT_BYTES
        assert plan.gpu_memory_utilization * total <= gpu.memory_free_bytes - outside
        graphs = 0 if ruled.subtracts_graphs else next(size for word, size, _ in use.notes if word == "CUDA graphs")
        assert use.total_bytes <= plan.gpu_memory_utilization * total + memory.CONTEXT_BYTES + graphs + 1


def holds_requests(spec, plan, ruled):
    """Assert that one request of full length fits, and that every sequence has its block of state."""
    layout = cache.cache_layout(spec, ruled, tensor_parallel=plan.tensor_parallel, kv_type=plan.kv_type)
    if plan.pipeline_parallel > 1 or not layout.block_bytes:
        return
    blocks = plan.devices[0].kv_cache_bytes // layout.block_bytes
    held = cache.blocks_per_request(
        layout,
        ruled,
        context_tokens=plan.context_tokens,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        prefix_caching=caches_prefixes((layout,), ruled),
    )
    assert held < blocks
    if cache.has_state(layout):
        assert plan.max_num_seqs <= blocks


def test_room_that_is_taken_meanwhile_is_never_planned_on():
    card = next(sheet for sheet in cards() if sheet.name == "NVIDIA GeForce RTX 3090")
    total = card.memory_usable_bytes or card.memory_bytes
    device = Device(
        name=card.name,
        backend="cuda",
        family="ampere",
        memory_total_bytes=total,
        memory_free_bytes=total // 2,
        bandwidth_bytes_per_s=card.bandwidth_bytes_per_s,
        flops_per_s=card.fp16_flops_per_s,
        compute_capability="8.6",
    )
    machine = Devices(name="m", gpus=(device,), host=HOST)
    plan = vllm_plan(catalog_model("qwen3-4b"), machine, Request()).plan
    asked = round(plan.gpu_memory_utilization * memory.cuda_total_bytes(device))
    assert asked + memory.CONTEXT_BYTES < device.memory_free_bytes
    fixed = Request(gpu_memory_utilization=0.49)
    tight = structs.replace(device, memory_free_bytes=int(0.49 * memory.cuda_total_bytes(device)) + 1)
    refused = vllm_plan(catalog_model("qwen3-4b"), structs.replace(machine, gpus=(tight,)), fixed)
    assert refused.plan is None
    assert "once CUDA is up" in refused.fit.message
