from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_datasheet, find_model
from willitrun_catalog.shipped import model_names
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.families import family
from willitrun_estimator.request import Request
from willitrun_estimator.vllm import cache
from willitrun_estimator.vllm.memory import cuda_total_bytes
from willitrun_estimator.vllm.plan import checkpoints, kv_type_of, vllm_plan
from willitrun_estimator.vllm.versions import rules
from willitrun_probe.units import GIB

H100, RTX3090, RTX4090, A100 = (
    "NVIDIA H100 SXM5 80 GB",
    "NVIDIA GeForce RTX 3090",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA A100 SXM4 80 GB",
)


def test_a_small_model_on_one_card(model, machine):
    found = vllm_plan(model("llama-3.1-8b"), machine(RTX4090), Request(quant="BF16"))
    plan = found.plan
    assert (plan.engine, plan.quant, plan.kernel) == ("vllm", "BF16", "cublas")
    assert found.fit.status in {"comfortable", "fits", "tight"}
    gpu, host = plan.devices
    assert gpu.weights_bytes / GIB == pytest.approx(14.99, rel=0.005)
    parts = gpu.weights_bytes + gpu.kv_cache_bytes + gpu.compute_bytes + gpu.runtime_bytes
    assert gpu.total_bytes == parts == plan.memory_bytes
    assert gpu.total_bytes < gpu.free_bytes + GIB
    assert host.kind == "host"
    assert plan.max_num_seqs % 8 == 0
    assert plan.gpu_memory_utilization <= 0.92
    assert plan.gpu_uuids == ("GPU-0",)
    assert found.concurrency_at_context * plan.context_tokens == pytest.approx(found.cache_tokens, rel=0.01)
    assert sum(size for _, size, _ in gpu.notes) == gpu.runtime_bytes


def test_the_models_own_format_stays_unless_it_does_not_fit(model, machine):
    # Twice the tokens of one user for half the bytes: above the 15 % a smaller checkpoint must gain.
    assert vllm_plan(model("llama-3.1-8b"), machine(A100), Request()).plan.quant == "FP8"
    assert vllm_plan(model("qwen3-0.6b"), machine(H100), Request()).plan.quant == "BF16"
    assert vllm_plan(model("gpt-oss-20b"), machine(A100), Request()).plan.quant == "MXFP4"
    squeezed = vllm_plan(model("qwen3-14b"), machine(RTX4090), Request())
    assert squeezed.plan.quant == "FP8"


def test_checkpoints_worth_trying():
    spec = find_model("llama-3.1-8b").spec
    assert [f.name for f in checkpoints(spec, Request())] == ["BF16", "FP8", "BNB-NF4"]
    assert [f.name for f in checkpoints(spec, Request(), (0, 12))] == ["BF16", "BNB-NF4"]
    assert [f.name for f in checkpoints(find_model("deepseek-v3").spec, Request())] == ["FP8"]
    assert [f.name for f in checkpoints(structs.replace(spec, quant="AWQ"), Request())] == ["AWQ"]
    assert checkpoints(structs.replace(spec, native_type="strange"), Request())[0].name == "BF16"
    with pytest.raises(EstimatorError):
        checkpoints(spec, Request(quant="Q4_K_M"))


def test_kv_types_translate():
    assert [kv_type_of(x) for x in (None, "f16", "bf16", "q8_0", "fp8_e5m2", "FP8", "f32")] == [
        "auto", "auto", "auto", "fp8", "fp8_e5m2", "fp8", "f32",
    ]  # fmt: skip
    with pytest.raises(EstimatorError):
        kv_type_of("q4_0")


def test_utilization_leaves_what_others_hold(model, machine):
    crowded = machine(A100, memory_free_bytes=40 * GIB)
    plan = vllm_plan(model("llama-3.1-8b"), crowded, Request(quant="bf16")).plan
    total = cuda_total_bytes(crowded.gpus[0])
    assert plan.gpu_memory_utilization * total <= 40 * GIB
    assert plan.gpu_memory_utilization == pytest.approx(0.5, abs=0.02)


def test_a_margin_is_kept_free(model, machine):
    spec, card = model("llama-3.1-8b"), machine(A100)
    asked = vllm_plan(spec, card, Request(quant="bf16", margin_bytes=40 * GIB)).plan
    assert asked.gpu_memory_utilization * cuda_total_bytes(card.gpus[0]) <= 40 * GIB


def test_a_utilization_above_what_is_free_would_abort_and_is_refused(model, machine):
    crowded = machine(A100, memory_free_bytes=40 * GIB)
    found = vllm_plan(model("llama-3.1-8b"), crowded, Request(quant="bf16", gpu_memory_utilization=0.9))
    assert found.plan is None
    assert "utilization" in found.fit.message
    kept = vllm_plan(model("llama-3.1-8b"), crowded, Request(quant="bf16", gpu_memory_utilization=0.45))
    assert kept.plan.gpu_memory_utilization == 0.45


def test_too_large_says_both_numbers(model, machine):
    found = vllm_plan(model("llama-3.3-70b"), machine(RTX3090), Request(quant="AWQ"))
    assert found.plan is None
    assert found.fit.status == "too-large"
    assert found.fit.headroom_bytes < 0
    assert "GiB" in found.fit.message
    assert found.serving is None
    both = vllm_plan(model("llama-3.3-70b"), machine(RTX3090), Request())
    assert both.plan is None


def test_what_cannot_be_planned_says_why(model, machine):
    spec = model("llama-3.1-8b")
    none = Devices(name="m", gpus=(), host=machine(RTX4090).host)
    assert "none" in vllm_plan(spec, none, Request()).fit.message
    assert "metal" in vllm_plan(spec, machine(RTX4090, backend="metal"), Request()).fit.message
    assert "forks" in vllm_plan(spec, machine("AMD Instinct MI100"), Request()).fit.message
    gguf = structs.replace(spec, source="/models/x.gguf")
    assert "llama.cpp" in vllm_plan(gguf, machine(RTX4090), Request()).fit.message
    assert "Blackwell" in vllm_plan(spec, machine("NVIDIA B200 SXM"), Request(quant="w8a8")).fit.message
    assert "experts" in vllm_plan(spec, machine(H100), Request(quant="mxfp4")).fit.message


def test_a_format_no_card_computes_leaves_the_others(model, machine, gpu):
    mixed = structs.replace(machine("NVIDIA B200 SXM"), gpus=(gpu("NVIDIA B200 SXM"), gpu(A100, uuid="GPU-1", index=1)))
    found = vllm_plan(model("llama-3.1-8b"), mixed, Request(quant="w8a8"))
    assert found.plan is None
    assert "Blackwell" in found.fit.message


def test_impossible_splits_are_refused_with_the_reason(model, machine):
    five = vllm_plan(model("qwen3-14b"), machine(A100, 5), Request(tensor_parallel=5))
    assert "vocabulary" in five.fit.message
    nine = vllm_plan(model("llama-3.1-8b"), machine(A100, 2), Request(tensor_parallel=4))
    assert "4 equal GPUs" in nine.fit.message


def test_unsupported_cards_beside_a_good_one_are_left_alone(model, machine, gpu):
    mixed = structs.replace(machine(A100), gpus=(gpu("NVIDIA GeForce GTX 1080 Ti"), gpu(A100, uuid="GPU-1", index=1)))
    assert vllm_plan(model("llama-3.1-8b"), mixed, Request()).plan.gpu_uuids == ("GPU-1",)


def test_stages_and_replicas_fill_every_gpu(model, machine):
    plan = vllm_plan(
        model("llama-3.3-70b"), machine(RTX3090, 4), Request(quant="AWQ", pipeline_parallel=2, tensor_parallel=2)
    ).plan
    assert (plan.tensor_parallel, plan.pipeline_parallel) == (2, 2)
    first, second, third, fourth = (use.weights_bytes for use in plan.devices[:4])
    assert first == second
    assert third == fourth


def test_versions_come_from_the_argument_the_request_or_the_latest(model, machine):
    spec, card = model("llama-3.1-8b"), machine(A100)
    assert vllm_plan(spec, card, Request(), version="0.19.0").version == (0, 19)
    assert vllm_plan(spec, card, Request(), version=(0, 21)).version == (0, 21)
    assert vllm_plan(spec, card, Request(engine_version="0.26")).version == (0, 26)
    assert vllm_plan(spec, card, Request()).version == (0, 33)
    with pytest.raises(EstimatorError):
        vllm_plan(spec, card, Request(engine_version="0.8"))


def test_the_curve_rises_to_the_wall_and_the_targets_bound_it(model, machine):
    spec, card = model("llama-3.1-8b"), machine(H100)
    free = vllm_plan(spec, card, Request(mode="scale-out", quant="bf16"))
    rates = free.serving.output_tokens_per_s
    assert all(b >= a * 0.999 for a, b in pairwise(rates))
    low, high = free.serving.low_tokens_per_s, free.serving.high_tokens_per_s
    assert all(a < b < c for a, b, c in zip(low, rates, high, strict=True))
    quick = vllm_plan(spec, card, Request(mode="scale-out", quant="bf16", min_decode=40))
    assert 1 < quick.serving.max_concurrency < free.serving.max_concurrency
    early = vllm_plan(spec, card, Request(mode="scale-out", quant="bf16", max_ttft=0.2))
    assert early.serving.max_concurrency < free.serving.max_concurrency
    never = vllm_plan(spec, card, Request(mode="scale-out", quant="bf16", min_decode=10_000))
    assert never.serving.max_concurrency == 0


def test_single_stream_speed_has_bounds_and_falls_with_depth(model, machine):
    spec, card = model("llama-3.1-8b"), machine(H100)
    empty = vllm_plan(spec, card, Request(quant="bf16")).speed
    deep = vllm_plan(spec, card, Request(quant="bf16", depth_tokens=100_000)).speed
    one = empty.decode_tokens_per_s
    assert one.low < one.expected < one.high
    assert deep.decode_tokens_per_s.expected < one.expected
    assert empty.ttft_s.low < empty.ttft_s.expected < empty.ttft_s.high
    assert 80 < one.expected < 250


def test_unknown_rates_give_a_plan_without_a_speed(model, machine):
    found = vllm_plan(model("llama-3.1-8b"), machine(A100, flops_per_s=None), Request())
    assert found.plan is not None
    assert found.speed is None
    assert found.serving is None
    assert found.value == 1.0


def codes(found):
    return {limit.code for limit in found.limits}


def test_limits_name_what_holds_back(model, machine):
    plain = vllm_plan(model("llama-3.1-8b"), machine(H100), Request(quant="bf16", mode="scale-out"))
    assert codes(plain) <= {"capacity-wall"}
    weight_only = vllm_plan(model("qwen2.5-7b"), machine(RTX3090), Request(quant="awq"))
    assert "weight-only" in codes(weight_only)
    assert "half-only" in codes(vllm_plan(model("qwen2.5-7b"), machine("NVIDIA Tesla T4"), Request(quant="awq")))
    emulated = vllm_plan(model("qwen2.5-7b"), machine("AMD Instinct MI210"), Request(quant="fp8"))
    assert "emulated" in codes(emulated)
    odd = vllm_plan(model("llama-3.1-8b"), machine(H100), Request(quant="bf16", max_num_seqs=12))
    assert "sequences-off-step" in codes(odd)
    latent = vllm_plan(model("deepseek-v2-lite"), machine(H100, 2), Request(quant="bf16", tensor_parallel=2))
    assert "latent-replicated" in codes(latent)
    repeated = vllm_plan(model("qwen3-30b-a3b"), machine(H100, 8), Request(quant="bf16", tensor_parallel=8))
    assert "kv-replicated" in codes(repeated)
    slow = vllm_plan(
        model("llama-3.1-8b"), machine(RTX3090, 2, peer_bytes_per_s=12e9), Request(quant="bf16", tensor_parallel=2)
    )
    assert "slow-links" in codes(slow)
    state = vllm_plan(model("qwen3.5-9b"), machine(H100), Request(quant="bf16"))
    assert "state-blocks" in codes(state)


def test_sequences_are_capped_by_the_blocks_of_state(model, machine):
    tight = machine(RTX4090)
    free = vllm_plan(model("falcon-mamba-7b"), tight, Request(quant="bf16", mode="scale-out"))
    assert free.plan.max_num_seqs == 248
    assert free.plan.max_num_seqs <= free.concurrency_at_context
    spec = model("qwen3.5-9b")
    fixed = vllm_plan(spec, tight, Request(quant="fp8", context=4096, max_num_seqs=512))
    assert fixed.plan is None
    assert "512" in fixed.fit.message
    assert vllm_plan(spec, tight, Request(quant="fp8", context=4096, max_num_seqs=256)).plan.max_num_seqs == 256


def test_lengths_are_kept_lowered_or_refused(model, machine):
    spec = model("qwen2.5-32b")
    lowered = vllm_plan(spec, machine(RTX3090), Request(quant="awq", workload="rag"))
    assert lowered.plan.context_tokens == lowered.context.safe_tokens < lowered.context.max_tokens
    assert lowered.context.safe_tokens < 16384
    asked = vllm_plan(spec, machine(RTX3090), Request(quant="awq", context=32768))
    assert asked.plan is None
    wanted = vllm_plan(spec, machine(RTX3090), Request(quant="awq", workload="rag", min_context=16000))
    assert wanted.plan is None
    short = vllm_plan(spec, machine(RTX3090), Request(quant="awq", context=1024))
    assert short.plan.context_tokens == 1024


def test_a_length_above_the_models_own_is_refused_with_both_numbers(model, machine):
    spec = model("qwen2.5-7b")
    with pytest.raises(EstimatorError, match=f"10000000 .* {spec.max_context_tokens} tokens"):
        vllm_plan(spec, machine(H100), Request(quant="bf16", context=10**7))
    longest = vllm_plan(spec, machine(H100), Request(quant="bf16", context=spec.max_context_tokens))
    assert longest.plan.context_tokens == spec.max_context_tokens


def test_a_batch_takes_a_token_of_every_sequence(model, machine):
    spec, card = model("llama-3.1-8b"), machine(H100)
    small = vllm_plan(spec, card, Request(quant="bf16", mode="scale-out", max_num_batched_tokens=512)).plan
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (512, 512)
    many = vllm_plan(spec, machine(A100), Request(quant="bf16", max_num_seqs=4096)).plan
    assert many.max_num_batched_tokens >= many.max_num_seqs == 4096
    with pytest.raises(EstimatorError, match="4096"):
        vllm_plan(spec, card, Request(quant="bf16", max_num_seqs=4096, max_num_batched_tokens=512))


def test_vision_models_get_room_for_one_whole_item(model, machine):
    assert vllm_plan(model("gemma-3-12b"), machine(A100), Request()).plan.max_num_batched_tokens == 4096
    assert vllm_plan(model("llama-3.1-8b"), machine(A100), Request()).plan.max_num_batched_tokens == 2048
    with pytest.raises(EstimatorError, match="2496"):
        vllm_plan(model("gemma-4-31b"), machine(A100), Request(max_num_batched_tokens=2048))


def test_a_model_without_a_cache_serves_any_length(model, machine):
    found = vllm_plan(model("falcon-mamba-7b"), machine(A100), Request(quant="bf16"))
    assert found.plan is not None
    assert found.context.max_tokens == model("falcon-mamba-7b").max_context_tokens


def test_eager_gives_the_graphs_memory_to_the_pool(model, machine):
    spec, card = model("llama-3.1-8b"), machine(A100)
    graphs, eager = (
        vllm_plan(spec, card, Request(quant="bf16", enforce_eager=flag)).plan.devices[0] for flag in (False, True)
    )
    assert eager.kv_cache_bytes > graphs.kv_cache_bytes
    assert eager.runtime_bytes < graphs.runtime_bytes


CARDS = [
    RTX3090,
    RTX4090,
    A100,
    H100,
    "NVIDIA Tesla T4",
    "NVIDIA GB10",
    "AMD Instinct MI300X",
    "NVIDIA GeForce RTX 5090",
]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(model_names())),
    card=st.sampled_from(CARDS),
    count=st.sampled_from([1, 2, 4, 8]),
    quant=st.sampled_from([None, "bf16", "fp8", "awq"]),
    mode=st.sampled_from(["balanced", "interactive", "light-api", "scale-out"]),
    minor=st.sampled_from([12, 19, 26, 33]),
)
def test_no_plan_would_abort(name, card, count, quant, mode, minor):
    spec, sheet = find_model(name).spec, find_datasheet(card)
    total = sheet.memory_usable_bytes or sheet.memory_bytes

    gpus = tuple(
        Device(
            name=sheet.name, backend="cuda" if sheet.vendor == "nvidia" else "rocm",
            family=family(vendor=sheet.vendor, compute_capability=sheet.compute_capability,
                          gfx_target=sheet.gfx_target, name=sheet.name),
            memory_total_bytes=total, memory_free_bytes=total - GIB, bandwidth_bytes_per_s=sheet.bandwidth_bytes_per_s,
            flops_per_s=sheet.fp16_flops_per_s, compute_capability=sheet.compute_capability,
            gfx_target=sheet.gfx_target, unified=sheet.unified, index=i,
        )
        for i in range(count)
    )  # fmt: skip
    host = Host(ram_total_bytes=GIB, ram_available_bytes=GIB, bandwidth_bytes_per_s=None, threads=1)
    ruled = rules((0, minor))
    found = vllm_plan(
        spec, Devices(name="m", gpus=gpus, host=host), Request(quant=quant, mode=mode), version=(0, minor)
    )
    plan = found.plan
    if plan is None:
        assert found.fit.status == "too-large"
        return
    assert plan.gpu_memory_utilization * cuda_total_bytes(gpus[0]) <= gpus[0].memory_free_bytes
    assert plan.max_num_seqs <= plan.max_num_batched_tokens
    per_rank = len(plan.gpu_uuids) // plan.data_parallel
    assert per_rank == plan.tensor_parallel * plan.pipeline_parallel
    layout = cache.cache_layout(spec, ruled, tensor_parallel=plan.tensor_parallel)
    if plan.pipeline_parallel == 1 and layout.block_bytes:
        blocks = plan.devices[0].kv_cache_bytes // layout.block_bytes
        need = cache.blocks_per_request(
            layout, ruled, context_tokens=plan.context_tokens,
            max_num_batched_tokens=plan.max_num_batched_tokens, prefix_caching=True,
        )  # fmt: skip
        assert need < blocks
        if cache.has_state(layout):
            assert plan.max_num_seqs <= blocks


def test_a_plan_is_for_the_release_that_the_driver_runs(machine, model):
    found = vllm_plan(model("qwen3-4b"), machine("NVIDIA Tesla T4", driver_version="535.183.01"), Request())
    assert found.plan.engine_version == "0.26"
    assert "driver 535.183.01 runs" in found.findings[0]
    refused = vllm_plan(model("qwen3-4b"), machine("NVIDIA Tesla T4", driver_version="470.82.01"), Request())
    assert refused.plan is None
    assert "470 is too old" in refused.fit.message


def test_the_installed_release_is_planned_for_unless_another_is_asked_for(machine, model):
    here = structs.replace(machine("NVIDIA L4"), vllm_version="0.19.1")
    assert vllm_plan(model("qwen3-4b"), here, Request()).plan.engine_version == "0.19"
    assert vllm_plan(model("qwen3-4b"), here, Request(engine_version="0.21")).plan.engine_version == "0.21"


def test_unified_memory_keeps_more_back_and_says_why(machine, model):
    found = vllm_plan(model("qwen3-4b"), machine("NVIDIA GB10", memory_free_bytes=100 * GIB), Request())
    total = machine("NVIDIA GB10").gpus[0].memory_total_bytes
    assert found.plan.gpu_memory_utilization * total <= 97 * GIB
    assert any(one.code == "unified-memory" for one in found.limits)


def test_formats_without_a_known_speed_are_a_last_resort(machine, model):
    t4 = machine("NVIDIA Tesla T4")
    request = Request(engine_version="0.26")
    assert vllm_plan(model("llama-3.1-8b"), t4, request).plan.quant == "FP8"
    assert vllm_plan(model("qwen3-14b"), t4, request).plan.quant == "AWQ", "its maker published one"
    tight = vllm_plan(model("phi-4"), t4, request)
    assert tight.plan.quant == "BNB-NF4"
    assert tight.speed is tight.serving is None
    assert any(one.code == "speed-unknown" for one in tight.limits)
    radeon = machine("AMD Radeon RX 7900 XTX")
    assert vllm_plan(model("llama-3.1-8b"), radeon, Request()).plan.quant == "BF16"
    emulated = vllm_plan(model("llama-3.1-8b"), radeon, Request(quant="fp8"))
    assert emulated.plan.quant == "FP8"
    assert emulated.speed is None


def test_more_gpus_must_be_worth_it(machine, model):
    eight = machine("NVIDIA H100 SXM5 80 GB", 8, peer_bytes_per_s=450e9)
    plan = vllm_plan(model("llama-3.1-8b"), eight, Request()).plan
    assert plan.pipeline_parallel == 1
    four = machine("NVIDIA GeForce RTX 4090", 4, peer_bytes_per_s=16e9)
    assert len(vllm_plan(model("qwen3-0.6b"), four, Request(mode="interactive")).plan.gpu_uuids) == 1


def test_mxfp4_of_a_model_without_experts_is_refused(machine, model):
    found = vllm_plan(model("qwen3-8b"), machine("NVIDIA L4"), Request(quant="MXFP4"))
    assert found.plan is None
    assert "routed experts" in found.fit.message
