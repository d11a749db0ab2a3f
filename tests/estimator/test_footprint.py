"""The memory model: parts add up, splits lose nothing, and the largest context is found, not stepped to."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from willitrun_catalog.shipped import model
from willitrun_estimator.device import Backend, Device, Devices, Host
from willitrun_estimator.footprint import MemoryModel, footprint
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import weight_profile

MIB = 1 << 20
GIB = 1 << 30
LLAMA = weight_profile(model("llama-3.1-8b-instruct"), "Q4_K_M")
GEMMA = weight_profile(model("gemma-3-270m-it"), "Q4_K_M")
MOE = weight_profile(model("gpt-oss-20b"), "MXFP4_MOE")
HYBRID = weight_profile(model("granite-4.0-h-1b"), "Q4_K_M")


def machine(*backends: Backend) -> Devices:
    gpus = tuple(
        Device(
            name=f"GPU {number}",
            backend=backend,
            family="ampere",
            memory_total_bytes=24 * GIB,
            memory_free_bytes=23 * GIB,
            bandwidth_bytes_per_s=None,
            multiprocessors=82,
        )
        for number, backend in enumerate(backends)
    )
    host = Host(ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB, bandwidth_bytes_per_s=None, threads=8)
    return Devices(name="m", gpus=gpus, host=host)


def test_llama_on_one_gpu_is_what_llama_cpp_plans() -> None:
    gpu, host = footprint(LLAMA, machine("cuda"), Placement(gpu_layers=33, split=(33,)), Settings(context_tokens=32768))
    assert gpu.weights_bytes == pytest.approx(4617396480, rel=1e-5)
    assert gpu.kv_cache_bytes == 4294967296
    assert gpu.compute_bytes == 146811008
    assert gpu.recurrent_bytes == gpu.output_bytes == 0
    assert host.weights_bytes == 295501824
    assert host.compute_bytes == 50343968
    assert host.output_bytes == 128256 * 4
    assert gpu.total_bytes == gpu.weights_bytes + 4294967296 + 146811008 + gpu.runtime_bytes
    assert (gpu.kind, host.kind, gpu.free_bytes) == ("gpu", "host", 23 * GIB)


def test_a_tied_head_is_loaded_beside_the_table_only_with_a_gpu() -> None:
    wanted = Settings(context_tokens=1024)
    alone = footprint(GEMMA, machine(), Placement(gpu_layers=0), wanted)[0]
    with_gpu = footprint(GEMMA, machine("cuda"), Placement(gpu_layers=19, split=(19,)), wanted)
    assert with_gpu[1].weights_bytes == GEMMA.embedding_bytes
    assert sum(use.weights_bytes for use in with_gpu) - alone.weights_bytes == GEMMA.embedding_bytes


def test_quantized_caches_are_padded_on_cuda_alone() -> None:
    wanted = Settings(context_tokens=4096, kv_type_k="q8_0", kv_type_v="q8_0")
    placement = Placement(gpu_layers=19, split=(19,))
    cuda = footprint(GEMMA, machine("cuda"), placement, wanted)[0]
    metal = footprint(GEMMA, machine("metal"), placement, wanted)[0]
    assert cuda.kv_cache_bytes - metal.kv_cache_bytes == 18 * 2 * 384
    model_ = MemoryModel(GEMMA, machine("cuda"), wanted)
    assert model_.cache_bytes(placement, 4096) == model_.cache_bytes(placement, 4096)


def test_a_cache_on_the_host_is_counted_there() -> None:
    placement = Placement(gpu_layers=33, split=(33,), kv_on_host=True)
    gpu, host = footprint(LLAMA, machine("cuda"), placement, Settings(context_tokens=4096))
    assert gpu.kv_cache_bytes == 0
    assert host.kv_cache_bytes == 536870912


def test_experts_move_to_the_host() -> None:
    placement = Placement(gpu_layers=25, split=(25,), cpu_moe_layers=10)
    gpu, host = footprint(MOE, machine("cuda"), placement, Settings(context_tokens=4096))
    moved = MOE.cumulative_expert_bytes[10]
    assert host.weights_bytes == MOE.embedding_bytes + moved
    assert (
        gpu.weights_bytes
        == MOE.cumulative_resident_bytes[-1] + MOE.cumulative_expert_bytes[-1] - moved + MOE.output_bytes
    )


@settings(deadline=None, max_examples=40)
@given(first=st.integers(0, 25), second=st.integers(0, 25), moved=st.integers(0, 24), context=st.integers(1, 128))
def test_a_split_never_loses_anything(first: int, second: int, moved: int, context: int) -> None:
    second = min(second, 25 - first)
    placement = Placement(gpu_layers=first + second, split=(first, second), cpu_moe_layers=moved)
    memory = MemoryModel(MOE, machine("cuda", "cuda"), Settings(context_tokens=4096))
    everything = MOE.tensor_bytes - MOE.unloaded_bytes
    assert sum(memory.weights_bytes(placement)) == everything
    caches = memory.cache_bytes(placement, context * 256)
    alone = MemoryModel(MOE, machine(), Settings(context_tokens=4096))
    assert sum(kv for kv, _ in caches) == alone.cache_bytes(Placement(gpu_layers=0), context * 256)[-1][0]


def test_fewer_gpus_than_devices_leave_the_rest_empty() -> None:
    memory = MemoryModel(LLAMA, machine("cuda", "cuda"), Settings(context_tokens=4096))
    first, second, _ = memory.uses(Placement(gpu_layers=33), 4096)
    assert first.weights_bytes > 4 * GIB
    assert second.weights_bytes == second.compute_bytes == 0


def test_states_follow_their_blocks() -> None:
    memory = MemoryModel(HYBRID, machine("cuda"), Settings(context_tokens=4096))
    whole = memory.cache_bytes(Placement(gpu_layers=41, split=(41,)), 4096)
    half = memory.cache_bytes(Placement(gpu_layers=20, split=(20,)), 4096)
    assert whole[1] == (0, 0)
    assert half[0][1] + half[1][1] == whole[0][1] > 0


@pytest.mark.parametrize(("weights", "units"), [(LLAMA, 33), (MOE, 25), (HYBRID, 41)])
@pytest.mark.parametrize("limit", [GIB, 2 * GIB, 5 * GIB, 8 * GIB, 13 * GIB, 40 * GIB])
def test_the_largest_context_fits_and_the_next_does_not(weights: object, units: int, limit: int) -> None:
    memory = MemoryModel(weights, machine("cuda"), Settings(context_tokens=4096))  # type: ignore[arg-type]
    placement = Placement(gpu_layers=units, split=(units,))
    limits = (limit, 60 * GIB)
    found = memory.safe_tokens(placement, limits)
    assert found % 256 == 0
    if found:
        assert all(used <= most for used, most in zip(memory.per_device_bytes(placement, found), limits, strict=True))
    top = memory.weights.spec.max_context_tokens
    if found < top:
        following = memory.per_device_bytes(placement, found + 256)
        assert any(used > most for used, most in zip(following, limits, strict=True))
    else:
        assert found == top


def test_a_lower_ceiling_is_kept() -> None:
    memory = MemoryModel(LLAMA, machine("cuda"), Settings(context_tokens=4096))
    assert memory.safe_tokens(Placement(gpu_layers=33, split=(33,)), (90 * GIB, 90 * GIB), 5000) == 4864


def test_thousands_of_placements_are_looked_up() -> None:
    memory = MemoryModel(LLAMA, machine("cuda"), Settings(context_tokens=8192))
    placements = [Placement(gpu_layers=n, split=(n,)) for n in range(28, 34)]
    for placement in placements:
        memory.per_device_bytes(placement, 8192)
    start = time.perf_counter()
    for _ in range(400):
        for placement in placements:
            memory.per_device_bytes(placement, 8192)
    assert 2400 / (time.perf_counter() - start) > 4000


@pytest.mark.parametrize(
    ("context", "slots", "split", "planned", "filled"),
    [
        # llama.cpp's planner with `llama_kv_cache_msa_context::get_n_pos` answering as many positions as there are.
        (32768, 1, (61,), (711.92, 56.65), (4290.76, 120.77)),
        (131072, 1, (61,), (2545.29, 153.02), (16995.01, 411.02)),
        (32768, 1, (31, 30), (894.60, 8189.87, 190.58), (8076.05, 15627.81, 447.06)),
        (32768, 4, (61,), (181.08, 32.65), (1065.39, 48.39)),
    ],
)
def test_buffers_of_chosen_blocks_grow_while_the_context_fills(
    context: int, slots: int, split: tuple[int, ...], planned: tuple[float, ...], filled: tuple[float, ...]
) -> None:
    devices = machine(*("cuda" for _ in split))
    wanted = Settings(context_tokens=context, parallel=slots)
    placement = Placement(gpu_layers=sum(split), split=split)
    uses = footprint(weight_profile(model("minimax-m3"), "Q4_K_M"), devices, placement, wanted)
    named = "compute buffer, beyond its plan"
    later = [next(amount for name, amount, _ in use.notes if name == named) for use in uses]
    assert [use.compute_bytes / MIB for use in uses] == pytest.approx(planned, abs=0.01)
    assert [(use.compute_bytes + more) / MIB for use, more in zip(uses, later, strict=True)] == pytest.approx(
        filled, abs=0.01
    )
    for use, more in zip(uses, later, strict=True):
        assert use.runtime_bytes >= more


def test_other_buffers_do_not_grow() -> None:
    for name, flash in (("minimax-m3", False), ("qwen3-8b", True)):
        wanted = Settings(context_tokens=4096, flash_attention=flash)
        layers = len(model(name).layers) + 1
        use = footprint(
            weight_profile(model(name), "Q4_K_M"),
            machine("cuda"),
            Placement(gpu_layers=layers, split=(layers,)),
            wanted,
        )[0]
        assert not [name for name, _, _ in use.notes if "beyond" in name]


@pytest.mark.parametrize(
    ("unified", "ubatch", "loaded"),
    # What llama.cpp really allocates (`compute buffer size`) on a simulated device, not what its planner says.
    [(True, 512, (336.39, 120.26)), (False, 512, (312.39, 96.26)), (False, 2048, (3553.54, 1153.05))],
)
def test_a_buffer_with_the_square_of_a_slots_tokens_is_allocated_for_one_slot(
    unified: bool, ubatch: int, loaded: tuple[float, ...]
) -> None:
    wanted = Settings(context_tokens=32768, parallel=4, kv_unified=unified, ubatch=ubatch)
    needs = MemoryModel(weight_profile(model("minimax-text-01"), "Q4_K_M"), machine("cuda"), wanted)
    placement = Placement(gpu_layers=81, split=(81,))
    planned, more = needs.compute.bytes(placement, 32768), needs.compute.growth(placement, 32768)
    assert [(now + later) / MIB for now, later in zip(planned, more, strict=True)] == pytest.approx(loaded, abs=0.01)
    assert sum(use.total_bytes for use in needs.uses(placement, 32768)) == sum(needs.per_device_bytes(placement, 32768))
