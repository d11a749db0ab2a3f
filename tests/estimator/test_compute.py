"""The replayed graph allocator: its arithmetic, the scheduler's choices, and compute buffers that llama.cpp printed."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.estimator.simulated import machine
from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec, Moe, NoMixer, Recurrent
from willitrun_catalog.shipped import model, models
from willitrun_estimator.compute import ComputeModel
from willitrun_estimator.compute import model as planning
from willitrun_estimator.compute.allocator import Arena
from willitrun_estimator.compute.build import CURRENT, build_of
from willitrun_estimator.compute.form import CELLS, Sizes, U, evaluate, form, plus
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.kernels import has_flash_kernel
from willitrun_estimator.compute.programs import peaks
from willitrun_estimator.device import Backend
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import weight_profile

MIB = 1 << 20


def compute(
    name: str,
    quant: str,
    context: int,
    *,
    gpu_layers: int | None = None,
    gpus: int = 1,
    backend: Backend = "cuda",
    build: int | None = None,
    **given_settings: object,
) -> tuple[float, ...]:
    """Compute buffers in MiB, everything on one GPU unless said otherwise."""
    spec = model(name)
    layers = len(spec.layers) + 1 if gpu_layers is None else gpu_layers
    wanted = Settings(context_tokens=context, **given_settings)  # type: ignore[arg-type]
    known = ComputeModel(weight_profile(spec, quant), machine(gpus, backend), wanted, build_of(build))
    placement = Placement(gpu_layers=layers, split=(layers,) if gpus else ())
    return tuple(amount / MIB for amount in known.bytes(placement, context))


@pytest.mark.parametrize(
    ("name", "quant", "context", "options", "printed"),
    [
        # "ROCm0 compute buffer size", "CUDA0 compute buffer size" of llama-server, ollama and llama-bench logs
        ("qwen3.5-27b", "Q8_0", 262144, {}, 378.02),
        ("qwen3-0.6b", "Q8_0", 40960, {"ubatch": 2048}, 264.04),
        ("qwen3-next-80b-a3b-instruct", "Q4_K_M", 32768, {"ubatch": 2048, "logit_rows": 2048}, 1219.00),
        ("qwen3-14b", "Q8_0", 4096, {"flash_attention": False, "gpu_layers": 0, "logit_rows": 512}, 1094.99),
        ("qwen3-32b", "Q4_K_M", 123392, {}, 306.5),
        ("qwen3.5-9b", "Q4_K_M", 8192, {"ubatch": 2048, "backend": "vulkan"}, 416.16),
        ("llama-2-7b-chat", "Q4_0", 4096, {}, 92.5),
    ],
)
def test_buffers_that_real_gpus_reported(
    name: str, quant: str, context: int, options: dict[str, object], printed: float
) -> None:
    assert compute(name, quant, context, **options)[0] == pytest.approx(printed, rel=0.001)  # type: ignore[arg-type]


def test_an_older_build_keeps_all_rows_and_casts_the_mask() -> None:
    new = compute("llama-3.1-8b-instruct", "Q4_K_M", 200192, kv_type_k="q8_0", kv_type_v="q8_0")
    old = compute("llama-3.1-8b-instruct", "Q4_K_M", 200192, kv_type_k="q8_0", kv_type_v="q8_0", build=9106)
    plain = compute("llama-3.1-8b-instruct", "Q4_K_M", 4096, build=7000)
    assert plain[0] == pytest.approx(258.5, rel=0.001)
    assert plain[1] == pytest.approx(8 + 8, rel=0.01)
    assert old[1] == pytest.approx(4 * 512 * 200192 / MIB + 16, rel=0.01)
    assert old[0] < new[0]
    assert build_of(None) is CURRENT
    assert build_of(10_000) == CURRENT


def test_vulkan_reads_a_quantized_cache_in_place() -> None:
    quantized = {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}
    cuda = compute("llama-3.1-8b-instruct", "Q4_K_M", 131072, **quantized)  # type: ignore[arg-type]
    vulkan = compute("llama-3.1-8b-instruct", "Q4_K_M", 131072, backend="vulkan", **quantized)  # type: ignore[arg-type]
    assert cuda[0] == pytest.approx(672.09, abs=0.01)
    assert vulkan[0] < 300


def test_two_gpus_hold_four_copies_of_the_mask() -> None:
    spec = model("llama-3.1-8b-instruct")
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(2), Settings(context_tokens=131072))
    first, second, host = known.bytes(Placement(gpu_layers=33, split=(17, 16)), 131072)
    assert first / MIB == pytest.approx(652.04, abs=0.1)
    assert second / MIB == pytest.approx(684.04, abs=0.1)
    assert host / MIB == pytest.approx(552.05, abs=0.1)
    alone = known.bytes(Placement(gpu_layers=33, split=(33, 0)), 131072)
    assert alone[1] == 0


def test_expert_tensors_are_copied_unless_operations_stay_on_the_host() -> None:
    spec = model("deepseek-v3")
    weights = weight_profile(spec, "Q4_K_M")
    placement = Placement(gpu_layers=62, split=(62,), cpu_moe_layers=61)
    copied = ComputeModel(weights, machine(1), Settings(context_tokens=4096)).bytes(placement, 4096)
    kept = ComputeModel(weights, machine(1), Settings(context_tokens=4096, op_offload=False)).bytes(placement, 4096)
    small = ComputeModel(weights, machine(1), Settings(context_tokens=4096, ubatch=16)).bytes(placement, 4096)
    assert copied[0] / MIB == pytest.approx(3148.01, abs=0.01)
    assert kept[0] < 500 * MIB
    assert small[0] < 100 * MIB


def test_a_cache_on_the_host_moves_attention_there() -> None:
    spec = model("phi-4")
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(1), Settings(context_tokens=4096))
    _, host = known.bytes(Placement(gpu_layers=41, split=(41,), kv_on_host=True), 4096)
    assert host / MIB == pytest.approx(31.49, abs=0.01)


def test_every_architecture_of_the_catalog_can_be_planned() -> None:
    seen = set()
    for spec in models():
        if spec.architecture in seen or spec.block_count > 70:
            continue
        seen.add(spec.architecture)
        quantized = spec.block_count % 2 == 0 and "mamba" not in spec.architecture
        wanted = Settings(context_tokens=4096, flash_attention=quantized)
        known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(1), wanted)
        layers = len(spec.layers)
        every, host = known.bytes(Placement(gpu_layers=layers + 1, split=(layers + 1,)), 4096)
        assert every > 4 * 512 * spec.hidden_size
        assert host > 4 * 512 * spec.hidden_size
        half = known.bytes(Placement(gpu_layers=1 + layers // 2, split=(1 + layers // 2,)), 4096)
        assert half[0] >= 4 * 512 * spec.hidden_size
    assert len(seen) > 60


def test_symbolic_sizes() -> None:
    values = Sizes(512, 4096, 768, 1).values()
    assert evaluate(form((CELLS, U), 2), values) == 2 * 512 * 4096
    assert evaluate(plus(form((".turned", 3, U)), form((5,))), values) == 4 * (3 * 512 + 5)


def test_the_smallest_hole_that_fits_is_taken() -> None:
    arena = Arena()
    blocks = [arena.take(size) for size in (100, 10, 50, 10)]
    arena.give(blocks[0], 100)
    arena.give(blocks[2], 50)
    assert arena.take(40) == blocks[2]
    assert arena.take(60) == 0
    assert arena.take(200) == 170
    assert arena.peak == 370


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 9)), max_size=60))
def test_held_blocks_never_overlap(steps: list[tuple[int, int]]) -> None:
    arena = Arena()
    held: list[tuple[int, int]] = []
    for size, choice in steps:
        if choice < 4 and held:
            arena.give(*held.pop(choice % len(held)))
        else:
            offset = arena.take(size)
            assert all(offset + size <= other or offset >= other + length for other, length in held)
            held.append((offset, size))
        assert arena.peak >= sum(length for _, length in held)
    for block in held:
        arena.give(*block)
    assert sum(arena.lengths) + 0 == Arena().lengths[0]


def test_an_empty_tensor_keeps_its_place_beyond_the_open_end() -> None:
    arena = Arena()
    first = arena.take(64)
    empty = arena.take(0)
    arena.give(first, 64)
    arena.give(empty, 0)
    assert arena.take(64) == 0
    assert arena.peak == 64


@pytest.mark.parametrize(
    ("backend", "key_dim", "value_dim", "queries", "known"),
    [
        ("cuda", 128, 128, 1, True),
        ("cuda", 160, 160, 4, False),
        ("cuda", 192, 128, 8, True),
        ("cuda", 192, 128, 4, False),
        ("cuda", 576, 512, 16, True),
        ("rocm", 128, 64, 1, False),
        ("vulkan", 160, 160, 1, True),
        ("vulkan", 100, 100, 1, False),
        ("metal", 160, 160, 1, False),
        ("metal", 192, 128, 1, True),
    ],
)
def test_heads_that_flash_attention_has_kernels_for(
    backend: str, key_dim: int, value_dim: int, queries: int, known: bool
) -> None:
    assert has_flash_kernel(backend, key_dim, value_dim, queries) is known


def test_metal_computes_attention_of_unequal_caches_on_the_host() -> None:
    assert not has_flash_kernel("metal", 128, 128, 1, "q8_0", "f16")


def test_attention_without_a_kernel_needs_its_inputs_on_the_host() -> None:
    gpu, host = compute("stablelm-2-12b-chat", "Q4_K_M", 4096, gpu_layers=20)
    assert gpu == pytest.approx(121.99, abs=0.01)
    assert host == pytest.approx(54.01, abs=0.01)


def test_metal_has_room_for_the_cache_in_f16() -> None:
    new = compute("qwen3.5-27b", "Q4_K_M", 262144, backend="metal")[0]
    old = compute("qwen3.5-27b", "Q4_K_M", 262144, backend="metal", build=9222)[0]
    assert new == pytest.approx(1377.52, rel=0.01)
    assert old < 1000


@pytest.mark.parametrize(
    ("name", "options", "gpu", "host"),
    [
        # Planned by llama.cpp itself (tests/truth/llamacpp_memory.md)
        ("gemma-3n-e2b-it", {}, 104.02, 28.02),
        ("gemma-4-e2b-it", {}, 118.52, 28.52),
        ("nemotron-3-super-120b-a12b", {}, 195.51, 20.01),
        ("llama-4-scout-17b-16e-instruct", {}, 96.02, 28.02),
        ("hunyuan-7b-instruct", {"gpu_layers": 16}, 124.5, 20.01),
        ("falcon-40b-instruct", {}, 116.01, 36.01),
        ("lfm2-350m", {}, 35.02, 8.01),
        ("minimax-m3", {}, 189.68, 28.54),
        ("minimax-m3", {"parallel": 2, "kv_type_k": "q8_0", "kv_type_v": "q8_0", "ubatch": 128}, 36.76, 6.73),
        ("minimax-m3", {"parallel": 4, "kv_unified": True}, 116.01, 28.01),
        ("minimax-text-01", {}, 308.39, 92.26),
        ("kimi-k3", {}, 476.0, 32.01),
        ("ling-3.0-flash", {"gpu_layers": 20}, 867.5, 22.2),
    ],
)
def test_graphs_of_their_own(name: str, options: dict[str, object], gpu: float, host: float) -> None:
    found = compute(name, "Q4_K_M", 4096, **options)  # type: ignore[arg-type]
    assert found[0] == pytest.approx(gpu, abs=0.01)
    assert found[1] == pytest.approx(host, abs=0.01)


def graph_peaks(graph: Graph, devices: int) -> tuple[int, ...]:
    """Bytes on each device for a micro-batch of 8."""
    graph.end()
    graph.end()
    values = Sizes(8, 0, 0, 0).values()
    return peaks(graph, values, (32,) * devices, offload=True, large={U: True}, pipeline=False)


def test_unsupported_operations_fall_back_to_the_host() -> None:
    graph = Graph(1)
    source = graph.input("x", (64, U))
    first = graph.add("up", (64, U), graph.weight("w", 0), source)
    odd = graph.add("odd", (64, U), first, gpu_supported=False)
    graph.add("end", (64, U), odd, gpu_supported=False)
    device, host = graph_peaks(graph, 2)
    assert device == 2 * 64 * 8 * 4
    assert host >= 64 * 8 * 4


def tiny(architecture: str, *layers: Layer) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        title="Tiny",
        architecture=architecture,
        source="test",
        hidden_size=256,
        vocab_size=1024,
        tied_embeddings=True,
        max_context_tokens=32768,
        layers=layers,
    )


DENSE = Layer(mixers=(Attention(heads=4, kv_heads=2, key_dim=64, value_dim=64),), ffn=Dense(width=512))
ROUTED = Layer(
    mixers=(Attention(heads=4, kv_heads=2, key_dim=64, value_dim=64),),
    ffn=Moe(experts=8, experts_used=1, width=128),
)


@settings(deadline=None, max_examples=25)
@given(
    context=st.integers(1, 40).map(lambda n: n * 256),
    more=st.integers(0, 40).map(lambda n: n * 256),
    ubatch=st.sampled_from([32, 64, 256, 512]),
    routed=st.booleans(),
    flash=st.booleans(),
)
def test_more_context_or_batch_never_needs_a_smaller_buffer(
    context: int, more: int, ubatch: int, routed: bool, flash: bool
) -> None:
    spec = tiny("qwen3moe" if routed else "llama", *([ROUTED if routed else DENSE] * 4))
    weights = weight_profile(spec, "Q8_0")
    placement = Placement(gpu_layers=5, split=(5,))

    def need(tokens: int, batch: int) -> int:
        wanted = Settings(context_tokens=tokens, ubatch=batch, flash_attention=flash)
        return ComputeModel(weights, machine(1), wanted).bytes(placement, tokens)[0]

    assert need(context, ubatch) <= need(context + more, ubatch)
    assert need(context, ubatch) <= need(context, 2 * ubatch)


def test_lightning_attention_has_a_state_and_no_cache() -> None:
    spec = model("minimax-text-01")
    lightning = [m for layer in spec.layers for m in layer.mixers if isinstance(m, Recurrent)]
    assert lightning
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(1), Settings(context_tokens=4096))
    assert known.bytes(Placement(gpu_layers=81, split=(81,)), 4096)[0] > 0


def test_a_last_block_without_a_mixer() -> None:
    spec = tiny("llama", DENSE, Layer(mixers=(NoMixer(),), ffn=Dense(width=512)))
    known = ComputeModel(weight_profile(spec, "Q8_0"), machine(1), Settings(context_tokens=1024))
    assert known.bytes(Placement(gpu_layers=3, split=(3,)), 1024)[0] > 0


def test_old_plans_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(planning, "_SHAPES_LIMIT", 2)
    spec = tiny("llama", DENSE, DENSE)
    weights, placement = weight_profile(spec, "Q8_0"), Placement(gpu_layers=2, split=(2,))
    kinds = [Settings(context_tokens=1024, parallel=slots) for slots in (1, 2, 3, 4)]
    amounts = [ComputeModel(weights, machine(1), kind).bytes(placement, 1024) for kind in kinds]
    assert len(planning._SHAPES) == 2
    assert ComputeModel(weights, machine(1), kinds[0]).bytes(placement, 1024) == amounts[0]


def test_values_are_padded_where_they_are_stored_transposed() -> None:
    # gemma-4-12b on two GPUs without flash attention, planned by llama.cpp: narrower values take the widest row
    spec = model("gemma-4-12b-it")
    settings = Settings(context_tokens=16384, flash_attention=False)
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(2), settings)
    found = known.bytes(Placement(gpu_layers=49, split=(37, 12)), 16384)
    assert [round(amount / MIB, 2) for amount in found] == [793.04, 823.04, 241.55]


def test_states_of_several_slots_are_moved_one_by_one() -> None:
    one = compute("mamba-codestral-7b-v0.1", "Q4_K_M", 4096, parallel=1)
    four = compute("mamba-codestral-7b-v0.1", "Q4_K_M", 4096, parallel=4)
    assert one[0] < four[0] < 1.5 * one[0]


def test_an_operation_no_device_asks_for_goes_where_most_of_its_sources_are() -> None:
    graph = Graph(2)
    x = graph.input("x", (64, U))
    odd = graph.add("odd", (64, U), x, graph.weight("first", 1), picks_device=False)
    graph.add("other", (64, U), odd, graph.weight("second", 0), picks_device=False)
    assert max(graph_peaks(graph, 3)) >= 64 * 8 * 4


def test_blocks_without_an_indexer_of_their_own_take_the_last_choice() -> None:
    gpu, _ = compute("glm-5.2", "Q4_K_M", 4096)
    assert gpu > 4 * 2048 * 512 * 70 / MIB
