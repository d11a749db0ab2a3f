from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog import shipped
from willitrun_estimator import pace, throughput
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput import SpeedModel
from willitrun_estimator.throughput.constants import shipped as constants
from willitrun_estimator.throughput.groups import basis, groups
from willitrun_estimator.throughput.products import ALIKE, Products, elements_per_byte, mixes, of_type
from willitrun_estimator.weights import WeightProfile, weight_profile
from willitrun_probe.machine import ProductRate

GIB = 1024**3
SETTINGS = Settings(context_tokens=4096)
NOWHERE = Placement(gpu_layers=0)
HOST = Host(
    ram_total_bytes=64 * GIB,
    ram_available_bytes=60 * GIB,
    bandwidth_bytes_per_s=50e9,
    bandwidth_basis="measured",
    threads=8,
    flags=("avx2", "avx512f"),
    disk_read_bytes_per_s=2e9,
)
GPU = Device(
    name="RTX 4090",
    backend="cuda",
    family="ada",
    memory_total_bytes=24 * GIB,
    memory_free_bytes=23 * GIB,
    bandwidth_bytes_per_s=1008e9,
    fp32_flops_per_s=82e12,
    int8_ops_per_s=660e12,
    link_bytes_per_s=25e9,
)
MEASURED = tuple(
    ProductRate(weight_type=kind, decode_bytes_per_s=rate, prefill_ops_per_s=ops)
    for kind, rate, ops in (("Q4_K", 20e9, 400e9), ("Q6_K", 25e9, 500e9))
)
NAMES = ("llama-3.2-1b-instruct", "qwen3-30b-a3b", "gpt-oss-20b", "granite-4.0-h-tiny", "gemma-3-12b-it")
PROFILES = {name: weight_profile(shipped.model(name), "Q4_K_M") for name in NAMES}


def speed(weights: WeightProfile, gpus=(), **changes) -> SpeedModel:
    return SpeedModel(weights, Devices(name="box", gpus=gpus, host=structs.replace(HOST, **changes)), SETTINGS)


models = st.sampled_from(NAMES).map(PROFILES.get)
flags = st.sampled_from([("avx2", "avx512f"), ("avx2",), ("asimd", "asimddp"), ()])


@given(models, st.integers(1, 64), st.floats(5e9, 500e9), flags, st.integers(0, 8192))
@settings(max_examples=80, deadline=None)
def test_more_threads_are_never_slower_where_memory_keeps_them_busy(weights, threads, bandwidth, sets, depth):
    slow, fast = (
        speed(weights, threads=count, bandwidth_bytes_per_s=bandwidth, flags=sets) for count in (threads, 2 * threads)
    )
    host = slow.host
    waiting = host.block_s * slow.work.blocks  # threads that wait for each other: doubled, whatever they compute
    assert fast.decode_s(NOWHERE, depth) <= slow.decode_s(NOWHERE, depth) + waiting + 1e-12
    assert fast.prefill_rate(NOWHERE, prompt_tokens=512) >= slow.prefill_rate(NOWHERE, prompt_tokens=512) * 0.999 or (
        waiting > 0.1 * slow.prefill_s(NOWHERE, prompt_tokens=512)
    )


@given(models, st.floats(5e9, 500e9), st.floats(1.0, 4.0), flags)
@settings(max_examples=60, deadline=None)
def test_more_bandwidth_is_never_slower(weights, bandwidth, factor, sets):
    slow, fast = (speed(weights, bandwidth_bytes_per_s=rate, flags=sets) for rate in (bandwidth, bandwidth * factor))
    assert fast.decode_rate(NOWHERE) >= slow.decode_rate(NOWHERE)
    assert fast.prefill_rate(NOWHERE) >= slow.prefill_rate(NOWHERE)
    assert fast.aggregate(NOWHERE, 4) >= slow.aggregate(NOWHERE, 4)


@given(models, st.integers(0, 4096))
@settings(max_examples=30, deadline=None)
def test_fewer_layers_on_the_host_are_never_slower(weights, depth):
    model = speed(weights, (GPU,))
    blocks = weights.spec.block_count
    rates = [
        model.decode_rate(Placement(gpu_layers=units, split=(units,)), depth_tokens=depth)
        for units in range(1, blocks + 2)
    ]
    assert all(after >= before for before, after in pairwise(rates))
    if weights.cumulative_expert_bytes[-1]:
        whole = Placement(gpu_layers=blocks + 1, split=(blocks + 1,))
        moved = [model.decode_rate(structs.replace(whole, cpu_moe_layers=count)) for count in range(blocks + 1)]
        assert all(after <= before for before, after in pairwise(moved))


@given(models, st.booleans(), st.sampled_from(["measured", "assumed", "micro-benchmark"]))
@settings(max_examples=30, deadline=None)
def test_intervals_hold_their_expectation(weights, calibrated, known):
    devices = Devices(
        name="box",
        gpus=(),
        host=structs.replace(HOST, bandwidth_basis=known, product_rates=MEASURED if calibrated else ()),
    )
    for found in (
        throughput.decode(weights, devices, NOWHERE, SETTINGS),
        throughput.prefill(weights, devices, NOWHERE, SETTINGS),
        throughput.slots(weights, devices, NOWHERE, SETTINGS, concurrency=4),
        throughput.load(weights, devices, NOWHERE),
    ):
        assert found.low <= found.expected <= found.high
    assert throughput.decode(weights, devices, NOWHERE, SETTINGS).basis == ("calibrated" if calibrated else "estimated")


def test_every_weight_type_has_a_rate():
    costs = constants().host
    for kind in (*ALIKE, *costs.core_bytes_per_s, "AWQ"):
        assert of_type(costs.core_bytes_per_s, kind) > 0
        assert of_type(costs.core_ops_per_s, kind) > 0
        assert elements_per_byte(kind) > 0
    assert elements_per_byte("Q8_0") == pytest.approx(32 / 34)
    assert set(costs.core_bytes_per_s) == set(costs.core_ops_per_s)


def test_lookup_tables_keep_cores_from_memory_speed():
    spec = shipped.model("llama-3.1-8b-instruct")
    profiles = {quant: weight_profile(spec, quant) for quant in ("Q4_K_M", "Q8_0", "IQ3_S")}
    rates = {
        quant: speed(weights, threads=4).decode_rate(NOWHERE) * weights.file_bytes
        for quant, weights in profiles.items()
    }
    assert rates["IQ3_S"] < 0.6 * rates["Q4_K_M"]
    assert rates["Q8_0"] == pytest.approx(rates["Q4_K_M"], rel=0.25)


def test_experts_have_the_types_most_of_a_routed_model_has():
    weights = weight_profile(shipped.model("gpt-oss-20b"), "MXFP4_MOE")
    experts, rest = mixes(weights)
    assert max(experts, key=experts.get) == "MXFP4"
    assert sum(experts.values()) == weights.cumulative_expert_bytes[-1]
    assert "MXFP4" not in rest
    dense = weight_profile(shipped.model("llama-3.2-1b-instruct"), "Q4_K_M")
    assert mixes(dense)[0] == mixes(dense)[1] == dict(dense.type_bytes)
    assert mixes(structs.replace(dense, type_bytes=()))[1] == {dense.matmul_type: 1}


def test_measured_kernels_replace_the_model_and_correct_the_others():
    costs = constants().host
    modelled, measured = (Products(structs.replace(HOST, product_rates=rates), costs, 40e9) for rates in ((), MEASURED))
    assert measured.byte_s("Q4_K") == 1 / 20e9
    assert measured.operation_s("Q6_K") == 1 / 500e9
    slower = (modelled.modelled_s("Q4_K") * 20e9 * modelled.modelled_s("Q6_K") * 25e9) ** -0.5
    assert measured.byte_s("Q8_0") == pytest.approx(modelled.byte_s("Q8_0") * slower)
    assert measured.operation_s("Q8_0") != modelled.operation_s("Q8_0")


def test_what_was_measured_beside_the_weights_counts():
    weights = PROFILES["llama-3.2-1b-instruct"]
    plain, slow = speed(weights), speed(weights, block_s=1e-3, side_s=1e-8)
    blocks = weights.spec.block_count
    assert slow.decode_s(NOWHERE) - plain.decode_s(NOWHERE) == pytest.approx(blocks * (1e-3 - plain.host.block_s))
    assert slow.prefill_s(NOWHERE) > plain.prefill_s(NOWHERE) + blocks * 1e-3


def test_measured_hosts_have_an_interval_of_their_own():
    weights = PROFILES["qwen3-30b-a3b"]
    model = speed(weights, (GPU,), product_rates=MEASURED)
    blocks = weights.spec.block_count
    offloaded = Placement(gpu_layers=blocks + 1, split=(blocks + 1,), cpu_moe_layers=4)
    everything = structs.replace(offloaded, cpu_moe_layers=0)
    assert groups(model, NOWHERE) == ("host-calibrated", "host")
    assert groups(speed(weights), NOWHERE)[0] == "host-measured"
    assert [basis(model, one) for one in (NOWHERE, offloaded, everything)] == ["calibrated", "calibrated", "estimated"]
    assert pace.decode(model, offloaded, depth_tokens=0).basis == "calibrated"
    assert pace.prefill(model, NOWHERE, prompt_tokens=64, depth_tokens=0).basis == "calibrated"


@given(models, st.integers(1, 63))
@settings(max_examples=60, deadline=None)
def test_more_slots_give_no_less_in_all_but_where_the_kernels_change(weights, count):
    model = speed(weights)
    step = [model.step_s(NOWHERE, one) for one in (count, count + 1)]
    if count + 1 == 8:
        assert step[1] >= 0.5 * step[0]  # tiles from here on
    else:
        assert step[1] >= step[0] * 0.999
    assert model.aggregate(NOWHERE, count + 1) >= 0.8 * model.aggregate(NOWHERE, count)


@given(models, st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_a_longer_prompt_takes_longer(weights, tokens):
    model = speed(weights)
    assert model.prefill_s(NOWHERE, prompt_tokens=2 * tokens) >= 0.8 * model.prefill_s(NOWHERE, prompt_tokens=tokens)
    assert model.prefill_s(NOWHERE, prompt_tokens=1) == pytest.approx(model.decode_s(NOWHERE), rel=0.05)


def test_a_cached_file_loads_without_the_disk():
    weights = PROFILES["gemma-3-12b-it"]
    model = speed(weights)
    disk_s = weights.file_bytes / (2e9 * constants().host.disk)
    assert model.load_s(NOWHERE) - model.load_s(NOWHERE, cached=True) == pytest.approx(disk_s)
    assert model.load_s(NOWHERE, cached=True) > constants().host.start_s
    plain = SpeedModel(weights, model.devices, structs.replace(SETTINGS, repack=False))
    assert plain.load_s(NOWHERE, cached=True) == constants().host.start_s
