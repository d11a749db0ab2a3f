"""The fit of what runs on the host: few constants, searched one after the other, GPU constants as they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from speed_features import rounded

from benchmarks.calibrated import calibrated_runs, served_rows
from benchmarks.speed_cases import Case, gpu_depth
from willitrun_estimator.interval import Spread
from willitrun_estimator.throughput.constants import Constants, HostCosts
from willitrun_estimator.throughput.model import SpeedModel
from willitrun_estimator.throughput.rates import instruction_set
from willitrun_estimator.throughput.work import Work

NAMES = json.loads((Path(__file__).parent / "speed_names.json").read_text())
Array = NDArray[np.float64]
ROUNDS = 6
LEFT_OUT_ROUNDS = 2
"""Enough without one processor: most constants stay where they were measured."""
SMALL_GROUP = 20
STEPS = (0.8, 0.9, 0.96, 1.04, 1.1, 1.25)

START = HostCosts(
    bandwidth={"measured": 0.9, "given": 0.9, "assumed": 1.0},
    core_bytes_per_s={
        "F16": 20.3e9, "BF16": 22.4e9, "Q8_0": 16.5e9, "Q6_K": 20e9, "Q5_K": 10e9, "Q4_K": 16.6e9, "Q3_K": 8.5e9,
        "Q2_K": 12.8e9, "Q5_0": 12.5e9, "Q4_0": 11.9e9, "IQ4_NL": 13e9, "IQ4_XS": 10.8e9, "IQ3_S": 3.6e9,
        "IQ2_XS": 3.8e9, "MXFP4": 11e9,
    },
    core_ops_per_s={
        "F16": 203e9, "BF16": 400e9, "Q8_0": 188e9, "Q6_K": 283e9, "Q5_K": 400e9, "Q4_K": 215e9, "Q3_K": 267e9,
        "Q2_K": 95e9, "Q5_0": 130e9, "Q4_0": 187e9, "IQ4_NL": 190e9, "IQ4_XS": 400e9, "IQ3_S": 297e9,
        "IQ2_XS": 234e9, "MXFP4": 183e9,
    },
    decode_cores={"avx512f": 1.0, "avx2": 0.9, "asimd": 0.7, "other": 0.3},
    prefill_cores={"avx512f": 1.0, "avx2": 0.45, "asimd": 0.35, "other": 0.12},
    side_s=3.5e-9,
    expert=1.1,
    recurrent=1.5,
    split_s=1.3e-4,
    block_s=2e-6,
    link=1.2,
    copy_bytes_per_s=17e9,
    disk=1.0,
    start_s=0.5,
    rearranged_bytes_per_s=1.0e9,
)  # fmt: skip
"""Rates per core by type are what `calibrate` finds with made-up models of one type on two AVX-512 cores; the search
moves all of them a little. `disk`, `start_s` and `rearranged_bytes_per_s` are from llama-server's loads there, cold and
warm (`tests/truth/cpu_serving.jsonl`)."""


def predicted_s(one: Case, constants: Constants) -> float:
    """Return the predicted seconds of a token or of the prompt."""
    model = SpeedModel(
        one.weights, one.devices, one.settings, constants=constants, before_2025=one.before_2025, work=work_of(one)
    )
    if one.test == "tg":
        return model.decode_s(one.placement, gpu_depth(one)) or np.nan
    return model.prefill_s(one.placement, prompt_tokens=max(1, round(one.tokens)), depth_tokens=one.depth) or np.nan


def work_of(one: Case) -> Work:
    """Return a row's sums, which no constant changes."""
    key = (one.model, one.quant, one.settings.kv_type_k)
    if key not in WORK:
        WORK[key] = Work(one.weights, one.settings)
    return WORK[key]


WORK: dict[tuple[str, str, str], Work] = {}


def processor(one: Case) -> str:
    """Return which processor a row's host has: several machines with the same one are one host."""
    return next((str(pattern) for pattern, *_ in NAMES["hosts"] if re.search(pattern, one.host)), one.host)


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
        *[(name, None) for name in ("expert", "recurrent", "side_s", "split_s", "block_s", "link", "copy_bytes_per_s")],
    ]


def turned(costs: HostCosts, knob: tuple[str, str | None], factor: float) -> HostCosts:
    """Return the costs with one constant multiplied."""
    name, key = knob
    value = getattr(costs, name)
    if key is None:
        return structs.replace(costs, **{name: rounded(value * factor)})
    return structs.replace(costs, **{name: value | {key: rounded(value[key] * factor)}})


def fit_host(rows: list[Case], constants: Constants, rounds: int = ROUNDS) -> HostCosts:
    """Search the host's constants; every host weighs alike, a rate may not drift far from where it was measured."""
    rows = [one for one in rows if one.devices.host.bandwidth_bytes_per_s]
    crowd = Counter(processor(one) for one in rows)
    weights = np.array([crowd[processor(one)] ** -0.5 for one in rows])
    costs = START
    drift = dict.fromkeys(knobs(), 0.0)
    for _ in range(rounds):
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


def left_out(rows: list[Case], constants: Constants) -> Array:
    """Return the residuals of rows on hosts, each predicted by constants that were fitted without its processor."""
    names = [processor(one) for one in rows]
    errors = np.zeros(len(rows))
    for name in dict.fromkeys(names):
        others = [one for one, other in zip(rows, names, strict=True) if other != name]
        mine = [at for at, other in enumerate(names) if other == name]
        fitted = structs.replace(constants, host=fit_host(others, constants, LEFT_OUT_ROUNDS))
        errors[mine] = host_residuals([rows[at] for at in mine], fitted)
    return errors


def host_spreads(rows: list[Case], errors: Array, covered: float) -> dict[str, Spread]:
    """Return the spread of every group of rows that use the host; a processor with n rows weighs n^0.5."""
    groups: dict[str, list[int]] = {}
    for at, one in enumerate(rows):
        names = ("offload",) if one.where == "offload" else (f"host-{one.devices.host.bandwidth_basis}", "host")
        for name in names:
            groups.setdefault(name, []).append(at)
    found = {}
    for name, index in sorted(groups.items()):
        if len(index) >= SMALL_GROUP:
            crowd = Counter(processor(rows[at]) for at in index)
            weights = np.array([crowd[processor(rows[at])] ** -0.5 for at in index])
            low, high = (
                weighted_quantile(errors[index], weights, share) for share in ((1 - covered) / 2, (1 + covered) / 2)
            )
            found[name] = Spread(low=rounded(np.exp(low)), high=rounded(np.exp(high)), rows=len(index))
    return found


def weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """Return the value below which a share of the weight lies."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order]) / np.sum(weights)
    return float(values[order][min(len(values) - 1, int(np.searchsorted(sums, share)))])


def calibrated_spreads(constants: Constants, covered: float) -> Constants:
    """Return the constants with the spreads of own runs: after `calibrate`, and of slots served together."""
    errors: dict[str, list[float]] = {"decode": [], "prefill": [], "slots tok/s": []}
    for run in calibrated_runs():
        predicted = run.predicted(constants)
        for test, measured in run.measured.items():
            errors[test].append(float(np.log(measured / predicted[test])))
    for row in served_rows():
        if row.what in errors and row.count > 1:
            errors[row.what].append(float(np.log(row.measured / (row.predicted(constants) or np.nan))))
    spreads = {}
    for test, found in errors.items():
        low, high = np.quantile(found, [(1 - covered) / 2, (1 + covered) / 2])
        spreads[test] = Spread(low=rounded(float(np.exp(low))), high=rounded(float(np.exp(high))), rows=len(found))
    own = {"host-calibrated": spreads["decode"], "slots": spreads["slots tok/s"]}
    return structs.replace(
        constants,
        decode_spread=constants.decode_spread | own,
        prefill_spread=constants.prefill_spread | {"host-calibrated": spreads["prefill"]},
    )


def matters(one: Case, knob: tuple[str, str | None]) -> bool:  # noqa: PLR0911 - one rule a line
    """Tell whether a constant can change a row's prediction at all."""
    name, key = knob
    if name == "bandwidth":
        return one.devices.host.bandwidth_basis == key
    if name in {"link", "copy_bytes_per_s"}:
        return one.test == "pp" and bool(one.devices.gpus)
    if name in {"core_bytes_per_s", "core_ops_per_s"} and key not in {kind for kind, _ in one.weights.type_bytes}:
        return False
    if name in {"decode_cores", "prefill_cores"} and key != instruction_set(one.devices.host, getattr(START, name)):
        return False
    if name in {"core_ops_per_s", "prefill_cores", "side_s"}:
        return one.test == "pp"
    if name == "split_s":
        return one.where == "offload"
    return True
