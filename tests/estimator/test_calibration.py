from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from willitrun_estimator.calibration import Corrections, Run, calibrate_interval, prediction_of, where_of
from willitrun_estimator.interval import NO_SPREAD, Spread, interval, spread, time_interval, widest
from willitrun_estimator.plan import Interval, Plan

BEFORE = Interval(expected=100.0, low=80.0, high=130.0)
RUN = Run(
    test="decode",
    model="llama-3.1-8b-instruct",
    quant="Q4_K_M",
    engine="llama.cpp",
    where="gpu",
    gpu_layers=33,
    cpu_moe_layers=0,
    predicted_tokens_per_s=100.0,
    measured_tokens_per_s=80.0,
)
ASKED = {
    "test": "decode",
    "model": "llama-3.1-8b-instruct",
    "quant": "Q4_K_M",
    "engine": "llama.cpp",
    "where": "gpu",
    "gpu_layers": 33,
}


def test_the_same_run_is_the_answer():
    found = calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **ASKED)
    assert (found.expected, found.basis) == (80.0, "measured-here")
    assert (found.low, found.high) == (pytest.approx(76), pytest.approx(84))


def test_ollama_runs_what_llama_cpp_runs():
    assert (
        calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **(ASKED | {"engine": "ollama"})).basis == "measured-here"
    )
    assert calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **(ASKED | {"engine": "vllm"})) == BEFORE


def test_another_run_corrects_by_half_and_many_by_nearly_all():
    other = ASKED | {"model": "qwen3-8b"}
    once = calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **other)
    often = calibrate_interval(BEFORE, Corrections(runs=(RUN,) * 9), **other)
    assert once.basis == often.basis == "calibrated"
    assert once.expected == pytest.approx(100 * 0.8**0.5)
    assert often.expected == pytest.approx(100 * 0.8**0.9)
    assert often.high / often.low < once.high / once.low < BEFORE.high / BEFORE.low


@pytest.mark.parametrize("change", [{"test": "prefill"}, {"where": "offload"}])
def test_runs_of_another_kind_tell_nothing(change):
    assert calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **(ASKED | change)) == BEFORE
    empty = structs.replace(RUN, predicted_tokens_per_s=0.0)
    assert calibrate_interval(BEFORE, Corrections(runs=(empty,)), **ASKED) == BEFORE


@given(st.floats(0.1, 1000), st.floats(0.1, 1000), st.integers(1, 20))
def test_a_corrected_interval_holds_its_expectation(predicted, measured, count):
    run = structs.replace(RUN, predicted_tokens_per_s=predicted, measured_tokens_per_s=measured)
    found = calibrate_interval(BEFORE, Corrections(runs=(run,) * count), **(ASKED | {"quant": "Q8_0"}))
    assert found.low <= found.expected <= found.high
    assert min(100, 100 * measured / predicted) <= found.expected * 1.000001
    assert found.expected <= max(100, 100 * measured / predicted) * 1.000001


def test_a_run_far_from_its_own_context_counts_as_a_ratio():
    deep = calibrate_interval(BEFORE, Corrections(runs=(RUN,)), **ASKED, depth_tokens=20_000)
    assert deep.basis == "calibrated"
    assert deep.expected == pytest.approx(80.0)
    prompt = structs.replace(RUN, test="prefill", depth_tokens=64)
    asked = ASKED | {"test": "prefill"}
    corrections = Corrections(runs=(prompt,))
    assert calibrate_interval(BEFORE, corrections, **asked, depth_tokens=100).basis == "measured-here"
    assert calibrate_interval(BEFORE, corrections, **asked, depth_tokens=4096).basis == "calibrated"


def test_runs_against_another_prediction_are_no_ratio():
    corrections = Corrections(measured_at="today", runs=(structs.replace(RUN, predicted_with="2020-01-01 then"),))
    other = ASKED | {"model": "qwen3-8b"}
    assert calibrate_interval(BEFORE, corrections, **other) == BEFORE
    assert calibrate_interval(BEFORE, corrections, **ASKED).basis == "measured-here"
    current = structs.replace(RUN, predicted_with=prediction_of(corrections))
    assert calibrate_interval(BEFORE, structs.replace(corrections, runs=(current,)), **other).basis == "calibrated"
    assert prediction_of(None) == prediction_of(Corrections())


def plan(**changes):
    base = Plan(
        engine="llama.cpp", quant="Q4_K_M", context_tokens=1, kv_type="f16", flash_attention=True, gpu_layers=33,
        layers=32, cpu_moe_layers=0, tensor_split=(), ubatch=512, batch=2048, threads=4, parallel=1, file_bytes=1,
        devices=(), memory_bytes=1, offloaded_fraction=0.0,
    )  # fmt: skip
    return structs.replace(base, **changes)


def test_where_a_plan_computes():
    assert where_of(plan()) == "gpu"
    assert where_of(plan(gpu_layers=0)) == "host"
    assert where_of(plan(gpu_layers=32)) == "offload"
    assert where_of(plan(cpu_moe_layers=3)) == "offload"


def test_bounds_always_hold_the_expectation():
    found = interval(10.0, Spread(low=1.2, high=0.9))
    assert (found.low, found.expected, found.high) == (10.0, 10.0, 10.0)


def test_times_turn_bounds_round():
    found = time_interval(100, Interval(expected=50, low=25, high=100), extra_s=1)
    assert (found.low, found.expected, found.high) == (2.0, 3.0, 5.0)


def test_a_group_without_rows_lends_from_the_next():
    table = {"all": Spread(low=0.8, high=1.2, rows=9), "ada": Spread(low=0.9, high=1.1, rows=5)}
    assert spread(table, ("ada-moe", "ada", "all")) == table["ada"]
    assert spread(table, ("xe", "all")) == table["all"]
    assert spread({}, ("xe",)) == NO_SPREAD
    assert widest(table.values()) == Spread(low=0.8, high=1.2, rows=5)
    assert widest(()) == NO_SPREAD
