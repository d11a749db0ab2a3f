"""The tables and curves of an answer agree with its plan."""

from __future__ import annotations

from tests.estimator.answers_on import answered, found
from willitrun_estimator import explain


def test_the_curve_of_a_plan_that_reads_from_disk_reads_from_disk():
    result = answered("deepseek-v3.2", "RTX 4090, 64 GiB RAM", quant="IQ2_M")
    assert result.fit.status == "paging"
    rates = [point.decode_tokens_per_s.expected for point in result.curve]
    assert rates == sorted(rates, reverse=True)
    assert all(rate < result.speed.decode_tokens_per_s.expected * 1.2 for rate in rates)
    more = next(one for one in result.improvements if one.code == "more-ram")
    assert more.gain > 10


def test_two_numbers_that_look_alike_explain_nothing():
    winner, loser = found(quality=0.98041, ttft_s=0.4), found(quality=0.98040, ttft_s=0.5)
    assert explain.why_lost(winner, loser) == "answers after 500 ms against 400 ms"
    assert explain.why_lost(winner, found(quality=0.98040, ttft_s=0.4)).startswith("scores the same")
