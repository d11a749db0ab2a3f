"""Corrections from what one machine really did, applied to predictions. Pure: the agent measures and stores.

A run of the same model, quantization, engine and placement is the answer itself (`measured-here`). Any other run of
this machine tells how far the model is off for this kind of placement (`calibrated`): its ratio is believed by
n / (n + 1) of its logarithm, because one run also carries its own model's error.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from willitrun_estimator.plan import Interval, Plan
from willitrun_estimator.throughput.constants import shipped
from willitrun_probe.machine import ProductRate

Where = Literal["gpu", "offload", "host"]
Test = Literal["decode", "prefill"]

REPEATS = 0.05
"""Half the width of the interval around a measured value: llama-bench's repeats lie within 5 % on idle machines."""
NEAR_TOKENS = 2048
"""A run says how fast the same plan is with about as much context."""
NEAR_FACTOR = 2
"""A prompt's speed depends on its length more than on its place: short ones wait more than they compute."""
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
    predicted_with: str = ""
    """Constants and measured rates that the prediction rests on (`prediction_of`); empty fits all."""
    depth_tokens: int = 0
    """Mean context while it was measured; of a prefill run, the length of the prompt."""


class Corrections(Struct, frozen=True, kw_only=True):
    """What is known of one machine from measuring it; `shape_hash` says of which."""

    schema: str = "willitrun.corrections/1"
    shape_hash: str = ""
    measured_at: str = ""
    ram_bandwidth_bytes_per_s: float | None = None
    disk_read_bytes_per_s: dict[str, float] = {}
    """By the path of the model folder."""
    product_rates: tuple[ProductRate, ...] = ()
    """What the installed engine's kernels reach on this processor."""
    block_s: float | None = None
    side_s: float | None = None
    runs: tuple[Run, ...] = ()


def where_of(plan: Plan) -> Where:
    """Return who computes a plan: GPUs alone, both, or the host."""
    if plan.gpu_layers == 0:
        return "host"
    return "offload" if plan.gpu_layers <= plan.layers or plan.cpu_moe_layers else "gpu"


def prediction_of(corrections: Corrections | None) -> str:
    """Name what predictions rest on: a ratio to one says nothing about predictions that rest on something else."""
    return f"{shipped().fit_date} {corrections.measured_at if corrections else ''}".strip()


def is_near(run: Run, depth_tokens: int) -> bool:
    """Tell whether a run says as it is how fast a plan is at a depth, or with a prompt of that length."""
    if run.test == "decode":
        return abs(depth_tokens - run.depth_tokens) <= NEAR_TOKENS
    shorter, longer = sorted((depth_tokens, run.depth_tokens))
    return longer <= NEAR_FACTOR * shorter


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
    depth_tokens: int = 0,
) -> Interval:
    """Return the prediction corrected by this machine's runs, unchanged where none tells anything about it.

    A run of the same plan is the answer at about its own context; far from it, its ratio to the prediction counts.
    """
    engines = ("llama.cpp", "ollama") if engine in {"llama.cpp", "ollama"} else (engine,)
    alike = [
        run
        for run in corrections.runs
        if run.test == test and run.where == where and run.engine in engines and run.predicted_tokens_per_s > 0
    ]
    if not alike:
        return interval
    from statistics import median  # noqa: PLC0415 - slow to import, and few machines have runs

    same = [
        run for run in alike
        if (run.model, run.quant, run.gpu_layers, run.cpu_moe_layers) == (model, quant, gpu_layers, cpu_moe_layers)
    ]  # fmt: skip
    near = [run.measured_tokens_per_s for run in same if is_near(run, depth_tokens)]
    if near:
        value = median(near)
        return Interval(expected=value, low=value * (1 - REPEATS), high=value * (1 + REPEATS), basis="measured-here")
    known = prediction_of(corrections)
    valid = [run for run in alike if run.predicted_with in {known, ""}]
    if not valid:
        return interval
    own = [run for run in valid if run in same]
    telling = own or valid
    belief = 1.0 if own else len(telling) / (len(telling) + 1)
    shift = belief * median(math.log(run.measured_tokens_per_s / run.predicted_tokens_per_s) for run in telling)
    width = 1 - belief * (1 - KEPT_WIDTH)
    expected = interval.expected * math.exp(shift)
    return Interval(
        expected=expected,
        low=expected * (interval.low / interval.expected) ** width,
        high=expected * (interval.high / interval.expected) ** width,
        basis="calibrated",
    )
