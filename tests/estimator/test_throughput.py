from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_estimator import throughput
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput import SpeedModel
from willitrun_estimator.throughput.constants import shipped
from willitrun_estimator.throughput.groups import decode_spread, groups, prefill_spread
from willitrun_estimator.weights import weight_profile

GIB = 1024**3
SETTINGS = Settings(context_tokens=8192)
NAMES = (
    "llama-3.1-8b-instruct",
    "qwen3-30b-a3b",
    "gpt-oss-20b",
    "gemma-3-12b-it",
    "deepseek-v2-lite-chat",
    "qwen3.6-35b-a3b",
    "nemotron-3-nano-30b-a3b",
    "gemma-4-e2b-it",
)
PROFILES = {
    (name, quant): weight_profile(find_model(name).spec, quant) for name in NAMES for quant in ("Q4_K_M", "Q8_0")
}


def gpu(**changes):
    base = Device(
        name="RTX 3090",
        backend="cuda",
        family="ampere",
        memory_total_bytes=24 * GIB,
        memory_free_bytes=23 * GIB,
        bandwidth_bytes_per_s=936e9,
        flops_per_s=71e12,
        int8_ops_per_s=284e12,
        fp32_flops_per_s=35.6e12,
        link_bytes_per_s=25e9,
    )
    return structs.replace(base, **changes)


def box(*gpus, **changes):
    host = Host(
        ram_total_bytes=64 * GIB,
        ram_available_bytes=60 * GIB,
        bandwidth_bytes_per_s=50e9,
        bandwidth_basis="measured",
        threads=8,
        flags=("avx2",),
        disk_read_bytes_per_s=3e9,
    )
    return Devices(name="box", gpus=gpus, host=structs.replace(host, **changes))


def everything(weights, gpus=1):
    units = weights.spec.block_count + 1
    cuts = [round(units * part / gpus) for part in range(gpus + 1)]
    return Placement(gpu_layers=units, split=tuple(b - a for a, b in pairwise(cuts)))


placements = st.builds(
    lambda name, layers, moe, on_host: (PROFILES[name, "Q4_K_M"], layers, moe, on_host),
    st.sampled_from(NAMES),
    st.integers(0, 100),
    st.integers(0, 100),
    st.booleans(),
)


def placed(drawn):
    weights, layers, moe, on_host = drawn
    units = min(layers, weights.spec.block_count + 1)
    return weights, Placement(gpu_layers=units, cpu_moe_layers=moe, kv_on_host=on_host)


@pytest.mark.parametrize(
    ("name", "quant", "family", "bandwidth", "fp32", "low", "high"),
    [
        ("llama-2-7b-chat", "Q4_0", "ampere", 936.2e9, 35.6e12, 130, 180),  # 158 (llama.cpp discussion 15013)
        ("llama-2-7b-chat", "Q4_0", "hopper", 3352e9, 66.9e12, 210, 330),  # 268
        ("llama-3-70b-instruct", "Q4_K_M", "ampere", 768e9, 38.7e12, 11, 16.5),  # 14.6 on an A6000
    ],
)
def test_decode_is_near_published_rows(name, quant, family, bandwidth, fp32, low, high):
    weights = weight_profile(find_model(name).spec, quant)
    devices = box(gpu(family=family, bandwidth_bytes_per_s=bandwidth, fp32_flops_per_s=fp32))
    found = throughput.decode(weights, devices, everything(weights), SETTINGS, depth_tokens=64)
    assert low < found.expected < high
    assert found.basis == "estimated"


@given(
    placements, st.floats(50e9, 4000e9), st.floats(1.01, 4), st.sampled_from(["ampere", "apple", "rdna4", "unknown"])
)
@settings(max_examples=60)
def test_more_bandwidth_is_never_slower(drawn, bandwidth, factor, family):
    weights, placement = placed(drawn)
    slow, fast = (
        SpeedModel(weights, box(gpu(bandwidth_bytes_per_s=rate, family=family)), SETTINGS)
        for rate in (bandwidth, bandwidth * factor)
    )
    assert fast.decode_rate(placement, depth_tokens=1000) >= slow.decode_rate(placement, depth_tokens=1000)
    assert fast.prefill_rate(placement, prompt_tokens=1000) >= slow.prefill_rate(placement, prompt_tokens=1000)


@given(placements, st.floats(10e9, 400e9), st.floats(1.01, 4))
@settings(max_examples=40)
def test_more_host_bandwidth_is_never_slower(drawn, bandwidth, factor):
    weights, placement = placed(drawn)
    slow, fast = (
        SpeedModel(weights, box(gpu(), bandwidth_bytes_per_s=rate), SETTINGS)
        for rate in (bandwidth, bandwidth * factor)
    )
    assert fast.decode_rate(placement) >= slow.decode_rate(placement)


@given(placements, st.integers(0, 100_000), st.integers(1, 100_000))
@settings(max_examples=60)
def test_deeper_context_is_never_faster(drawn, depth, more):
    weights, placement = placed(drawn)
    model = SpeedModel(weights, box(gpu()), SETTINGS)
    assert model.decode_rate(placement, depth_tokens=depth + more) <= model.decode_rate(placement, depth_tokens=depth)
    assert model.prefill_rate(placement, depth_tokens=depth + more) <= model.prefill_rate(placement, depth_tokens=depth)


@given(st.sampled_from(NAMES), st.sampled_from(sorted(shipped().families)), st.integers(0, 40_000))
@settings(max_examples=60)
def test_a_smaller_quantization_of_the_same_family_is_never_slower(name, family, depth):
    spec = find_model(name).spec
    devices = box(gpu(family=family))
    rates = [
        SpeedModel(weights, devices, SETTINGS).decode_rate(everything(weights), depth_tokens=depth)
        for quant in ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
        for weights in [weight_profile(spec, quant)]
    ]
    assert rates == sorted(rates)


@given(placements, st.integers(0, 50_000), st.integers(1, 5000), st.integers(1, 64))
@settings(max_examples=60)
def test_the_interval_holds_the_expectation(drawn, depth, prompt, slots):
    weights, placement = placed(drawn)
    ask = (weights, box(gpu()), placement, SETTINGS)
    found = (
        throughput.decode(*ask, depth_tokens=depth),
        throughput.prefill(*ask, prompt_tokens=prompt, depth_tokens=depth),
        throughput.ttft(*ask, prompt_tokens=prompt, depth_tokens=depth, cold=True),
        throughput.load(*ask),
        throughput.slots(*ask, concurrency=slots, depth_tokens=depth),
        throughput.paged_decode(*ask, short_bytes=GIB, depth_tokens=depth),
    )
    for one in found:
        assert 0 < one.low <= one.expected <= one.high


def test_a_layer_split_adds_memory_and_not_speed():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    one = SpeedModel(weights, box(gpu()), SETTINGS).decode_rate(everything(weights))
    two = SpeedModel(weights, box(gpu(), gpu()), SETTINGS).decode_rate(everything(weights, 2))
    assert 0.9 * one < two < one


def test_several_gpus_overlap_the_batches_of_a_long_prompt():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    one = SpeedModel(weights, box(gpu()), SETTINGS).prefill_rate(everything(weights), prompt_tokens=4096)
    two = SpeedModel(weights, box(gpu(), gpu()), SETTINGS).prefill_rate(everything(weights, 2), prompt_tokens=4096)
    whole = structs.replace(SETTINGS, ubatch=4096, batch=4096)
    alone = SpeedModel(weights, box(gpu(), gpu()), whole).prefill_rate(everything(weights, 2), prompt_tokens=4096)
    assert 1.2 * one < two < 2 * one
    assert alone < two


def test_small_models_meet_a_floor_of_latency():
    weights = weight_profile(find_model("gemma-3-270m-it").spec, "Q4_K_M")
    bytes_read = weights.cumulative_resident_bytes[-1] + weights.output_bytes
    rate = SpeedModel(weights, box(gpu()), SETTINGS).decode_rate(everything(weights))
    assert rate < 0.5 * 936e9 / bytes_read


def test_windows_and_states_do_not_grow_with_the_context():
    windowed, full = PROFILES["gemma-3-12b-it", "Q4_K_M"], PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    loss = [
        SpeedModel(weights, box(gpu()), SETTINGS).decode_rate(everything(weights), depth_tokens=32768)
        / SpeedModel(weights, box(gpu()), SETTINGS).decode_rate(everything(weights))
        for weights in (windowed, full)
    ]
    assert loss[0] > loss[1] + 0.1


def test_a_larger_ubatch_pays_where_experts_are_copied():
    weights = PROFILES["qwen3-30b-a3b", "Q4_K_M"]
    placement = structs.replace(everything(weights), cpu_moe_layers=48)
    rates = [
        SpeedModel(weights, box(gpu()), structs.replace(SETTINGS, ubatch=size)).prefill_rate(
            placement, prompt_tokens=4096
        )
        for size in (512, 1024, 2048)
    ]
    assert rates[1] > 1.6 * rates[0]
    assert rates[2] > 1.4 * rates[1]
    kept = structs.replace(SETTINGS, op_offload=False)
    assert SpeedModel(weights, box(gpu()), kept).prefill_rate(placement, prompt_tokens=4096) < rates[0]


def test_a_gpu_computes_prompts_even_when_it_holds_nothing():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    nothing = Placement(gpu_layers=0)
    with_gpu = SpeedModel(weights, box(gpu()), SETTINGS)
    without = SpeedModel(weights, box(), SETTINGS)
    assert with_gpu.prefill_rate(nothing) > 3 * without.prefill_rate(nothing)
    assert with_gpu.decode_rate(nothing) == without.decode_rate(nothing)


def test_every_block_moved_to_the_host_slows_decode():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    model = SpeedModel(weights, box(gpu()), SETTINGS)
    rates = [model.decode_rate(Placement(gpu_layers=units)) for units in range(34)]
    assert rates == sorted(rates)


def test_few_cores_are_the_limit_before_the_memory_is():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    rates = [
        SpeedModel(weights, box(threads=threads, bandwidth_bytes_per_s=200e9), SETTINGS).decode_rate(
            Placement(gpu_layers=0)
        )
        for threads in (1, 2)
    ]
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.02)


@pytest.mark.parametrize(("flag", "faster"), [("avx512f", "avx2"), ("avx2", ""), ("asimd", "")])
def test_instruction_sets_matter_for_prompts(flag, faster):
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    known, less = (
        SpeedModel(weights, box(flags=tuple(name for name in (one,) if name)), SETTINGS).prefill_rate(
            Placement(gpu_layers=0)
        )
        for one in (flag, faster)
    )
    assert known > less


def test_nothing_known_means_no_number():
    weights = PROFILES["qwen3-30b-a3b", "Q4_K_M"]
    dark = box(gpu(bandwidth_bytes_per_s=None), bandwidth_bytes_per_s=None, disk_read_bytes_per_s=None)
    half = structs.replace(everything(weights), cpu_moe_layers=10)
    for devices, placement in (
        (dark, everything(weights)),
        (box(gpu(), bandwidth_bytes_per_s=None), half),
        (box(gpu(), bandwidth_bytes_per_s=None), Placement(gpu_layers=3)),
        (box(gpu(), bandwidth_bytes_per_s=None), structs.replace(everything(weights), kv_on_host=True)),
    ):
        ask = (weights, devices, placement, SETTINGS)
        model = SpeedModel(weights, devices, SETTINGS)
        assert throughput.decode(*ask) is None
        assert throughput.prefill(*ask) is None
        assert throughput.ttft(*ask, prompt_tokens=100) is None
        assert throughput.slots(*ask, concurrency=4) is None
        assert throughput.paged_decode(*ask, short_bytes=GIB) is None
        assert model.ttft_s(placement, prompt_tokens=100) is None
        assert model.load_s(placement) is None
        assert model.paged_decode_rate(placement, short_bytes=GIB) is None
        assert model.decode_rate(placement) is None
        assert model.prefill_rate(placement) is None
        assert model.aggregate(placement, 4) is None


def test_a_cold_start_needs_the_rate_of_the_disk():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    ask = (weights, box(gpu(), disk_read_bytes_per_s=None), everything(weights), SETTINGS)
    assert throughput.load(*ask) is None
    assert throughput.ttft(*ask, prompt_tokens=512, cold=True) is None
    warm = throughput.ttft(*ask, prompt_tokens=512)
    cold = throughput.ttft(weights, box(gpu()), everything(weights), SETTINGS, prompt_tokens=512, cold=True)
    assert cold.expected > warm.expected + weights.file_bytes / 3e9


def test_paging_is_slow_and_still_an_answer():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    model = SpeedModel(weights, box(), SETTINGS)
    placement = Placement(gpu_layers=0)
    whole = model.decode_rate(placement)
    little, much = (model.paged_decode_rate(placement, short_bytes=size) for size in (GIB // 2, 3 * GIB))
    assert 0 < much < little < whole
    assert model.paged_decode_rate(placement, short_bytes=0) == pytest.approx(whole)


def test_experts_page_by_what_is_used():
    dense, routed = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"], PROFILES["qwen3-30b-a3b", "Q4_K_M"]
    placed_moe = structs.replace(everything(routed), cpu_moe_layers=48)
    moe_s = SpeedModel(routed, box(gpu()), SETTINGS).paged_decode_s(placed_moe, 2 * GIB)
    dense_s = SpeedModel(dense, box(), SETTINGS).paged_decode_s(Placement(gpu_layers=0), 2 * GIB)
    assert moe_s[1] < dense_s[0]
    assert moe_s[0] == pytest.approx(moe_s[1])  # all of the host's part is experts


def test_slots_share_the_weights():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    model = SpeedModel(weights, box(gpu()), SETTINGS)
    rates = [model.aggregate(everything(weights), count, depth_tokens=500) for count in (1, 2, 4, 8)]
    assert rates == sorted(rates)
    assert rates[3] < 8 * rates[0]
    assert rates[0] == model.decode_rate(everything(weights), depth_tokens=500)
    pair = SpeedModel(weights, box(gpu(), gpu()), SETTINGS)
    assert pair.aggregate(everything(weights, 2), 8) > 3 * pair.decode_rate(everything(weights, 2))
    host = SpeedModel(PROFILES["qwen3-30b-a3b", "Q4_K_M"], box(gpu()), SETTINGS)
    split = Placement(gpu_layers=20, cpu_moe_layers=40)
    assert host.aggregate(split, 1) < host.aggregate(split, 8) < 8 * host.aggregate(split, 1)


def test_kinds_of_recurrent_mixers_cost_what_their_rows_say():
    shared = shipped().shared
    kinds = {"gated-delta-net", "mamba2", "shortconv", "other"}
    assert set(shared.recurrent) == set(shared.prefill_recurrent) == kinds
    assert shared.recurrent["shortconv"] < shared.recurrent["gated-delta-net"] == 1 < shared.recurrent["other"]


def test_builds_before_2025_were_slower():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    ask = (weights, box(gpu()), everything(weights), SETTINGS)
    assert throughput.decode(*ask, before_2025=True).expected < throughput.decode(*ask).expected
    assert throughput.prefill(*ask, before_2025=True).expected < throughput.prefill(*ask).expected


def test_vulkan_and_links_count():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    own = SpeedModel(weights, box(gpu()), SETTINGS).prefill_rate(everything(weights))
    vulkan = SpeedModel(weights, box(gpu(backend="vulkan")), SETTINGS).prefill_rate(everything(weights))
    assert vulkan < own
    half = Placement(gpu_layers=16)
    wide, narrow, none = (
        SpeedModel(weights, box(gpu(link_bytes_per_s=rate)), SETTINGS).prefill_rate(half) for rate in (25e9, 4e9, None)
    )
    assert narrow < wide < none


def test_an_unknown_gpu_is_predicted_from_bandwidth_with_a_wider_interval():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    bare = {"flops_per_s": None, "int8_ops_per_s": None, "fp32_flops_per_s": None}
    widths = []
    for family in ("ampere", "unknown", "of-tomorrow"):
        found = throughput.decode(weights, box(gpu(family=family, **bare)), everything(weights), SETTINGS)
        assert 60 < found.expected < 220
        widths.append(found.high / found.low)
    assert widths[0] < widths[1] == widths[2]


def test_rates_follow_the_fp32_rate_whatever_matrix_rates_a_sheet_claims():
    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    own, claimed, unknown, faster = (
        SpeedModel(weights, box(gpu(**known)), SETTINGS).prefill_rate(everything(weights))
        for known in (
            {},
            {"int8_ops_per_s": None, "flops_per_s": 1e15},
            {"fp32_flops_per_s": None},
            {"fp32_flops_per_s": 60e12},
        )
    )
    assert own == claimed
    assert faster > 1.4 * own
    assert unknown > 0.5 * own


@given(st.sampled_from(NAMES), st.floats(50, 900), st.floats(1.01, 3))
@settings(max_examples=30)
def test_less_power_is_never_faster(name, watts, factor):
    weights = PROFILES[name, "Q4_K_M"]
    low, high = (SpeedModel(weights, box(gpu(power_watts=power)), SETTINGS) for power in (watts, watts * factor))
    assert high.prefill_rate(everything(weights)) >= low.prefill_rate(everything(weights))
    assert high.decode_rate(everything(weights)) >= low.decode_rate(everything(weights))


def test_error_correction_in_the_memory_costs_bandwidth():
    weights = PROFILES["llama-3.1-8b-instruct", "Q8_0"]
    off, on = (
        SpeedModel(weights, box(gpu(inline_ecc=flag)), SETTINGS).decode_rate(everything(weights))
        for flag in (False, True)
    )
    assert 0.88 * off < on < 0.97 * off


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0", "IQ4_XS", "Q4_K_M"])
@pytest.mark.parametrize("devices", [box(gpu()), box()])
def test_every_class_of_types_has_a_speed(quant, devices):
    weights = weight_profile(find_model("llama-3.2-1b-instruct").spec, quant)
    placement = everything(weights) if devices.gpus else Placement(gpu_layers=0)
    assert throughput.decode(weights, devices, placement, SETTINGS).expected > 0
    assert throughput.prefill(weights, devices, placement, SETTINGS).expected > 0


def test_mxfp4_has_a_speed():
    weights = weight_profile(find_model("gpt-oss-20b").spec, "MXFP4")
    assert 120 < throughput.decode(weights, box(gpu()), everything(weights), SETTINGS).expected < 260


def test_groups_follow_who_computes():
    weights = PROFILES["qwen3-30b-a3b", "Q4_K_M"]
    model = SpeedModel(weights, box(gpu()), SETTINGS)
    assert groups(model, everything(weights)) == ("ampere-moe", "new-family-moe")
    assert groups(model, Placement(gpu_layers=49, cpu_moe_layers=3)) == ("offload",)
    assert groups(model, Placement(gpu_layers=0)) == ("host-measured", "host")
    assert groups(model, Placement(gpu_layers=5)) == ("offload",)
    assert groups(model, everything(weights))[0] == "ampere-moe"
    dense = SpeedModel(PROFILES["llama-3.1-8b-instruct", "Q4_K_M"], box(gpu(family="new")), SETTINGS)
    assert groups(dense, Placement(gpu_layers=33, cpu_moe_layers=9)) == ("unknown-dense",)


def test_bounds_are_wider_where_less_is_known():
    def widths(weights, *, family="ampere", backend="cuda", engine="llama.cpp"):
        model = SpeedModel(weights, box(gpu(family=family, backend=backend)), SETTINGS, engine=engine)
        found = (bounds(model, everything(weights)) for bounds in (decode_spread, prefill_spread))
        return [one.high / one.low for one in found]

    weights = PROFILES["llama-3.1-8b-instruct", "Q4_K_M"]
    known = widths(weights)
    for less in ({"backend": "vulkan"}, {"engine": "ollama"}, {"family": "gcn"}, {"family": "of-tomorrow"}):
        assert widths(weights, **less)[0] > known[0]
    kimi = weight_profile(find_model("kimi-linear-48b-a3b-instruct").spec, "Q4_K_M")
    mature = PROFILES["qwen3.6-35b-a3b", "Q4_K_M"]
    assert all(new > old for new, old in zip(widths(kimi), widths(mature), strict=True))


def test_the_constants_name_rows_and_date():
    constants = shipped()
    assert constants.fit_date > "2026"
    assert constants.families["ada"].decode_rows > 100
    assert constants.families["unknown"].decode_rows == 0
    assert all(one.low < 1.1 and one.high > 0.9 for one in constants.decode_spread.values())
