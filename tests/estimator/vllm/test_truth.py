"""The bars, held on logged starts and published sweeps (the same code as `benchmarks/accuracy_vllm.py`)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def result():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        benchmark = importlib.import_module("accuracy_vllm")
        return benchmark.measure(None, None)[0]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_weights_per_rank(result):
    assert result["weights"]["n"] > 100
    assert result["weights"]["median"] <= 0.005
    assert result["weights"]["p90"] <= 0.02


def test_tokens_and_concurrency_from_a_given_pool(result):
    for name in ("cache_tokens", "concurrency"):
        assert result[name]["n"] > 80
        assert result[name]["worst"] <= 0.0025


def test_pool_from_flags_shape_and_total_memory(result):
    assert result["pool_gib"]["n"] > 90
    assert result["pool_gib"]["median"] <= 0.15
    assert result["pool_gib"]["p90"] <= 0.5
    assert result["pool_gib_all"]["n"] > 100, "unified memory and draft models included"
    assert result["pool_gib_all"]["median"] <= 0.15
    assert result["pool_gib_all"]["p90"] <= 0.5


def test_speed_of_models_left_out_of_the_fit(result):
    assert result["speed"]["n"] > 1000
    assert result["speed"]["median"] <= 0.20
    assert result["speed"]["p90"] <= 0.55
    assert 0.72 <= result["interval_coverage"] <= 0.88
