from __future__ import annotations

import pytest

from tests.estimator.answers_on import answered, found
from willitrun_estimator import improve

GIB = 1 << 30


def by_code(result):
    return {one.code: one for one in result.improvements}


def test_closing_programs_is_worked_out():
    busy = answered("qwen3-14b", "RTX 3090 (6 GiB free), 64 GiB RAM")
    one = by_code(busy)["close-programs"]
    assert "Close what holds" in one.message
    assert one.gain > 0
    assert "close-programs" not in by_code(answered("qwen3-14b", "RTX 3090, 64 GiB RAM"))


def test_a_second_card_helps_what_one_cannot_hold():
    one = by_code(answered("llama-3.3-70b", "RTX 3090, 64 GiB RAM"))["second-gpu"]
    assert "second NVIDIA GeForce RTX 3090" in one.message
    for machine in ("no GPU, 64 GiB RAM", "Apple M4 Max, 64 GiB RAM"):
        assert "second-gpu" not in by_code(answered("llama-3.3-70b", machine))


def test_missing_ram_is_named():
    one = by_code(answered("deepseek-r1", "RTX 3090, 64 GiB RAM", quant="Q2_K"))["more-ram"]
    assert "GiB more free RAM" in one.message


def test_a_quantized_cache_makes_the_context_longer():
    tight = {"gpus": [{"name": "RTX 3060 12GB"}], "ram_bytes": 64 * GIB}
    result = answered("llama-3.1-8b", tight, quant="Q4_K_M", context=8192, kv_type="f16")
    one = by_code(result)["quantized-cache"]
    assert "raises the longest context" in one.message
    assert "0%" not in one.message.replace("10%", "").replace("20%", "")
    assert 0 < one.gain <= 1.0
    off = answered("llama-3.1-8b", tight, quant="Q4_K_M", context=8192, flash_attention=False)
    assert "quantized-cache" not in by_code(off)


def test_gains_are_in_order_and_worth_a_sentence():
    for machine in ("RTX 3090 (6 GiB free), 64 GiB RAM", "RTX 3060 12GB, 16 GiB RAM"):
        gains = [one.gain for one in answered("qwen3-14b", machine).improvements]
        assert gains == sorted(gains, reverse=True)
        assert all(gain >= improve.LEAST_GAIN for gain in gains)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (50.0, 50.0, "at no cost in speed"),
        (50.0, 60.0, "at no cost in speed"),
        (50.0, 49.9, "at no cost in speed"),
        (50.0, 45.0, "for 10% of the speed"),
        (1000.0, 994.0, "for 1% of the speed"),
        (None, 45.0, "at some cost in speed"),
        (50.0, None, "at some cost in speed"),
    ],
)
def test_what_a_change_costs(before, after, words):
    assert improve.at_what_cost(before, after) == words


@pytest.mark.parametrize(
    ("change", "words", "gain"),
    [
        ({"quant": "Q8_0", "score": 88.0}, "Q8_0 fits instead of Q4_K_M", 0.1),
        ({"rate": 100.0}, "decoding rises from 50.0 to 100.0 tokens/s", 1.0),
        ({"context_tokens": 32768}, "the context grows from 8K to 32K", 3.0),
        ({"ttft_s": 0.1}, "the first token comes after 100 ms instead of 500 ms", 4.0),
        ({"score": 90.0}, "the score rises from 80 to 90", 0.125),
    ],
)
def test_what_is_gained_is_named_with_its_own_gain(change, words, gain):
    assert improve.described(found(**change), found()) == (words, pytest.approx(gain))
    assert improve.described(found(**change), None)[0].endswith("runs")


def test_slow_rates_keep_the_digits_that_differ():
    words, gain = improve.described(found(rate=4.5), found(rate=0.11))
    assert (words, round(gain)) == ("decoding rises from 0.11 to 4.5 tokens/s", 40)


def test_something_instead_of_nothing_is_the_whole_score():
    assert improve.gain(found(), None) == pytest.approx(0.8)
    assert improve.gain(found(), found(score=0.0)) == pytest.approx(0.8)
    assert improve.gain(found(score=88.0), found()) == pytest.approx(0.1)


def test_a_smaller_quant_is_offered_with_its_price():
    offered = improve.smaller_quant(
        found(quant="Q8_0", rate=20.0, quality=1.0),
        {"Q4_K_M": [found(quality=0.9)], "Q2_K": [found(quant="Q2_K", rate=90.0, quality=0.5)], "Q6_K": []},
    )
    assert offered.message == "Q4_K_M decodes 2.5x as fast and keeps 90% of the quality."
    assert offered.gain == pytest.approx(1.5)
    assert improve.smaller_quant(None, {}) is None
    assert improve.smaller_quant(found(rate=None), {}) is None
    assert improve.smaller_quant(found(), {"Q2_K": [found(quant="Q2_K", rate=55.0)]}) is None


def test_closing_programs_that_hold_too_little_is_not_offered():
    crowded = {"gpus": [{"name": "RTX 3060 12GB", "memory_free_bytes": GIB}], "ram_bytes": GIB}
    result = answered("llama-3.1-405b", crowded, quant="Q4_K_M", gpu_layers="all", cpu_moe_layers=0)
    assert result.fit.status == "too-large"
    assert "close-programs" not in by_code(result)
