"""The fits themselves: robust, on the logarithm of time, families drawn towards their kin and kin towards all.

A parameter of a row is the sum of a centre, a deviation of the family's kin and one of the family itself, each normal
with the width `speed_prior.json` gives it (0: the parameter is one for all). `choose_speed_prior.py` chose the widths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from speed_features import CLASSES, DECODE_FIELDS, PREFILL_FIELDS, RECURRENT_KINDS

KIN = {
    "kepler": "no-dp4a", "maxwell": "no-dp4a", "gp100": "no-dp4a", "pascal": "cuda-old", "turing16": "cuda-old",
    "volta": "cuda-old", "a100": "cuda-hbm", "hopper": "cuda-hbm", "blackwell-dc": "cuda-hbm",
    "turing": "cuda-gddr", "ampere": "cuda-gddr", "ada": "cuda-gddr", "blackwell": "cuda-gddr",
    "gcn": "gcn", "gcn5": "gcn", "cdna": "gcn", "cdna3": "gcn",
    "rdna1": "rdna", "rdna2": "rdna", "rdna3": "rdna", "rdna35": "rdna", "rdna4": "rdna",
    "apple": "apple", "apple5": "apple", "xe": "intel", "xe2": "intel",
}  # fmt: skip
"""Families that resemble each other: one without rows takes after its kin before it takes after all. `no-dp4a` lacks
the product of four bytes that quantized weights are multiplied with (CUDA compute capability below 6.1)."""
PREFILL_KIN = KIN | {"volta": "cuda-hbm"}
"""Prompts are multiplied in matrix units, and Volta's are those of data centres."""
TEST_KIN = {"tg": KIN, "pp": PREFILL_KIN}

Array = NDArray[np.float64]
Theta = dict[str, Array]
Test = Literal["tg", "pp"]

PRIOR_FILE = Path(__file__).with_name("speed_prior.json")
FORMAT_WIDTH = 0.2
"""How far reading or multiplying a weight type may be from Q4_0, in the logarithm."""
FAR = 1.5
"""The most a parameter moves in one step."""


class Prior:
    """Centre and widths of every parameter of one test, and how odd rows and crowds of rows count."""

    def __init__(self, widths: Mapping[str, Sequence[float]], *, scale: float, crowd: float) -> None:
        self.widths = {name: tuple(values) for name, values in widths.items()}
        self.scale = scale
        """Residuals of the logarithm beyond this count linearly: one odd row must not bend a family."""
        self.crowd = crowd
        """A GPU with n rows weighs n^(1 - crowd): a card measured a hundred times must not be the whole family."""

    @classmethod
    def of(cls, test: Test, path: Path = PRIOR_FILE) -> Prior:
        """Return the chosen prior of a test."""
        found = json.loads(path.read_text())[test]
        return cls(found["widths"], scale=found["scale"], crowd=found["crowd"])


class Table:
    """Rows as arrays: features, the measured logarithm of time, and what a row belongs to."""

    def __init__(self, features: Array, log_time: Array, *, families: Sequence[str], test: Test) -> None:
        self.features, self.log_time, self.test = features, log_time, test
        self.names = sorted(set(families))
        self.family = np.array([self.names.index(name) for name in families])
        self.kin_names = sorted(set(TEST_KIN[test].values()))
        self.kin = np.array([self.kin_names.index(TEST_KIN[test][name]) for name in families])
        rows = len(log_time)
        self.kinds = np.zeros(rows, dtype=np.int64)
        self.recurrent = np.zeros(rows, dtype=np.int64)
        """Place in `RECURRENT_KINDS`."""
        self.groups = np.zeros(rows, dtype=np.int64)
        """Number of the GPU model."""
        self.early, self.vulkan, self.ecc = np.zeros(rows), np.zeros(rows), np.zeros(rows)
        self.power = np.zeros(rows)
        """Logarithm of the power per operation over the family's usual one."""
        self.overlap = np.zeros(rows)
        self.weights = np.ones(rows)

    def part(self, index: NDArray[np.int64]) -> Table:
        """Return some of the rows with the same numbering of families."""
        found = object.__new__(Table)
        found.__dict__ = dict(self.__dict__)
        for name in ("features", "log_time", "family", "kin", "kinds", "recurrent", "groups", "early", "vulkan", "ecc",
                     "power", "overlap", "weights"):  # fmt: skip
            setattr(found, name, getattr(self, name)[index])
        return found


Slopes = dict[str, Array]
Model = Callable[[Theta, Table], tuple[Array, Slopes]]
"""Logarithm of the seconds of every row, and its derivative by each parameter."""


def decode_time(theta: Theta, rows: Table) -> tuple[Array, Slopes]:
    """Return the logarithm of the seconds of a token, with its slopes."""
    f = dict(zip(DECODE_FIELDS, rows.features.T, strict=True))
    e = np.exp
    read = e(theta["formats"][rows.kinds] + rows.vulkan * theta["vulkan_weight"] + rows.ecc * theta["ecc"])
    late = e(rows.early * theta["early"] + rows.vulkan * theta["vulkan_block"])
    dense, state = e(theta["weight"]) * read * f["weight"], e(theta["weight"]) * f["state"]
    expert = e(theta["weight"] + theta["expert"]) * read * f["expert"]
    kind = sum(theta[name] * (rows.recurrent == at) for at, name in enumerate(RECURRENT_KINDS) if at)
    terms = {
        "cache": e(theta["cache"]) * f["cache"],
        "compute": e(theta["compute"] - theta["power"] * rows.power) * f["compute"],
        "attention": e(theta["attention"]) * f["attention"],
        "block_s": late * e(theta["block_s"]) * f["block_s"],
        "recurrent_s": late * e(theta["recurrent_s"] + kind) * f["recurrent_s"],
        "moe_s": late * e(theta["moe_s"]) * f["moe_s"],
        "token": e(theta["token"]) * f["token"],
        "device": e(theta["device"]) * f["device"],
    }
    time = dense + state + expert + sum(terms.values())
    waits = (terms["block_s"] + terms["recurrent_s"] + terms["moe_s"]) / time
    slopes = {name: term / time for name, term in terms.items()} | {
        "weight": (dense + state + expert) / time,
        "expert": expert / time,
        "formats": (dense + expert) / time,
        "ecc": rows.ecc * (dense + expert) / time,
        "power": -rows.power * terms["compute"] / time,
        "vulkan_weight": rows.vulkan * (dense + expert) / time,
        "vulkan_block": rows.vulkan * waits,
        "early": rows.early * waits,
    }
    slopes |= kinds_slopes(rows, slopes["recurrent_s"])
    return np.log(time), slopes


def prefill_time(theta: Theta, rows: Table) -> tuple[Array, Slopes]:
    """Return the logarithm of the seconds of a prompt, with its slopes."""
    f = dict(zip(PREFILL_FIELDS, rows.features.T, strict=True))
    e = np.exp
    is_half = rows.kinds == CLASSES.index("half")
    slow = e(rows.early * theta["early"] + rows.vulkan * theta["vulkan"])
    works = slow * e(-theta["power"] * rows.power)
    half = e(theta["half"] + rows.vulkan * theta["vulkan_half"])
    product = works * np.where(is_half, half, e(theta["quantized"] + theta["formats"][rows.kinds]))
    share = 1 / (1 + e(-theta["pipeline"]))
    keep = 1 - share * rows.overlap
    kind = sum(theta[name] * (rows.recurrent == at) for at, name in enumerate(RECURRENT_KINDS) if at)
    dense, expert = keep * product * f["product"], keep * product * e(theta["expert"]) * f["expert"]
    terms = {
        "weight": keep * e(theta["weight"]) * f["weight"],
        "activation": keep * slow * e(theta["activation"]) * f["activation"],
        "recurrent": keep * slow * e(theta["recurrent"] + kind) * f["recurrent"],
        "block_s": keep * slow * e(theta["block_s"]) * f["block_s"],
        "recurrent_s": keep * slow * e(theta["recurrent_s"]) * f["recurrent_s"],
        "moe_s": keep * slow * e(theta["moe_s"]) * f["moe_s"],
        "attention": works * e(theta["attention"]) * f["attention"],
    }
    time = dense + expert + sum(terms.values())
    slowed = (time - terms["weight"]) / time
    products = (dense + expert) / time
    stages = (time - terms["attention"]) / keep
    slopes = {name: term / time for name, term in terms.items()} | {
        "quantized": np.where(is_half, 0.0, products),
        "formats": np.where(is_half, 0.0, products),
        "half": np.where(is_half, products, 0.0),
        "vulkan_half": np.where(is_half, rows.vulkan * products, 0.0),
        "expert": expert / time,
        "power": -rows.power * (dense + expert + terms["attention"]) / time,
        "early": rows.early * slowed,
        "vulkan": rows.vulkan * slowed,
        "pipeline": -stages * rows.overlap * share * (1 - share) / time,
    }
    slopes |= kinds_slopes(rows, slopes["recurrent"])
    return np.log(time), slopes


def kinds_slopes(rows: Table, slope: Array) -> Slopes:
    """Return the slope of the recurrent work, for the parameter of each kind."""
    return {name: slope * (rows.recurrent == at) for at, name in enumerate(RECURRENT_KINDS) if at}


MODELS: dict[Test, Model] = {"tg": decode_time, "pp": prefill_time}


class Fit:
    """One model's parameters: centres, deviations of kin and of families, and the prior that ties them."""

    def __init__(self, prior: Prior, rows: Table) -> None:
        self.prior, self.rows, self.model = prior, rows, MODELS[rows.test]
        self.names = list(prior.widths)
        start = [prior.widths[name][0] for name in self.names] + [0.0] * (len(CLASSES) - 1)
        widths = [prior.widths[name][1] for name in self.names] + [FORMAT_WIDTH] * (len(CLASSES) - 1)
        self.formats = len(self.names)
        self.place: dict[tuple[str, str], int] = {}
        """Where the deviations of a parameter begin, by kin and by family."""
        for level, count, column in (("kin", len(rows.kin_names), 2), ("family", len(rows.names), 3)):
            for name in self.names:
                width = prior.widths[name][column]
                if width > 0:
                    self.place[level, name] = len(start)
                    start += [0.0] * count
                    widths += [width] * count
        self.start, self.tight = np.array(start), 1.0 / np.array(widths)

    def theta(self, x: Array, kin: NDArray[np.int64] | int | None, family: NDArray[np.int64] | int | None) -> Theta:
        """Return the parameters as rows of given kin and families see them; None leaves a level's deviation out."""
        found: Theta = {}
        for at, name in enumerate(self.names):
            value: Array | float = x[at]
            for level, index in (("kin", kin), ("family", family)):
                place = self.place.get((level, name))
                if place is not None and index is not None:
                    value = value + x[place + np.asarray(index)]
            found[name] = np.asarray(value)
        found["formats"] = np.concatenate([[0.0], x[self.formats : self.formats + len(CLASSES) - 1]])
        return found

    def predict(self, x: Array, rows: Table) -> Array:
        """Return the logarithm of the seconds of rows."""
        return self.model(self.theta(x, rows.kin, rows.family), rows)[0]

    def columns(self, slopes: Slopes, rows: Table) -> Array:
        """Return the derivative of every row by every parameter."""
        found = np.zeros((len(rows.log_time), len(self.start)))
        every = np.arange(len(rows.log_time))
        for column, name in enumerate(self.names):
            found[:, column] = slopes[name]
        own = rows.kinds > 0
        found[every[own], self.formats + rows.kinds[own] - 1] = slopes["formats"][own]
        for (level, name), place in self.place.items():
            found[every, place + (rows.kin if level == "kin" else rows.family)] = slopes[name]
        return found

    def system(self, x: Array, rows: Table) -> tuple[Array, Array, Array]:
        """Return the rows' weighted columns, weights and residuals of a Gauss-Newton step on pseudo-Huber losses."""
        value, slopes = self.model(self.theta(x, rows.kin, rows.family), rows)
        error = (value - rows.log_time) / self.prior.scale
        return self.columns(slopes, rows) / self.prior.scale, rows.weights / np.sqrt(1 + error**2), error

    def run(self, rows: Table | None = None, x: Array | None = None, rounds: int = 40) -> Array:
        """Fit rows (all without any given), from a start or the prior's centres."""
        rows = self.rows if rows is None else rows
        x = self.start.copy() if x is None else x.copy()
        for _ in range(rounds):
            columns, weight, error = self.system(x, rows)
            normal = (columns * weight[:, None]).T @ columns + np.diag(self.tight**2)
            pull = columns.T @ (weight * error) + self.tight**2 * (x - self.start)
            step = np.clip(np.linalg.solve(normal, pull), -0.5, 0.5)
            x -= step
            if np.max(np.abs(step)) < 1e-4:
                break
        return x

    def leave_out(self, x: Array, *, groups: NDArray[np.int64] | None = None, rounds: int = 4) -> Array:
        """Return every row's predicted logarithm of time by a fit without its group, its GPU model if none is given.

        The first step takes the group's part out of the whole system; `rounds` more make it exact.
        """
        rows = self.rows
        groups = rows.groups if groups is None else groups
        columns, weight, error = self.system(x, rows)
        normal = (columns * weight[:, None]).T @ columns + np.diag(self.tight**2)
        pull = columns.T @ (weight * error) + self.tight**2 * (x - self.start)
        found = np.zeros(len(rows.log_time))
        for group in np.unique(groups):
            out = np.where(groups == group)[0]
            part, own = columns[out], weight[out]
            step = np.linalg.solve(normal - (part * own[:, None]).T @ part, pull - part.T @ (own * error[out]))
            without = x - np.clip(step, -FAR, FAR)
            if rounds:
                without = self.run(rows.part(np.where(groups != group)[0]), without, rounds)
            found[out] = self.predict(without, rows.part(out))
        return found
