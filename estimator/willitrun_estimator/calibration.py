"""Corrections from what one machine really did, applied to predictions. Pure: the agent measures and stores.

A run of the same model, quantization, engine and placement is the answer itself (`measured-here`). Any other run of
this machine tells how far the model is off for this kind of placement (`calibrated`): its ratio is believed by
n / (n + 1) of its logarithm, because one run also carries its own model's error.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Literal

from msgspec import Struct

from willitrun_estimator.plan import Interval, Plan

Where = Literal["gpu", "offload", "host"]
Test = Literal["decode", "prefill"]

REPEATS = 0.05
"""Half the width of the interval around a measured value: llama-bench's repeats lie within 5 % on idle machines."""
KEPT_WIDTH = 0.5
"""Share of the interval's width (in logarithm) that stays after many runs: the models still differ."""


class Run(Struct, frozen=True, kw_only=True):
    """One measured speed of this machine beside what was predicted for it."""

    test: Test
    model: str
    quant: str
    engine: str
    where: Where
    gpu_layers: int
    cpu_moe_layers: int
    predicted_tokens_per_s: float
    measured_tokens_per_s: float
    measured_at: str = ""


class Corrections(Struct, frozen=True, kw_only=True):
    """What is known of one machine from measuring it; `shape_hash` says of which."""

    schema: str = "willitrun.corrections/1"
    shape_hash: str = ""
    measured_at: str = ""
    ram_bandwidth_bytes_per_s: float | None = None
    disk_read_bytes_per_s: dict[str, float] = {}
    """By the path of the model folder."""
    runs: tuple[Run, ...] = ()


def where_of(plan: Plan) -> Where:
    """Return who computes a plan: GPUs alone, both, or the host."""
    if plan.gpu_layers == 0:
        return "host"
    return "offload" if plan.gpu_layers <= plan.layers or plan.cpu_moe_layers else "gpu"


def calibrate_interval(
    interval: Interval,
    corrections: Corrections,
    *,
    test: Test,
    model: str,
    quant: str,
    engine: str,
    where: Where,
    gpu_layers: int,
    cpu_moe_layers: int = 0,
) -> Interval:
    """Return the prediction corrected by this machine's runs, unchanged where none tells anything about it."""
    engines = ("llama.cpp", "ollama") if engine in {"llama.cpp", "ollama"} else (engine,)
    alike = [
        run
        for run in corrections.runs
        if run.test == test and run.where == where and run.engine in engines and run.predicted_tokens_per_s > 0
    ]
    same = [
        run.measured_tokens_per_s
        for run in alike
        if (run.model, run.quant, run.gpu_layers, run.cpu_moe_layers) == (model, quant, gpu_layers, cpu_moe_layers)
    ]
    if same:
        value = median(same)
        return Interval(expected=value, low=value * (1 - REPEATS), high=value * (1 + REPEATS), basis="measured-here")
    if not alike:
        return interval
    count = len(alike)
    belief = count / (count + 1)
    shift = belief * median(math.log(run.measured_tokens_per_s / run.predicted_tokens_per_s) for run in alike)
    width = 1 - belief * (1 - KEPT_WIDTH)
    expected = interval.expected * math.exp(shift)
    return Interval(
        expected=expected,
        low=expected * (interval.low / interval.expected) ** width,
        high=expected * (interval.high / interval.expected) ** width,
        basis="calibrated",
    )
