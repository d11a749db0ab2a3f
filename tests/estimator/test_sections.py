"""The tables and curves of an answer agree with its plan."""

from __future__ import annotations

import pytest

from tests.estimator.answers_on import answered, found
from willitrun_catalog.find import find_model
from willitrun_estimator import explain
from willitrun_estimator.answer import answer
from willitrun_estimator.calibration import Corrections, Run
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine


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


@pytest.mark.parametrize("machine", ["RTX 3090, 64 GiB RAM", "no GPU, 64 GiB RAM"])
def test_tables_say_of_the_plan_what_the_headline_says(machine):
    where, request = open_machine(machine), Request(context=8192)
    run = Run(
        test="decode", model="llama-3.1-8b-instruct", quant="Q4_K_M", engine="llama.cpp", where="host", gpu_layers=0,
        cpu_moe_layers=0, predicted_tokens_per_s=10.0, measured_tokens_per_s=5.0,
    )  # fmt: skip
    result = answer(where, find_model("llama-3.1-8b").spec, request, sheet_of, corrections=Corrections(runs=(run,)))
    decode, wait = result.speed.decode_tokens_per_s, result.speed.ttft_s
    (row,) = [one for one in result.quants if one.best]
    assert (row.decode, row.decode_tokens_per_s, row.ttft_s) == (decode, decode.expected, wait.expected)
    (chat,) = [one for one in result.workloads if one.workload == "chat"]
    assert (chat.decode_tokens_per_s, chat.ttft_s) == (decode.expected, wait.expected)
    (balanced,) = [one for one in result.modes if one.mode == "balanced"]
    assert (balanced.decode_tokens_per_s, balanced.ttft_s) == (decode, wait.expected)
    bare = answer(where, find_model("llama-3.1-8b").spec, request, sheet_of)
    if not result.plan.gpu_layers:
        assert row.decode_tokens_per_s < next(one for one in bare.quants if one.best).decode_tokens_per_s
