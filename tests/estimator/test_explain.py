from __future__ import annotations

import pytest
from msgspec import structs

from tests.estimator.answers_on import answered, found
from willitrun_estimator import explain, hardware
from willitrun_estimator.device import Devices, Host
from willitrun_estimator.plan import Interval, Speed
from willitrun_estimator.request import Request
from willitrun_estimator.score import PURPOSES
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

GIB = 1 << 30


@pytest.fixture(scope="module")
def whole():
    return answered("llama-3.1-8b", "RTX 3090, 64 GiB RAM", quant="Q4_K_M", context=8192)


def filled(plan, share):
    gpu, host = plan.devices
    return structs.replace(plan, devices=(structs.replace(gpu, total_bytes=int(gpu.free_bytes * share)), host))


@pytest.mark.parametrize(
    ("share", "word"), [(0.5, "comfortable"), (0.899, "comfortable"), (0.92, "fits"), (0.98, "tight")]
)
def test_status_by_the_room_left(whole, share, word):
    plan = filled(whole.plan, share)
    assert explain.status(plan, 0) == word
    message = explain.fit(plan, found(), "Llama").message
    assert "Llama Q4_K_M" in message
    assert "on NVIDIA GeForce RTX 3090" in message
    tag = explain.capacity_tag(plan, word)
    assert tag.value == {"comfortable": "Ample", "fits": "Good", "tight": "Tight"}[word]


def test_offload_and_paging_come_before_room(whole):
    plan = structs.replace(whole.plan, offloaded_fraction=0.4)
    assert explain.status(plan, 0) == "offload"
    assert explain.status(plan, 1) == "paging"
    assert "40%" in explain.fit(plan, found(), "Llama").message
    assert "2.0 GiB more memory" in explain.fit(plan, found(short_bytes=2 * GIB), "Llama").message


def test_the_place_is_named(whole):
    assert explain.place(structs.replace(whole.plan, devices=whole.plan.devices[-1:])) == "in RAM"
    gpu, host = whole.plan.devices
    assert explain.place(structs.replace(whole.plan, devices=(gpu, gpu, host))) == "on 2 GPUs"


def test_a_refusal_has_both_numbers(whole):
    gpu, host = whole.plan.devices
    text = explain.refusal(whole.plan.devices, (gpu.total_bytes - 1, host.free_bytes), 0)
    assert text.startswith(gpu.name)
    assert explain.refusal(whole.plan.devices, (-5, 0), 0).endswith("0 B can be used")
    assert explain.refusal(whole.plan.devices, (gpu.total_bytes, host.free_bytes), 1).startswith("RAM would need")
    assert explain.refusal(whole.plan.devices, (gpu.total_bytes, host.total_bytes), 0) == ""


@pytest.mark.parametrize(
    ("machine", "bandwidth", "stack"),
    [
        ("RTX 3090, 64 GiB RAM", "High", "Optimized"),
        ("RTX 3060 12GB, 64 GiB RAM", "Medium", "Optimized"),
        ("no GPU, 64 GiB RAM", "Low", "Generic"),
        ("RX 7900 XTX, 64 GiB RAM", "High", "Supported"),
    ],
)
def test_tags(machine, bandwidth, stack):
    tags = answered("llama-3.2-1b", machine, quant="Q4_K_M", context=4096).tags
    assert (tags.bandwidth.value, tags.stack.value) == (bandwidth, stack)
    assert tags.bandwidth.reason
    assert tags.runtime.value == "llama.cpp"


def test_tags_of_the_unknown(whole):
    assert explain.stack_tag("cuda", "unknown").value == "Unproven"
    assert explain.bottleneck_tag(whole.plan, None).value == "Unknown"


def speed(decode, wait):
    return Speed(
        decode_tokens_per_s=Interval(expected=decode, low=decode, high=decode),
        prefill_tokens_per_s=None,
        ttft_s=Interval(expected=wait, low=wait, high=wait),
    )


def test_bottlenecks(whole):
    plan = whole.plan
    assert explain.bottleneck_tag(plan, speed(5, 1)).value == "Bandwidth"
    assert explain.bottleneck_tag(plan, speed(50, 10)).value == "Compute"
    assert explain.bottleneck_tag(plan, speed(50, 1)).value == "Balanced"
    assert explain.bottleneck_tag(structs.replace(plan, offloaded_fraction=0.5), speed(50, 1)).value == "Capacity"


def test_limits_of_speed():
    assert [one.code for one in explain.speed_limits(None)] == ["speed-unknown"]
    assert [one.code for one in explain.speed_limits(speed(5, 10))] == ["slow-decode", "slow-first-token"]
    assert explain.speed_limits(speed(50, 1)) == []


def codes(result):
    return {one.code for one in result.limits}


def test_paging_on_an_assumed_disk_has_a_speed_and_says_so():
    result = answered("deepseek-r1", "RTX 3090, 64 GiB RAM", quant="Q2_K")
    assert result.fit.status == "paging"
    decode = result.speed.decode_tokens_per_s
    assert decode is not None
    assert 0 < decode.low <= decode.expected <= decode.high
    assert {"paging", "offload", "disk-rate-assumed"} <= codes(result)
    assert result.speed.load_s is None, "an assumed disk promises no loading time"
    (limit,) = [one for one in result.limits if one.code == "disk-rate-assumed"]
    assert "500 MB/s" in limit.message


def test_a_given_disk_is_not_assumed():
    where = {"gpus": [{"name": "RTX 3090"}], "ram_bytes": 64 * GIB, "disk_read_bytes_per_s": 5e9}
    fast = answered("deepseek-r1", where, quant="Q2_K")
    assert "disk-rate-assumed" not in codes(fast)
    assert fast.speed.load_s is not None
    slow = answered("deepseek-r1", where | {"disk_read_bytes_per_s": 2e8}, quant="Q2_K")
    assert fast.speed.decode_tokens_per_s.expected > 5 * slow.speed.decode_tokens_per_s.expected


def test_assumed_ram_is_said_where_it_matters():
    assert "ram-bandwidth-assumed" in codes(answered("llama-3.2-1b", "no GPU, 64 GiB RAM", quant="Q4_K_M"))
    assert "ram-bandwidth-assumed" not in codes(answered("llama-3.2-1b", "RTX 3090, 64 GiB RAM", quant="Q4_K_M"))
    given = answered("llama-3.2-1b", "no GPU, 64 GiB RAM, 60 GB/s", quant="Q4_K_M")
    assert "ram-bandwidth-assumed" not in codes(given)


def test_short_context_and_little_headroom_are_said(whole):
    plan_on = hardware.devices(open_machine("RTX 3090, 64 GiB RAM"), Request(), sheet_of)
    short = structs.replace(filled(whole.plan, 0.99), context_tokens=2048)
    said = [
        one.code for one in explain.limits(short, found(), plan_on, speed(50, 1), PURPOSES["chat"], longest_tokens=8192)
    ]
    assert said == ["little-headroom", "short-context"]
    assert not {"little-headroom", "short-context"} & codes(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate": 25.0}, "25.0 against 50.0 tokens/s"),
        ({"quality": 0.5}, "50.0% of the quality against 95.0%"),
        ({"context_tokens": 4096}, "4K of context against 8K"),
        ({"ttft_s": 2.0}, "2.0 s against 500 ms"),
        ({"rate": 40.0, "quality": 0.1}, "quality"),
        ({}, "less memory"),
    ],
)
def test_why_the_runner_up_lost(change, words):
    assert words in explain.why_lost(found(), found(**change))


def test_the_runner_up_differs(whole):
    assert explain.runner_up(found(), [found(score=79.0)]) is None
    assert whole.runner_up is None or whole.runner_up.quant != whole.plan.quant or whole.runner_up.reason


def test_a_host_without_a_known_bandwidth_has_no_tag_for_it(whole):
    unknown = Host(ram_total_bytes=1, ram_available_bytes=1, bandwidth_bytes_per_s=None, threads=1)
    tag = explain.bandwidth_tag(whole.plan, Devices(name="m", gpus=(), host=unknown))
    assert (tag.value, tag.reason) == ("Unknown", "no source gives a bandwidth")
