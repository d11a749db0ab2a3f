"""The fit of what runs on the host: few constants, searched one after the other, GPU constants as they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from speed_features import rounded

from benchmarks.speed_cases import Case, gpu_depth
from willitrun_estimator.throughput.constants import Constants, HostCosts
from willitrun_estimator.throughput.model import SpeedModel

Array = NDArray[np.float64]
ROUNDS = 6
STEPS = (0.8, 0.9, 0.96, 1.04, 1.1, 1.25)

START = HostCosts(
    bandwidth={"measured": 0.9, "given": 0.9, "assumed": 1.0, "data-sheet": 0.65},
    core_bytes_per_s={
        "F16": 20.3e9, "BF16": 22.4e9, "Q8_0": 16.5e9, "Q6_K": 20e9, "Q5_K": 10e9, "Q4_K": 16.6e9, "Q3_K": 8.5e9,
        "Q2_K": 12.8e9, "Q5_0": 12.5e9, "Q4_0": 11.9e9, "IQ4_NL": 13e9, "IQ4_XS": 10.8e9, "IQ3_S": 3.6e9,
        "IQ2_XS": 3.8e9, "MXFP4": 11e9,
    },
    core_ops_per_s={
        "F16": 136e9, "BF16": 217e9, "Q8_0": 115e9, "Q6_K": 148e9, "Q5_K": 150e9, "Q4_K": 150e9, "Q3_K": 150e9,
        "Q2_K": 86e9, "Q5_0": 97e9, "Q4_0": 140e9, "IQ4_NL": 140e9, "IQ4_XS": 220e9, "IQ3_S": 135e9,
        "IQ2_XS": 130e9, "MXFP4": 134e9,
    },
    decode_cores={"avx512f": 1.0, "avx2": 0.9, "asimd": 0.7, "other": 0.3},
    prefill_cores={"avx512f": 1.0, "avx2": 0.45, "asimd": 0.35, "other": 0.12},
    expert=1.1,
    recurrent=1.5,
    split_s=1.3e-4,
    block_s=2e-6,
    link=1.2,
    copy_bytes_per_s=17e9,
    disk=0.9,
)  # fmt: skip
"""Rates per core by type from llama-bench with made-up models of one type (`benchmarks/calibrate.py types`) on two
AVX-512 cores; the search moves all of them a little."""


def predicted_s(one: Case, constants: Constants) -> float:
    """Return the predicted seconds of a token or of the prompt."""
    model = SpeedModel(one.weights, one.devices, one.settings, constants=constants, before_2025=one.before_2025)
    if one.test == "tg":
        return model.decode_s(one.placement, gpu_depth(one)) or np.nan
    return model.prefill_s(one.placement, prompt_tokens=max(1, round(one.tokens)), depth_tokens=one.depth) or np.nan


def host_residuals(rows: list[Case], constants: Constants) -> Array:
    """Return log(measured / predicted speed) of every row."""
    times = [1 / one.tok_s if one.test == "tg" else max(1, round(one.tokens)) / one.tok_s for one in rows]
    return np.log([predicted_s(one, constants) for one in rows]) - np.log(times)


def loss(rows: list[Case], constants: Constants, weights: Array, drift: float) -> float:
    """Return the robust mean of the residuals, and a little for leaving the start."""
    error = host_residuals(rows, constants) / 0.1
    return float(np.sum(weights * (np.sqrt(1 + error**2) - 1))) + 0.5 * drift**2


def knobs() -> list[tuple[str, str | None]]:
    """Return the constants to search: field, and key where the field is a table."""
    return [
        ("bandwidth", "measured"),
        ("bandwidth", "assumed"),
        *[("core_bytes_per_s", name) for name in START.core_bytes_per_s],
        *[("core_ops_per_s", name) for name in START.core_ops_per_s],
        *[("decode_cores", name) for name in ("avx2", "asimd")],
        *[("prefill_cores", name) for name in ("avx2", "asimd")],
        *[(name, None) for name in ("expert", "recurrent", "split_s", "block_s", "link", "copy_bytes_per_s")],
    ]


def turned(costs: HostCosts, knob: tuple[str, str | None], factor: float) -> HostCosts:
    """Return the costs with one constant multiplied."""
    name, key = knob
    value = getattr(costs, name)
    if key is None:
        return structs.replace(costs, **{name: rounded(value * factor)})
    return structs.replace(costs, **{name: value | {key: rounded(value[key] * factor)}})


def fit_host(rows: list[Case], constants: Constants) -> HostCosts:
    """Search the host's constants; every host weighs alike, a rate may not drift far from where it was measured."""
    rows = [one for one in rows if one.devices.host.bandwidth_bytes_per_s]
    crowd = Counter(one.host for one in rows)
    weights = np.array([crowd[one.host] ** -0.5 for one in rows])
    costs = START
    drift = dict.fromkeys(knobs(), 0.0)
    for _ in range(ROUNDS):
        moved = False
        for knob in knobs():
            touched = [at for at, one in enumerate(rows) if matters(one, knob)]
            part, some = [rows[at] for at in touched], weights[touched]
            if not part:
                continue
            best, best_factor = loss(part, structs.replace(constants, host=costs), some, drift[knob] / 0.3), 1.0
            for factor in STEPS:
                trial = structs.replace(constants, host=turned(costs, knob, factor))
                value = loss(part, trial, some, (drift[knob] + np.log(factor)) / 0.3)
                if value < best - 1e-3:
                    best, best_factor = value, factor
            if best_factor != 1.0:
                costs, moved = turned(costs, knob, best_factor), True
                drift[knob] += float(np.log(best_factor))
        if not moved:
            break
    given = costs.bandwidth | {"given": costs.bandwidth["measured"]}
    return structs.replace(costs, bandwidth=given)


def matters(one: Case, knob: tuple[str, str | None]) -> bool:  # noqa: PLR0911 - one rule a line
    """Tell whether a constant can change a row's prediction at all."""
    name, key = knob
    if name == "bandwidth":
        return one.devices.host.bandwidth_basis == key
    if name in {"link", "copy_bytes_per_s"}:
        return one.test == "pp" and bool(one.devices.gpus)
    if name in {"core_bytes_per_s", "core_ops_per_s"} and key not in {kind for kind, _ in one.weights.type_bytes}:
        return False
    if name in {"decode_cores", "prefill_cores"} and key not in one.devices.host.flags:
        return False
    if name in {"core_ops_per_s", "prefill_cores"}:
        return one.test == "pp"
    if name == "split_s":
        return one.where == "offload"
    return True
