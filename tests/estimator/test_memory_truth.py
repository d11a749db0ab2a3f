"""The memory model against plans measured with llama.cpp's own planner, on the bars that the product promises."""

from __future__ import annotations

import statistics
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "accuracy_memory.py"


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = spec_from_file_location("accuracy_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["accuracy_memory"] = module
    spec.loader.exec_module(module)
    return module


def check(accuracy: ModuleType, step: int) -> None:
    cases = list(accuracy.read_cases())[::step]
    found = list(accuracy.differences(cases))
    caches = [one for one in found if one.term == "cache"]
    assert all(one.predicted == one.measured for one in caches)
    compute = [one for one in found if one.term == "compute" and one.device == "GPU"]
    errors = sorted(abs(one.relative) for one in compute)
    assert statistics.median(errors) <= 0.001
    assert errors[int(0.9 * len(errors))] <= 0.03
    short = [one for one in compute if one.measured - one.predicted > max(64 << 20, 0.05 * one.measured)]
    assert len(short) <= 0.005 * len(compute), [one.case.label for one in short]
    totals = [one for one in found if one.term == "total" and one.device == "GPU"]
    errors = sorted(abs(one.relative) for one in totals)
    assert statistics.median(errors) <= 0.0005
    assert sum(error > 0.03 for error in errors) <= 0.01 * len(errors)


def test_loads_that_real_gpus_logged(accuracy: ModuleType) -> None:
    loads = list(accuracy.read_loads())
    assert len(loads) >= 15
    compute = sorted(abs(one.predicted - one.measured) / one.measured for one in loads if one.term == "compute")
    assert statistics.median(compute) <= 0.01
    exact = [one for one in loads if one.term in {"weights", "cache"}]
    assert all(abs(one.predicted - one.measured) <= max(1.0, 0.0001 * one.measured) for one in exact)
    assert max(abs(one.predicted - one.measured) / one.measured for one in loads if one.term == "total") <= 0.05


def test_a_sample_of_measured_plans(accuracy: ModuleType) -> None:
    check(accuracy, 17)


@pytest.mark.slow
def test_all_measured_plans(accuracy: ModuleType) -> None:
    check(accuracy, 1)


def test_the_report_and_its_plot(accuracy: ModuleType) -> None:
    cases = [case for case in accuracy.read_cases() if case.model == "qwen3-8b"][-12:]
    found = list(accuracy.differences(cases))
    text = accuracy.report(found, 3)
    assert "compute" in text
    assert "qwen3" in text
    assert accuracy.plot(found).count("<circle") > 10
