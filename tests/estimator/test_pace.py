from __future__ import annotations

import pytest

from tests.estimator.answers_on import answered

GIB = 1 << 30
FAST_DISK = {"gpus": [{"name": "RTX 3090"}], "ram_bytes": 64 * GIB, "disk_read_bytes_per_s": 3e9}


@pytest.fixture(scope="module")
def known():
    return answered("llama-3.1-8b", FAST_DISK, quant="Q4_K_M", context=32768)


def test_bounds_hold_the_expectation(known):
    speed = known.speed
    for one in (speed.decode_tokens_per_s, speed.prefill_tokens_per_s, speed.ttft_s, speed.load_s, speed.ttft_cold_s):
        assert 0 < one.low <= one.expected <= one.high


def test_a_cold_start_is_the_load_and_the_warm_wait(known):
    speed = known.speed
    assert speed.ttft_cold_s.expected == pytest.approx(speed.ttft_s.expected + speed.load_s.expected)
    assert speed.load_s.expected > known.plan.file_bytes / 3e9, "no disk reads faster than it does"


def test_the_wait_is_the_prompt_and_one_token(known):
    speed = known.speed
    seconds = 512 / speed.prefill_tokens_per_s.expected + 1 / speed.decode_tokens_per_s.expected
    assert speed.ttft_s.expected == pytest.approx(seconds, rel=1e-6)


def test_serving_grows_with_concurrency_and_is_bounded_by_the_cache(known):
    serving = known.serving
    assert serving.concurrency[0] == 1
    assert serving.concurrency[-1] <= 32768 // (512 + 256)
    assert list(serving.output_tokens_per_s) == sorted(serving.output_tokens_per_s)
    assert list(serving.ttft_s) == sorted(serving.ttft_s)
    rows = zip(serving.low_tokens_per_s, serving.output_tokens_per_s, serving.high_tokens_per_s, strict=True)
    assert all(low <= total <= high for low, total, high in rows)
    assert serving.max_concurrency == serving.concurrency[-1], "without targets all of them keep them"


def test_targets_limit_the_concurrency():
    free = answered("llama-3.1-8b", FAST_DISK, quant="Q4_K_M", context=32768).serving
    held = answered("llama-3.1-8b", FAST_DISK, quant="Q4_K_M", context=32768, min_decode=40.0, max_ttft=1.0).serving
    assert held.max_concurrency > 0
    never = answered("llama-3.1-8b", FAST_DISK, quant="Q4_K_M", context=32768, min_decode=1e6).serving
    assert never.max_concurrency == 0, "as in vLLM's curve"
    assert held.max_concurrency < free.max_concurrency
    at = held.concurrency.index(held.max_concurrency)
    assert 1 / held.time_per_token_s[at] >= 40
    assert held.ttft_s[at] <= 1.0


def test_a_short_context_still_serves_one():
    serving = answered("llama-3.1-8b", FAST_DISK, quant="Q4_K_M", context=512).serving
    assert serving.concurrency == (1,)


def test_what_is_read_from_disk_again_is_slower_than_what_is_not():
    paged = answered("deepseek-r1", FAST_DISK, quant="Q2_K").speed.decode_tokens_per_s
    held = answered("deepseek-r1", FAST_DISK | {"ram_bytes": 400 * GIB}, quant="Q2_K").speed.decode_tokens_per_s
    assert paged.expected < held.expected / 2


def test_a_prompt_reads_what_is_missing_once_a_micro_batch():
    paged = answered("deepseek-r1", FAST_DISK, quant="Q2_K", prompt_tokens=1024, ubatch=512).speed
    longer = answered("deepseek-r1", FAST_DISK, quant="Q2_K", prompt_tokens=1025, ubatch=512).speed
    held = answered("deepseek-r1", FAST_DISK | {"ram_bytes": 400 * GIB}, quant="Q2_K", prompt_tokens=1024).speed
    assert paged.prefill_tokens_per_s.expected < held.prefill_tokens_per_s.expected / 2
    assert paged.prefill_tokens_per_s.low < paged.prefill_tokens_per_s.expected < paged.prefill_tokens_per_s.high
    assert longer.ttft_s.expected > paged.ttft_s.expected
    assert paged.ttft_s.expected > 1024 / paged.prefill_tokens_per_s.expected


def test_a_gpu_that_nobody_described_has_no_speed_even_when_weights_are_read_from_disk():
    mystery = {"gpus": [{"name": "Mystery 9000", "memory_total_bytes": 8 * GIB}], "ram_bytes": 64 * GIB}
    fits = answered("llama-3.1-8b", mystery, quant="Q4_K_M", context=4096, gpu_layers="all")
    assert fits.fit.status == "comfortable"
    assert (fits.speed.decode_tokens_per_s, fits.speed.prefill_tokens_per_s, fits.speed.ttft_s) == (None, None, None)
    assert fits.serving is None
    short = answered("llama-3.3-70b", mystery | {"ram_bytes": 8 * GIB}, quant="Q4_K_M", context=4096, gpu_layers=8)
    assert short.fit.status == "paging"
    assert (short.speed.decode_tokens_per_s, short.speed.prefill_tokens_per_s, short.speed.ttft_s) == (None, None, None)
