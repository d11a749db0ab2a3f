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
    class_index,
    decode_features,
    prefill_features,
    rounded,
    typical,
)
from speed_fit import (
    DECODE_PRIOR,
    KIN,
    PREFILL_KIN,
    PREFILL_PRIOR,
    Array,
    Fit,
    Model,
    Table,
    decode_time,
    leave_out,
    prefill_time,
)
from speed_host import fit_host, host_residuals

from benchmarks.speed_cases import ROOT, Case, cases
from willitrun_estimator.families import FAMILIES
from willitrun_estimator.interval import Spread
from willitrun_estimator.throughput.constants import Constants, DecodeCosts, Family, PrefillCosts, Shared, shipped

OUT = ROOT / "estimator/willitrun_estimator/data/speed_constants.json"
SOURCE = "scripts/fit_speed.py on data/measured_speeds.csv"
FIT_DATE = "2026-11-22"
CROWD = 0.3
"""A GPU with n rows weighs n^0.7: a card measured a hundred times must not be the whole family."""
SMALL_GROUP = 20
LONELY = 3
"""Families with fewer GPU models: leaving one out asks for another family's constants, which the product never does, so
only the scatter of their residuals counts and not the bias."""
COVERED = 0.8


def table(rows: list[Case], families: dict[str, Family], test: str) -> Table:
    """Return rows of one test as arrays."""
    features = decode_features if test == "tg" else prefill_features
    times = [1 / one.tok_s if test == "tg" else max(1, round(one.tokens)) / one.tok_s for one in rows]
    crowd = Counter(one.gpu for one in rows)
    weights = np.array([crowd[one.gpu] ** -CROWD for one in rows])
    return Table(
        np.array([features(one, families[one.family]) for one in rows]),
        np.log(times),
        [one.family for one in rows],
        [class_index(one) for one in rows],
        early=np.array([float(one.before_2025) for one in rows]),
        vulkan=np.array([float(one.backend == "vulkan") for one in rows]),
        weights=weights / weights.mean(),
        overlap=np.array([overlap(one) for one in rows]) if test == "pp" else None,
    )


def overlap(one: Case) -> float:
    """Return the share of the time of a prompt that a perfect pipeline over equal GPUs would save."""
    gpus = len(one.devices.gpus)
    count = max(1, -(-round(one.tokens) // one.settings.ubatch))
    return (1 - 1 / gpus) * (count - 1) / count if one.settings.batch > one.settings.ubatch else 0.0


class Fitted:
    """The result of one test's fit: parameters, the rows, and their residuals with the GPU left out."""

    def __init__(self, rows: list[Case], families: dict[str, Family], test: str) -> None:
        self.rows, self.test = rows, test
        self.model: Model = decode_time if test == "tg" else prefill_time
        self.table = table(rows, families, test)
        self.kin = KIN if test == "tg" else PREFILL_KIN
        prior = DECODE_PRIOR if test == "tg" else PREFILL_PRIOR
        self.fit = Fit(prior, self.table.names, kin=self.kin, formats=test == "tg")
        self.x = self.fit.run(self.model, self.table)

    def plain(self) -> Array:
        """Return the logarithm of measured over predicted speed."""
        return self.model(self.fit.theta(self.x, self.table.family), self.table)[0] - self.table.log_time

    def left_out(self) -> Array:
        """Return the same with every row predicted by a fit without its GPU model."""
        names = [one.gpu for one in self.rows]
        return leave_out(self.fit, self.model, self.table, names, self.x) - self.table.log_time

    def values(self, family: str) -> dict[str, float]:
        """Return the constants of a family; one without rows takes after its kin."""
        known = family in self.table.names
        theta = self.fit.theta(self.x, self.table.names.index(family) if known else None, self.kin.get(family))
        return {name: rounded(float(np.exp(value))) for name, value in theta.items() if name != "formats"}


def decode_costs(v: dict[str, float]) -> DecodeCosts:
    """Return the decode constants in the product's terms."""
    return DecodeCosts(
        weight=v["weight"],
        expert=rounded(v["weight"] * v["expert"]),
        cache=v["cache"],
        compute=v["compute"],
        attention=v["attention"],
        block_s=v["block_s"],
        recurrent_s=v["recurrent_s"],
        moe_s=v["moe_s"],
        early=v["early"],
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
    decode, prefill = (Fitted(gpu_rows(rows, test), families, test) for test in ("tg", "pp"))
    counts = {fitted.test: Counter(one.family for one in fitted.rows) for fitted in (decode, prefill)}
    found = {}
    for name in (*FAMILIES, "unknown"):
        base = families.get(name) or families["unknown"]
        found[name] = structs.replace(
            base,
            decode=decode_costs(decode.values(name)),
            prefill=prefill_costs(prefill.values(name)),
            decode_rows=counts["tg"][name],
            prefill_rows=counts["pp"][name],
            gpus=base.gpus if name in families else 0,
        )
    centre = decode.fit.theta(decode.x, None)
    batch = prefill.fit.theta(prefill.x, None)
    shared = Shared(
        token_s=rounded(float(np.exp(centre["token"]))),
        device_s=rounded(float(np.exp(centre["device"]))),
        formats={name: rounded(float(np.exp(value))) for name, value in zip(CLASSES, centre["formats"], strict=True)},
        vulkan_weight=rounded(float(np.exp(centre["vulkan_weight"]))),
        vulkan_block=rounded(float(np.exp(centre["vulkan_block"]))),
        vulkan_prefill=rounded(float(np.exp(batch["vulkan"]))),
        pipeline=rounded(float(1 / (1 + np.exp(-batch["pipeline"])))),
    )
    return decode, prefill, found, shared


def centred(rows: list[Case], errors: Array, families: dict[str, Family]) -> Array:
    """Return the residuals without the bias of families that have too few GPU models to be left out."""
    found = errors.copy()
    for name in {one.family for one in rows if families[one.family].gpus < LONELY}:
        index = [at for at, one in enumerate(rows) if one.family == name]
        if len(index) >= SMALL_GROUP:
            found[index] -= np.median(errors[index])
    return found


def spread_of(errors: Array) -> Spread:
    """Return the ratios of measured to predicted speed between which 80 % of the rows lie."""
    low, high = np.quantile(errors, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Spread(low=rounded(float(np.exp(low))), high=rounded(float(np.exp(high))), rows=len(errors))


def spreads(rows: list[Case], errors: Array, where: str = "gpu") -> dict[str, Spread]:
    """Return the spread of every group that has enough rows; `errors` is log(measured / predicted)."""
    groups: dict[str, list[float]] = {}
    dense = Counter(one.family for one in rows if not one.moe)
    for one, error in zip(rows, errors, strict=True):
        kind = "moe" if one.moe else "dense"
        names = (f"{one.family}-{kind}", kind, "all") if where == "gpu" else group_names(one)
        if where == "gpu" and not one.moe and dense[one.family] < SMALL_GROUP:
            names += ("sparse",)  # families that were measured little lend from each other
        for name in names:
            groups.setdefault(name, []).append(float(error))
    return {name: spread_of(np.array(found)) for name, found in sorted(groups.items()) if len(found) >= SMALL_GROUP}


def group_names(one: Case) -> tuple[str, ...]:
    """Return the groups of a row that uses the host."""
    return ("offload",) if one.where == "offload" else (f"host-{one.devices.host.bandwidth_basis}", "host")


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--date", default=FIT_DATE)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows = admissible(cases())
    decode, prefill, families, shared = fit_gpus(rows)
    constants = Constants(
        fit_date=options.date,
        source=SOURCE,
        families=families,
        shared=shared,
        host=shipped().host,
        decode_spread={},
        prefill_spread={},
    )
    mixed = [one for one in rows if one.where != "gpu" and one.devices.host.bandwidth_bytes_per_s]
    constants = structs.replace(constants, host=fit_host(mixed, constants))
    tables: dict[str, dict[str, Spread]] = {}
    for fitted, test in ((decode, "tg"), (prefill, "pp")):
        found = spreads(fitted.rows, centred(fitted.rows, fitted.left_out(), families))
        part = [one for one in mixed if one.test == test]
        tables[test] = found | spreads(part, host_residuals(part, constants), where="mixed")
    constants = structs.replace(constants, decode_spread=tables["tg"], prefill_spread=tables["pp"])
    text = json.format(json.encode(constants), indent=1) + b"\n"
    if options.check:
        raise SystemExit(0 if options.out.read_bytes() == text else "the constants would change: run without --check")
    options.out.write_bytes(text)
    for fitted in (decode, prefill):
        error = np.abs(np.expm1(fitted.plain()))
        print(fitted.test, len(error), f"median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")


if __name__ == "__main__":
    main()
