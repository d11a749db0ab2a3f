"""Fit the speed model's constants to the measured rows and write `data/speed_constants.json`.

    python scripts/fit_speed.py [--check] [--out FILE] [--date YYYY-MM-DD]

Needs NumPy. The rows are `data/measured_speeds.csv` without those that carry a reason in `skip`. Spreads of intervals
come from predictions with the row's own GPU (or host) left out. `--check` only tells whether the file would change.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from msgspec import json, structs
from speed_features import (
    CLASSES,
    MATRIX_PER_FP32,
    RECURRENT_KINDS,
    VECTOR_PER_FP32,
    class_index,
    decode_features,
    log_power,
    prefill_features,
    rounded,
    typical,
)
from speed_fit import TEST_KIN, Array, Fit, Prior, Table, Test
from speed_host import calibrated_spreads, fit_host, host_residuals, host_spreads, left_out, predicted_s
from speed_spread import bounds, plain, spread_of

from benchmarks.speed_cases import ROOT, Case, cases
from willitrun_estimator.families import FAMILIES
from willitrun_estimator.interval import Spread
from willitrun_estimator.throughput.constants import Constants, DecodeCosts, Family, PrefillCosts, Shared, shipped
from willitrun_estimator.throughput.work import Work

OUT = ROOT / "estimator/willitrun_estimator/data/speed_constants.json"
SOURCE = "scripts/fit_speed.py on data/measured_speeds.csv"
FIT_DATE = "2026-11-22"
SMALL_GROUP = 20
COVERED = 0.8
LONELY = 3
EARLY_KERNELS = "kernels before their merge"
"""Rows with this reason are not fitted, but say how far new kernels may be from what they become."""


def table(rows: list[Case], families: dict[str, Family], test: Test, crowd: float) -> Table:
    """Return rows of one test as arrays."""
    features = decode_features if test == "tg" else prefill_features
    works = [Work(one.weights, one.settings) for one in rows]
    times = [1 / one.tok_s if test == "tg" else max(1, round(one.tokens)) / one.tok_s for one in rows]
    found = Table(
        np.array([features(one, families[one.family], work) for one, work in zip(rows, works, strict=True)]),
        np.log(times),
        families=[one.family for one in rows],
        test=test,
    )
    count = Counter(one.gpu for one in rows)
    names = sorted(count)
    weights = np.array([count[one.gpu] ** -crowd for one in rows])
    kinds = [work.recurrent_kind for work in works]
    found.weights = weights / weights.mean()
    found.groups = np.array([names.index(one.gpu) for one in rows])
    found.kinds = np.array([class_index(one) for one in rows])
    found.recurrent = np.array([RECURRENT_KINDS.index(kind) if kind in RECURRENT_KINDS else 0 for kind in kinds])
    found.early = np.array([float(one.before_2025) for one in rows])
    found.vulkan = np.array([float(one.backend == "vulkan") for one in rows])
    found.ecc = np.array([float(one.devices.gpus[0].inline_ecc) for one in rows])
    found.power = np.array([log_power(one, families[one.family]) for one in rows])
    if test == "pp":
        found.overlap = np.array([overlap(one) for one in rows])
    return found


def overlap(one: Case) -> float:
    """Return the share of the time of a prompt that a perfect pipeline over equal GPUs would save."""
    gpus = len(one.devices.gpus)
    count = max(1, -(-round(one.tokens) // one.settings.ubatch))
    return (1 - 1 / gpus) * (count - 1) / count if one.settings.batch > one.settings.ubatch else 0.0


class Fitted:
    """The result of one test's fit: parameters, the rows, and their residuals with the GPU left out."""

    def __init__(self, rows: list[Case], families: dict[str, Family], test: Test, prior: Prior | None = None) -> None:
        prior = prior or Prior.of(test)
        self.rows, self.test = rows, test
        self.table = table(rows, families, test, prior.crowd)
        self.fit = Fit(prior, self.table)
        self.x = self.fit.run()

    def plain(self) -> Array:
        """Return the logarithm of measured over predicted speed."""
        return self.fit.predict(self.x, self.table) - self.table.log_time

    def left_out(self) -> Array:
        """Return the same with every row predicted by a fit without its GPU model."""
        return self.fit.leave_out(self.x) - self.table.log_time

    def families_left_out(self) -> Array:
        """Return the same with every row predicted by a fit without its family."""
        return self.fit.leave_out(self.x, groups=self.table.family) - self.table.log_time

    def values(self, family: str | None) -> dict[str, float]:
        """Return the constants of a family; one without rows takes after its kin, None after all."""
        kin = family and TEST_KIN[self.fit.rows.test].get(family)
        theta = self.fit.theta(
            self.x,
            self.table.kin_names.index(kin) if kin else None,
            self.table.names.index(family) if family in self.table.names else None,
        )
        return {name: rounded(float(np.exp(value))) for name, value in theta.items() if name != "formats"}

    def by_class(self) -> dict[str, float]:
        """Return the factor of every class of weight types."""
        values = self.fit.theta(self.x, None, None)["formats"]
        return {name: rounded(float(np.exp(value))) for name, value in zip(CLASSES, values, strict=True)}


def recurrent_number(one: Case) -> int:
    """Return a number for the kind of a model's recurrent mixers, 0 without any."""
    kind = Work(one.weights, one.settings).recurrent_kind
    return RECURRENT_KINDS.index(kind) + 1 if kind in RECURRENT_KINDS else 0


def decode_costs(v: dict[str, float]) -> DecodeCosts:
    """Return the decode constants in the product's terms."""
    return DecodeCosts(
        **{name: v[name] for name in DecodeCosts.__struct_fields__ if name != "expert"},
        expert=rounded(v["weight"] * v["expert"]),
    )


def prefill_costs(v: dict[str, float]) -> PrefillCosts:
    """Return the prefill constants in the product's terms."""
    return PrefillCosts(**{name: v[name] for name in PrefillCosts.__struct_fields__})


def gpu_rows(rows: list[Case], test: str) -> list[Case]:
    """Return the rows of one test that run on GPUs alone."""
    return [one for one in rows if one.test == test and one.where == "gpu"]


def admissible(rows: list[Case]) -> list[Case]:
    """Return the rows that may be fitted."""
    return [one for one in rows if not one.skip and one.slots == 1]


def fit_gpus(rows: list[Case]) -> tuple[Fitted, Fitted, dict[str, Family], Shared]:
    """Fit everything that happens on GPUs."""
    families = typical(rows)
    decode = Fitted(gpu_rows(rows, "tg"), families, "tg")
    prefill = Fitted(gpu_rows(rows, "pp"), families, "pp")
    counts = {fitted.test: Counter(one.family for one in fitted.rows) for fitted in (decode, prefill)}
    found = {}
    for name in (*FAMILIES, "unknown"):
        base = families.get(name) or without_rows(name, families["unknown"])
        known = None if name == "unknown" else name
        found[name] = structs.replace(
            base,
            decode=decode_costs(decode.values(known)),
            prefill=prefill_costs(prefill.values(known)),
            decode_rows=counts["tg"][name],
            prefill_rows=counts["pp"][name],
            gpus=base.gpus if name in families else 0,
        )
    one, batch = decode.values(None), prefill.values(None)
    shared = Shared(
        token_s=one["token"],
        device_s=one["device"],
        formats=decode.by_class(),
        prefill_formats=prefill.by_class() | {"half": 1.0},
        recurrent={"other": 1.0} | {kind: one.get(kind, 1.0) for kind in RECURRENT_KINDS},
        prefill_recurrent={"other": 1.0} | {kind: batch.get(kind, 1.0) for kind in RECURRENT_KINDS},
        inline_ecc=one["ecc"],
        power=rounded(float(np.log(one["power"]))),
        prefill_power=rounded(float(np.log(batch["power"]))),
        vulkan_half=batch["vulkan_half"],
        pipeline=rounded(1 / (1 + 1 / batch["pipeline"])),
    )
    return decode, prefill, found, shared


def without_rows(name: str, unknown: Family) -> Family:
    """Return the rates of a family that no row is of: those of its instruction set over an average data sheet."""
    return structs.replace(
        unknown,
        vector_per_fp32=VECTOR_PER_FP32.get(name, 1.0),
        matrix_per_fp32=float(MATRIX_PER_FP32[name]),
    )


def spreads(fitted: Fitted, constants: Constants, early: list[Case]) -> dict[str, Spread]:
    """Return the bounds of every group of rows on GPUs, and what they are multiplied by for what widens them.

    Families with fewer GPU models than `LONELY` have a base of their own, for leaving one out asks their kin's
    constants; with few rows besides, that says more of the kin than of the family, and the base is all they have.
    """
    kinds = ["moe" if one.moe else "dense" for one in fitted.rows]
    own = [f"{one.family}-{kind}" for one, kind in zip(fitted.rows, kinds, strict=True)]
    sizes = Counter(own)
    groups, base = [], {}
    for one, kind, name in zip(fitted.rows, kinds, own, strict=True):
        lonely = constants.families[one.family].gpus < LONELY
        base[name] = f"lonely-{kind}" if lonely else kind
        alone = lonely and sizes[name] < SMALL_GROUP
        wider = [
            word for word, holds in (("vulkan", one.backend == "vulkan"), ("ollama", one.engine == "ollama")) if holds
        ]
        groups.append((base[name], *([] if alone else [name]), *wider))
    found = bounds(fitted.left_out(), groups, sorted(set(base.values())))
    nothing = (0.0, 0.0)
    table = {
        name: spread_of(*np.add(found[base[name]], found.get(name, nothing)), sizes[name]) for name in sorted(sizes)
    }
    for word in ("vulkan", "ollama"):
        low, high = found.get(word, nothing)
        table[word] = spread_of(min(low, 0.0), max(high, 0.0), sum(word in row for row in groups))
    others, strange = fitted.families_left_out(), host_residuals([stranger(one) for one in fitted.rows], constants)
    for kind in ("dense", "moe"):
        mine = np.array(kinds) == kind
        table[f"new-family-{kind}"], table[f"unknown-{kind}"] = plain(others[mine]), plain(strange[mine])
    table["new-kernels"] = new_kernels([one for one in early if one.test == fitted.test], fitted.rows, constants)
    return dict(sorted(table.items()))


def new_kernels(early: list[Case], rows: list[Case], constants: Constants) -> Spread:
    """Return the bounds of delta nets, before and with a kernel of their own, predicted as if no row were of them."""
    blind = structs.replace(
        constants,
        shared=structs.replace(
            constants.shared,
            recurrent={"other": constants.shared.recurrent["other"]},
            prefill_recurrent={"other": constants.shared.prefill_recurrent["other"]},
        ),
    )
    late = host_residuals([one for one in rows if recurrent_number(one) == 1], blind)
    return plain(np.concatenate([late, np.resize(host_residuals(early, blind), len(late))]))


def before_kernels(early: list[Case], constants: Constants, test: Test) -> float:
    """Return what delta nets cost before they had a kernel of their own, relative to now: the median of their rows."""
    field = "recurrent" if test == "tg" else "prefill_recurrent"
    factors = []
    for one in early:
        if one.test != test:
            continue
        now, twice = (
            predicted_s(
                one, structs.replace(constants, shared=structs.replace(constants.shared, **{field: {"other": f}}))
            )
            for f in (1.0, 2.0)
        )
        measured = (1 if test == "tg" else max(1, round(one.tokens))) / one.tok_s
        factors.append(1 + (measured - now) / (twice - now))
    return float(np.median(factors))


def stranger(one: Case) -> Case:
    """Return the same question about a GPU of which nothing but memory and its bandwidth is known."""
    gpus = tuple(
        structs.replace(gpu, family="unknown", fp32_flops_per_s=None, power_watts=None, inline_ecc=False)
        for gpu in one.devices.gpus
    )
    return structs.replace(one, devices=structs.replace(one.devices, gpus=gpus))


def fit_all(everything: list[Case], date: str) -> tuple[Constants, Fitted, Fitted]:
    """Fit GPUs, then hosts with the GPUs' constants, then the bounds of both."""
    rows = admissible(everything)
    early = [one for one in everything if one.skip == EARLY_KERNELS and one.where == "gpu"]
    decode, prefill, families, shared = fit_gpus(rows)
    constants = Constants(
        fit_date=date,
        source=SOURCE,
        families=families,
        shared=shared,
        host=shipped().host,
        decode_spread={},
        prefill_spread={},
    )
    constants = structs.replace(
        constants,
        shared=structs.replace(
            shared,
            recurrent=shared.recurrent | {"other": rounded(before_kernels(early, constants, "tg") ** 0.5)},
            prefill_recurrent=shared.prefill_recurrent
            | {"other": rounded(before_kernels(early, constants, "pp") ** 0.5)},
        ),
    )
    mixed = [one for one in rows if one.where != "gpu" and one.devices.host.bandwidth_bytes_per_s]
    constants = structs.replace(constants, host=fit_host(mixed, constants))
    without = dict(zip(map(id, mixed), left_out(mixed, constants), strict=True))
    found = {}
    for fitted in (decode, prefill):
        part = [one for one in mixed if one.test == fitted.test]
        errors = np.array([without[id(one)] for one in part])
        found[fitted.test] = spreads(fitted, constants, early) | host_spreads(part, errors, COVERED)
    constants = structs.replace(constants, decode_spread=found["tg"], prefill_spread=found["pp"])
    return calibrated_spreads(constants, COVERED), decode, prefill


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--date", default=FIT_DATE)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    constants, *fits = fit_all(cases(), options.date)
    text = json.format(json.encode(constants), indent=1) + b"\n"
    if options.check:
        raise SystemExit(0 if options.out.read_bytes() == text else "the constants would change: run without --check")
    options.out.write_bytes(text)
    for fitted in fits:
        error = np.abs(np.expm1(fitted.plain()))
        print(fitted.test, len(error), f"median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")


if __name__ == "__main__":
    main()
