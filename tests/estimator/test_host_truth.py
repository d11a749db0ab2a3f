"""Own runs with made-up models (`tests/truth/cpu_*`): what the host's formulas say of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import median

import pytest

from benchmarks.calibrated import calibrated_runs, served_rows
from willitrun_catalog import shipped
from willitrun_estimator import throughput
from willitrun_estimator.device import Devices, Host
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput.constants import shipped as constants
from willitrun_estimator.weights import weight_profile

TRUTH = Path(__file__).parent.parent / "truth"


@pytest.mark.parametrize(("test", "most"), [("decode", 0.12), ("prefill", 0.08)])
def test_calibrated_predictions_are_near(test, most):
    runs = calibrated_runs()
    assert len({(run.model, run.quant) for run in runs}) >= 6
    assert median(abs(run.predicted(constants())[test] / run.measured[test] - 1) for run in runs) < most


@pytest.mark.parametrize(
    ("what", "most"), [("load cold s", 0.2), ("load warm s", 0.35), ("ttft s", 0.08), ("slots tok/s", 0.2)]
)
def test_served_figures_are_near(what, most):
    rows = [row for row in served_rows() if row.what == what]
    assert len(rows) >= 3
    assert median(abs(row.predicted() / row.measured - 1) for row in rows) < most


def test_paging_lies_within_its_bounds():
    with (TRUTH / "cpu_paging.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    placement, settings = Placement(gpu_layers=0), Settings(context_tokens=512)
    off = []
    for row in rows:
        weights = weight_profile(shipped.model(row["model"]), row["quant"])
        host = Host(
            ram_total_bytes=0, ram_available_bytes=int(row["limit_bytes"]), threads=2, flags=("avx2", "avx512f"),
            bandwidth_bytes_per_s=float(row["bandwidth_bytes_per_s"]), bandwidth_basis="micro-benchmark",
            disk_read_bytes_per_s=float(row["disk_read_bytes_per_s"]),
        )  # fmt: skip
        short = max(0, weights.file_bytes + int(row["engine_bytes"]) - int(row["limit_bytes"]))
        devices = Devices(name="box", gpus=(), host=host)
        found = throughput.paged_decode(weights, devices, placement, settings, short_bytes=short)
        assert found.low <= float(row["tok_s"]) <= found.high
        off.append(abs(math.log(found.expected / float(row["tok_s"]))))
    assert median(off) < math.log(1.5)
