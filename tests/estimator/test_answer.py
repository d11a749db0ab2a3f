"""The whole answer on described machines: what fits, what is said, and that the parts agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_estimator.answer import answer_on
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.found import RESOLUTION
from willitrun_estimator.hardware import devices
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

GIB = 1 << 30
PLAN = frozenset({"plan", "speed", "context"})


def on(words: str, request: Request = Request()) -> Devices:  # noqa: B008 - a frozen value
    return devices(open_machine(words), request, sheet_of)


def asked(model: str, words: str, **options: object) -> Answer:
    request = Request(**options)  # type: ignore[arg-type]
    return answer_on(on(words, request), find_model(model).spec, request, sections=PLAN)


def test_a_model_that_fits_is_wholly_on_the_gpu() -> None:
    result = asked("llama-3.1-8b", "RTX 3090, 64 GiB RAM", quant="Q4_K_M", context=8192, kv_type="f16")
    plan = result.plan
    assert plan is not None
    assert (plan.gpu_layers, plan.layers, plan.cpu_moe_layers, plan.offloaded_fraction) == (33, 32, 0, 0.0)
    gpu, host = plan.devices
    assert gpu.kv_cache_bytes == GIB  # 32 layers x 8192 cells x 2 x 8 heads x 128 x 2 bytes
    assert host.kv_cache_bytes == 0
    assert result.fit.status == "comfortable"
    assert 60 < result.speed.decode_tokens_per_s.expected < 200  # type: ignore[union-attr]


def test_experts_go_to_ram_before_whole_layers_do() -> None:
    result = asked("qwen3-30b-a3b", "RTX 3060, 64 GiB RAM", quant="Q4_K_M", context=8192)
    plan = result.plan
    assert plan is not None
    assert plan.gpu_layers == plan.layers + 1
    assert 0 < plan.cpu_moe_layers < plan.layers
    assert result.fit.status == "offload"


def test_two_cards_share_a_model_that_one_cannot_hold() -> None:
    result = asked("llama-3.3-70b", "2x RTX 3090, 64 GiB RAM", quant="Q4_K_M", context=8192)
    plan = result.plan
    assert plan is not None
    assert len(plan.tensor_split) == 2
    assert sum(plan.tensor_split) == plan.gpu_layers == 81
    for use in plan.devices[:2]:
        assert 0 < use.total_bytes <= use.free_bytes


def test_a_fixed_number_of_layers_stays_fixed() -> None:
    plan = asked("llama-3.1-8b", "RTX 3090, 64 GiB RAM", quant="Q4_K_M", gpu_layers=10, context=4096).plan
    assert plan is not None
    assert plan.gpu_layers == 10
    assert plan.offloaded_fraction == pytest.approx(0.7, abs=0.1)


def test_an_impossible_fix_is_refused_with_the_two_numbers() -> None:
    result = asked("llama-3.3-70b", "RTX 3060, 64 GiB RAM", quant="Q8_0", gpu_layers="all", context=4096)
    assert result.fit.status == "too-large"
    assert "would need" in result.fit.message
    assert "can be used" in result.fit.message
    assert result.fit.headroom_bytes < 0


def test_weights_beyond_vram_and_ram_are_paged() -> None:
    result = asked("deepseek-v3", "RTX 3060, 16 GiB RAM", quant="Q4_K_M", context=4096)
    assert result.fit.status == "paging"
    assert result.plan is not None


def test_a_gguf_quantization_is_not_asked_of_vllm_formats() -> None:
    with pytest.raises(EstimatorError, match="checkpoint format"):
        asked("llama-3.1-8b", "RTX 3090", quant="AWQ", engine="llama.cpp")


def test_a_context_beyond_the_models_own_is_refused() -> None:
    with pytest.raises(EstimatorError, match="min-context"):
        asked("llama-3.1-8b", "RTX 3090", min_context=1_000_000)


def test_a_margin_like_llama_cpps_leaves_that_much_free() -> None:
    free = 24 * GIB
    result = asked("llama-3.1-8b", "RTX 3090, 64 GiB RAM", quant="Q8_0", context=131072, margin_bytes=GIB)
    gpu = result.plan.devices[0]  # type: ignore[union-attr]
    assert gpu.total_bytes - gpu.runtime_bytes <= free - GIB


def test_devices_add_up_to_the_memory_of_the_plan() -> None:
    plan = asked("kimi-linear", "NVIDIA A100 40GB").plan
    assert plan is not None
    assert plan.memory_bytes == sum(use.total_bytes for use in plan.devices)
    for use in plan.devices:
        named = use.weights_bytes + use.kv_cache_bytes + use.recurrent_bytes + use.compute_bytes
        assert use.total_bytes == named + use.output_bytes + use.runtime_bytes


def test_a_plan_wholly_on_the_gpu_comes_before_one_that_scores_less_than_a_point_more() -> None:
    request = Request()
    result = answer_on(on("AMD Instinct MI100 32GB", request), find_model("kimi-linear").spec, request)
    assert result.fit.status == "comfortable"
    assert result.runner_up is not None
    assert result.runner_up.score < result.score + 0.5 + RESOLUTION
    assert result.runner_up.cpu_moe_layers > 0
    assert "leaves weights in host memory" in result.runner_up.reason


def test_every_key_of_a_full_answer_is_filled() -> None:
    request = Request()
    result = answer_on(on("AMD Instinct MI100 32GB", request), find_model("glm-4.5-air").spec, request)
    assert result.fit.status == "offload"
    assert {row.workload for row in result.workloads} == {"chat", "coding", "agentic", "reasoning", "rag"}
    assert [row.mode for row in result.modes] == ["balanced", "interactive", "light-api", "scale-out"]
    assert sum(row.best for row in result.quants) == 1
    assert result.tags is not None
    assert result.tags.bottleneck.value == "Capacity"
    assert {limit.code for limit in result.limits} >= {"offload"}
    assert result.runner_up is not None
    assert result.runner_up.score <= result.score + 0.5 + RESOLUTION
    assert result.serving is not None
    assert list(result.serving.concurrency) == sorted(result.serving.concurrency)
    assert result.improvements == tuple(sorted(result.improvements, key=lambda one: -one.gain))
    assert result.context.safe_tokens >= result.plan.context_tokens  # type: ignore[union-attr]


def test_what_drafting_and_images_would_take_is_named_beside_the_plan() -> None:
    request = Request()
    machine, spec = on("NVIDIA RTX 5090", request), find_model("qwen3.5-35b-a3b").spec
    whole = answer_on(machine, spec, request).plan
    alone = answer_on(machine, spec, request, sections=PLAN).plan
    assert whole is not None
    assert alone is not None
    notes = {name: amount for name, amount, _ in whole.devices[-1].notes}
    assert notes["projector"] == 2 * spec.non_text_params
    assert notes["draft head cache"] == 2 * 2 * 256 * 2 * whole.context_tokens
    assert {name for name, _, _ in alone.devices[-1].notes} < notes.keys()
    assert whole.memory_bytes == alone.memory_bytes


def test_memory_held_by_others_is_named_as_the_thing_to_free() -> None:
    request = Request()
    result = answer_on(on("RTX 3090 (8 GiB free), 32 GiB RAM", request), find_model("qwen3-14b").spec, request)
    assert "close-programs" in {one.code for one in result.improvements}


def card(free: int, bandwidth: float) -> Device:
    return Device(
        name="card", backend="cuda", family="ampere", memory_total_bytes=24 * GIB, memory_free_bytes=free,
        bandwidth_bytes_per_s=bandwidth, flops_per_s=7e13, int8_ops_per_s=2.8e14, multiprocessors=82,
        link_bytes_per_s=2e10, compute_capability="8.6",
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 23), st.integers(1, 8), st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-12b"]))
def test_more_free_memory_never_scores_lower_and_no_plan_exceeds_it(free: int, more: int, model: str) -> None:
    host = Host(
        ram_total_bytes=64 * GIB,
        ram_available_bytes=64 * GIB,
        bandwidth_bytes_per_s=4e10,
        bandwidth_basis="given",
        threads=8,
    )
    less = Devices(name="x", gpus=(card(free * GIB, 9e11),), host=host)
    bigger = structs.replace(less, gpus=(card(min(24, free + more) * GIB, 9e11),))
    spec, request = find_model(model).spec, Request(quant="Q4_K_M")
    before = answer_on(less, spec, request, sections=PLAN)
    after = answer_on(bigger, spec, request, sections=PLAN)
    assert after.score >= before.score - 1
    assert before.plan is not None
    assert before.plan.devices[0].total_bytes <= free * GIB


@pytest.mark.parametrize(("model", "blocks"), [("llama-3.1-8b", 32), ("qwen3-30b-a3b", 48)])
def test_more_layers_than_there_are_mean_all_of_them(model: str, blocks: int) -> None:
    machine = "RTX 3090, 64 GiB RAM"
    many = asked(model, machine, quant="Q4_K_M", context=4096, cpu_moe_layers=999, gpu_layers=999).plan
    every = asked(model, machine, quant="Q4_K_M", context=4096, cpu_moe_layers="all", gpu_layers="all").plan
    assert many == every
    assert many is not None
    assert (many.cpu_moe_layers, many.gpu_layers) == (blocks, blocks + 1)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 33, 42])
def test_fixed_gpu_layers_are_what_the_engine_is_given(layers: int) -> None:
    # GLM-4.5 Air has 46 blocks and one next-token layer, which -ngl counts.
    plan = asked("glm-4.5-air", "2x RTX 3090, 128 GiB RAM", quant="Q2_K", context=4096, gpu_layers=layers).plan
    assert plan is not None
    assert (plan.gpu_layers, plan.layers) == (layers, 47)


def test_gpus_too_small_for_the_buffers_of_prompts_are_left_out() -> None:
    machine = "3x NVIDIA GeForce GTX 1650 Ti Laptop, 128 GiB RAM"
    request = Request(context=1_000_000, kv_type="f32", margin_bytes=0)
    result = answer_on(on(machine, request), find_model("granite-4.0-h-small").spec, request)
    plan = result.plan
    assert plan is not None
    assert (plan.backend, plan.gpu_layers, result.fit.status) == ("cpu", 0, "comfortable")
    assert [use.kind for use in plan.devices] == ["host"]
    assert plan.devices[0].kv_cache_bytes > 30 * GIB
    said = {one.code: one.message for one in result.limits}
    assert "starts on NVIDIA GeForce GTX 1650 Ti Laptop" in said["gpus-left-out"]
    assert "ram-bandwidth-assumed" in said


def test_a_context_beyond_the_models_own_is_kept_and_said() -> None:
    request = Request(context=4096)
    result = answer_on(on("RTX 3090", request), find_model("phi-2").spec, request)
    assert result.plan is not None
    assert result.plan.context_tokens == 4096
    assert "2K the model is made for" in next(
        one.message for one in result.limits if one.code == "context-beyond-model"
    )
    slots = Request(context=4096, parallel=2)
    two = answer_on(on("RTX 3090", slots), find_model("phi-2").spec, slots)
    assert "context-beyond-model" not in [one.code for one in two.limits]


def test_a_cache_type_of_vllm_decides_the_engine() -> None:
    result = asked("llama-3.1-8b", "RTX 4090", kv_type="fp8", context=8192)
    assert result.plan is not None
    assert (result.plan.engine, result.plan.kv_type) == ("vllm", "fp8")
    for engine in ("llama.cpp", "ollama"):
        with pytest.raises(EstimatorError, match="only vLLM has"):
            asked("llama-3.1-8b", "RTX 4090", kv_type="fp8", context=8192, engine=engine)


def test_options_of_llama_cpp_decide_the_engine_of_a_serving_mode() -> None:
    open_to_both = asked("starcoder2-3b", "3x RTX A5500, 128 GiB RAM", mode="scale-out")
    assert open_to_both.plan is not None
    assert open_to_both.plan.engine == "vllm"
    fixed = asked("starcoder2-3b", "3x RTX A5500, 128 GiB RAM", mode="scale-out", ubatch=256)
    assert fixed.plan is not None
    assert (fixed.plan.engine, fixed.plan.ubatch) == ("llama.cpp", 256)


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_fixed_slots_stay_fixed(engine: str) -> None:
    plan = asked("starcoder2-3b", "3x RTX A5500, 128 GiB RAM", mode="scale-out", parallel=2, engine=engine).plan
    assert plan is not None
    assert plan.parallel == 2


def test_a_named_build_is_planned_for_by_its_rules() -> None:
    machine, fixed = "RTX 3090, 64 GiB RAM", {"quant": "Q4_K_M", "context": 32768, "kv_type": "q8_0", "ubatch": 512}
    now = asked("llama-3.1-8b", machine, **fixed).plan
    before = asked("llama-3.1-8b", machine, **fixed, engine_version="b5000").plan
    assert now is not None
    assert before is not None
    assert before.devices[0].compute_bytes != now.devices[0].compute_bytes
    with pytest.raises(EstimatorError, match="twenty"):
        asked("llama-3.1-8b", machine, engine_version="twenty")


def test_what_does_not_start_is_counted_to_the_byte_too() -> None:
    machine = "2x NVIDIA GeForce GTX 1060 3 GB, 64 GiB RAM"
    result = asked("glm-5.3-flash", machine, quant="Q3_K_L", context=512, gpu_layers="all")
    assert result.fit.status == "too-large"
    assert result.plan is not None
    for use in result.plan.devices:
        parts = use.weights_bytes, use.kv_cache_bytes, use.recurrent_bytes, use.compute_bytes, use.output_bytes
        assert min(parts) >= 0
        assert sum(parts) + use.runtime_bytes == use.total_bytes


def test_a_cache_type_that_does_not_divide_the_heads_is_refused_with_both_numbers() -> None:
    with pytest.raises(EstimatorError, match=r"80 elements .* q8_0, which has blocks of 32"):
        asked("phi-2", "RTX 3090, 64 GiB RAM", kv_type="q8_0")
