from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_estimator.device import Device
from willitrun_estimator.vllm import batching
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.rates import RATES, gpu_class, rates
from willitrun_estimator.vllm.weights import stage_weights

H100 = Device(
    name="NVIDIA H100", backend="cuda", family="hopper", memory_total_bytes=1, memory_free_bytes=1,
    bandwidth_bytes_per_s=3.35e12, flops_per_s=989e12, compute_capability="9.0",
)  # fmt: skip


def point(name="llama-3.1-8b", quant="bf16", users=1.0, limit=256.0, tensor=1, pipeline=1, **other):
    spec, checkpoint = find_model(name).spec, format_of(quant)
    stages = stage_weights(spec, checkpoint, tensor_parallel=tensor, pipeline_parallel=pipeline)
    shape = batching.step_shape(spec, stages, checkpoint, tensor_parallel=tensor, max_num_batched_tokens=8192)
    values = {
        "concurrency": users,
        "running_limit": limit,
        "cache_bytes_per_sequence": batching.cache_bytes(
            spec, tensor_parallel=tensor, kv_type="auto", context_tokens=1024
        ),
        "input_tokens": 512,
        "output_tokens": 512,
    }
    return batching.terms(shape, H100, **(values | other))


def test_steps_run_in_captured_batches():
    assert [batching.padded(c) for c in (1, 2.5, 4, 5, 8, 9, 16, 17)] == [1, 3, 4, 8, 8, 16, 16, 24]


def test_gpus_take_the_constants_of_their_class(gpu):
    classes = {
        "NVIDIA H100 SXM5 80 GB": "hbm",
        "NVIDIA A100 SXM4 40 GB": "hbm",
        "NVIDIA B200 SXM": "hbm",
        "NVIDIA GeForce RTX 5090": "gddr",
        "NVIDIA L40S": "gddr",
        "NVIDIA GB10": "unified",
        "AMD Instinct MI100": "cdna",
        "AMD Instinct MI300X": "cdna3",
    }
    assert {name: gpu_class(gpu(name)) for name in classes} == classes
    assert rates(gpu("NVIDIA L40S")) is RATES["gddr"]


def test_intervals_hold_the_expectation():
    for constants in RATES.values():
        assert 0.3 < constants.low < 1 < constants.high < 2.5


def test_links_are_nvlink_pcie_or_what_was_measured(gpu):
    card = gpu("NVIDIA GeForce RTX 3090")
    assert batching.link_rate(card) == batching.SLOW_LINK_BYTES_PER_S
    assert batching.link_rate(H100) == batching.FAST_LINK_BYTES_PER_S
    assert batching.link_rate(structs.replace(card, peer_bytes_per_s=200e9)) == batching.FAST_LINK_BYTES_PER_S
    assert batching.link_rate(structs.replace(card, peer_bytes_per_s=8e9)) == 8e9
    assert batching.link_rate(structs.replace(H100, peer_bytes_per_s=50e9)) == batching.SLOW_LINK_BYTES_PER_S


def test_cache_reads_follow_the_mixers(model):
    def read(name, tokens, **options):
        values = {"tensor_parallel": 1, "kv_type": "auto"} | options
        return batching.cache_bytes(model(name), context_tokens=tokens, **values)

    assert read("llama-3.1-8b", 1000) == 32 * 2 * 1024 * 2 * 1000
    assert read("llama-3.1-8b", 1000, kv_type="fp8") == 32 * 1024 * 2 * 1000
    assert read("deepseek-v2-lite", 10) == 27 * 1152 * 10
    assert read("deepseek-v2-lite", 10, tensor_parallel=8) == 27 * 1152 * 10
    assert read("gemma-3-27b", 100_000) < 0.3 * read("gemma-3-27b", 100_000) * 62 / 10
    states = read("qwen3.5-35b-a3b", 0)
    assert states == 2 * 30 * (2 * 24576 + 4 * 524288)
    assert read("qwen3.5-35b-a3b", 100) == states + 10 * 100 * 2048


def test_more_users_touch_more_experts_up_to_all():
    shares = [point("qwen3-30b-a3b", users=c).covered_share for c in (1, 8, 64, 256)]
    assert shares[0] == pytest.approx(8 / 128)
    assert shares == sorted(shares)
    assert shares[-1] > 0.99
    assert point("llama-3.1-8b", users=64).covered_share == 0


def test_replicas_share_the_users_and_none_idles_unasked():
    assert point(users=2, data_parallel=8).engines == 2
    assert point(users=64, data_parallel=8).sequences == 8


def test_a_pipeline_runs_one_batch_per_stage():
    one, two = point(users=64), point(users=64, pipeline=2)
    assert (one.padded, two.padded) == (64, 32)
    constants = RATES["hbm"]
    assert batching.output_tokens_per_s(two, constants) > batching.output_tokens_per_s(one, constants)


def test_tensor_parallel_halves_reads_and_adds_all_reduces():
    one, two = point(users=1), point(users=1, tensor=2)
    assert two.dense_bytes == pytest.approx(one.dense_bytes / 2, rel=0.01)
    assert (one.collectives, two.collectives) == (0, 64)


def test_unpacked_weights_multiply_at_another_rate():
    constants = structs.replace(RATES["hbm"], narrow_flops=0.5, layer_s=0.0, request_layer_s=0.0)
    wide = structs.replace(
        point(quant="awq", users=256), narrow=0.0, dense_bytes=0.0, cache_bytes=0.0, tokens_per_chunk=1e12
    )
    narrow = structs.replace(wide, narrow=1.0)
    assert batching.prefill_token_s(narrow, constants) == pytest.approx(2 * batching.prefill_token_s(wide, constants))
    assert batching.step_s(narrow, constants) > batching.step_s(wide, constants)
    assert point("qwen3-30b-a3b", quant="nvfp4").narrow == 1.0
    assert point("qwen3-30b-a3b", quant="fp8").narrow == 0.0


def test_long_prompts_cost_more_per_token():
    constants = RATES["hbm"]
    short, long = point(input_tokens=512), point(input_tokens=65536)
    assert batching.prefill_token_s(long, constants) > 1.3 * batching.prefill_token_s(short, constants)
    latent = point("deepseek-v2-lite", input_tokens=65536)
    assert latent.attention_weights > 0


def test_prefill_of_the_own_request_can_be_left_out():
    with_it = point(users=1)
    without = point(users=1, prefill_counted=False)
    constants = RATES["hbm"]
    assert without.waiting == 0
    assert batching.output_tokens_per_s(without, constants) == pytest.approx(1 / batching.step_s(without, constants))
    assert batching.output_tokens_per_s(with_it, constants) < batching.output_tokens_per_s(without, constants)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "nemotron-3-nano-30b"]),
    users=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
    kind=st.sampled_from(sorted(RATES)),
)
def test_more_users_never_lower_the_whole_nor_raise_each_ones_share(name, users, kind):
    constants = RATES[kind]
    few, many = point(name, users=users), point(name, users=2 * users)
    total = [batching.output_tokens_per_s(one, constants) for one in (few, many)]
    assert total[1] >= 0.999 * total[0]
    assert total[1] / (2 * users) <= total[0] / users * 1.001
    assert batching.time_per_token_s(many, constants) >= batching.time_per_token_s(few, constants)
    waits = [batching.ttft_s(one, constants, concurrency=c) for one, c in ((few, users), (many, 2 * users))]
    assert waits[1] >= waits[0]


def test_beyond_the_limit_requests_queue_and_the_rate_stays():
    constants = RATES["hbm"]
    full, over = point(users=16, limit=16), point(users=64, limit=16)
    assert batching.output_tokens_per_s(full, constants) == batching.output_tokens_per_s(over, constants)
    waits = [batching.ttft_s(one, constants, concurrency=c) for one, c in ((full, 16), (over, 64))]
    assert waits[1] > waits[0] + 3 * 0.9 * 512 * batching.step_s(full, constants)
