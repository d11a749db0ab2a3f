from __future__ import annotations

import pytest

from willitrun_estimator.plan import Serving
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.objectives import CONCURRENCY, Targets, choose_engine, objective, targets


def curve(single, each_more, ttft=0.1, wait=0.02, wall=512):
    running = [min(c, wall) for c in CONCURRENCY]
    rates = tuple(single * c / (1 + each_more * (c - 1)) for c in running)
    waits = tuple(ttft + wait * c for c in CONCURRENCY)
    return Serving(concurrency=CONCURRENCY, output_tokens_per_s=rates, ttft_s=waits)


def test_targets_are_the_users_or_reading_speed():
    assert targets(Request()) == Targets(decode_tokens_per_s=8.0, ttft_s=5.0)
    assert targets(Request(min_decode=20, max_ttft=1.5)) == Targets(decode_tokens_per_s=20, ttft_s=1.5)


def test_each_mode_values_what_it_documents():
    serving, wanted = curve(50, 0.1), Targets()
    assert objective("interactive", serving, wanted) == pytest.approx(1 / (0.12 + 2))
    assert objective("balanced", serving, wanted) == pytest.approx((50 * 200 / 1.3) ** 0.5)
    assert objective("light-api", serving, wanted) == pytest.approx(400 / 1.7)
    late = curve(50, 0.1, ttft=10)
    assert objective("light-api", late, wanted) == pytest.approx(400 / 1.7 * 5 / 10.16)
    slow = curve(5, 0.1)
    assert objective("light-api", slow, wanted) == pytest.approx(40 / 1.7 * (5 / 1.7) / 8)


def test_scale_out_counts_only_what_keeps_the_targets():
    serving = curve(50, 0.1)
    best = objective("scale-out", serving, Targets())
    kept = [
        r
        for c, r, t in zip(CONCURRENCY, serving.output_tokens_per_s, serving.ttft_s, strict=True)
        if r / c >= 8 and t <= 5
    ]
    assert best == max(kept)
    assert objective("scale-out", curve(5, 0.1), Targets()) == pytest.approx(25 / 8)


def test_the_better_engine_is_named_with_its_gain():
    batched, slots = curve(60, 0.02), curve(80, 0.5)
    many = choose_engine("light-api", batched, slots, Targets())
    assert many.engine == "vllm"
    assert many.gain > 1
    assert "8 users" in many.reason
    one = choose_engine("interactive", batched, slots, Targets())
    assert one.engine == "llama.cpp"
    assert one.gain == pytest.approx((0.12 + 100 / 60) / (0.12 + 100 / 80) - 1)
    assert "one user" in one.reason


def test_scale_out_is_compared_where_the_better_one_still_keeps_the_targets():
    found = choose_engine("scale-out", curve(60, 0.02), curve(80, 0.5), Targets())
    assert found.engine == "vllm"
    assert "at 128 users" in found.reason
    assert choose_engine("scale-out", curve(4, 0.5), curve(5, 0.9), Targets()).reason.count("one user") == 1


def test_a_tie_stays_with_the_simpler_engine():
    found = choose_engine("balanced", curve(52, 0.1), curve(50, 0.1), Targets())
    assert (found.engine, found.gain) == ("llama.cpp", 0.0)


def test_an_engine_that_does_not_serve_loses():
    serving = curve(50, 0.1)
    assert choose_engine("balanced", serving, None, Targets()).engine == "vllm"
    assert choose_engine("balanced", None, serving, Targets()).engine == "llama.cpp"
    assert choose_engine("balanced", None, None, Targets()) is None
