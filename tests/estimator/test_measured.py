from __future__ import annotations

import csv
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog import shipped
from willitrun_estimator.measured import MOST_ROWS, measured_alike, rows, shipped_lines, towards
from willitrun_estimator.plan import Interval, MeasuredRow

ASKED = {
    "gpu": "NVIDIA GeForce RTX 3090",
    "gpus": 1,
    "backend": "cuda",
    "model": "llama-2-7b-chat",
    "quant": "Q4_0",
}
BEFORE = Interval(expected=100.0, low=80.0, high=130.0)


def row(rate):
    return MeasuredRow(tokens_per_s=rate, test="decode 128", source="https://example.org")


def test_published_rows_come_with_their_source():
    found = measured_alike(**ASKED)
    assert 158.16 in {one.tokens_per_s for one in found}
    assert all(one.source.startswith("http") and one.test == "decode 128" for one in found)
    assert [one.date for one in found] == sorted((one.date for one in found), reverse=True)


@pytest.mark.parametrize(
    "change",
    [{"gpus": 2}, {"quant": "Q8_0"}, {"backend": "vulkan"}, {"model": "llama-2-13b"}, {"engine": "vllm"}, {"gpu": "x"}],
)
def test_what_is_not_alike_is_not_shown(change):
    assert measured_alike(**(ASKED | change)) == ()


def test_ollama_counts_as_llama_cpp_and_prefill_apart():
    assert measured_alike(**ASKED, engine="ollama") == measured_alike(**ASKED)
    prompts = measured_alike(**ASKED, test="prefill")
    assert {one.test.split()[0] for one in prompts} == {"prefill"}


def test_all_rows_name_catalog_gpus_and_no_row_to_skip_is_among_them():
    names = {sheet.name for sheet in shipped.datasheets()}
    (head, *lines), _ = shipped_lines()
    listed = {line["gpu"] for line in csv.DictReader([head, *lines])} - {""}
    assert rows("") == {}
    every = {(gpu, model): group for gpu in listed for model, group in rows(gpu).items()}
    assert {gpu for gpu, _ in every} <= names
    assert len({gpu for gpu, _ in every}) > 50
    assert all(one.gpu == gpu for (gpu, _), group in every.items() for one in group)
    assert all(one.engine in {"llama.cpp", "ollama"} for group in every.values() for one in group)
    assert max(len(measured_alike(**(ASKED | {"gpu": gpu, "model": model}))) for gpu, model in every) <= MOST_ROWS


def test_an_estimate_moves_towards_rows_and_becomes_narrower():
    one, many = towards(BEFORE, (row(144.0),)), towards(BEFORE, (row(144.0),) * 7)
    assert one.expected == pytest.approx(120.0)
    assert many.expected == pytest.approx(math.exp(7 / 8 * math.log(144) + math.log(100) / 8))
    assert many.high / many.low < one.high / one.low < BEFORE.high / BEFORE.low
    assert one.basis == "measured-alike"


def test_nothing_published_and_better_bases_stay():
    assert towards(BEFORE, ()) == BEFORE
    here = Interval(expected=100.0, low=95.0, high=105.0, basis="measured-here")
    assert towards(here, (row(50.0),)) == here


@given(st.lists(st.floats(0.01, 10_000), min_size=1, max_size=8))
def test_the_moved_interval_holds_its_expectation(rates):
    found = towards(BEFORE, tuple(row(rate) for rate in rates))
    assert found.low <= found.expected <= found.high
