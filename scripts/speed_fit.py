"""The fits themselves: robust, on the logarithm of time, families drawn towards each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from speed_features import CLASSES, DECODE_FIELDS, PREFILL_FIELDS

KIN = {
    "kepler": "cuda-old", "maxwell": "cuda-old", "gp100": "cuda-old", "pascal": "cuda-old",
    "volta": "cuda-old", "a100": "cuda-hbm", "hopper": "cuda-hbm", "blackwell-dc": "cuda-hbm",
    "turing": "cuda-gddr", "ampere": "cuda-gddr", "ada": "cuda-gddr", "blackwell": "cuda-gddr",
    "gcn": "gcn", "gcn5": "gcn", "cdna": "gcn", "cdna3": "gcn",
    "rdna1": "rdna", "rdna2": "rdna", "rdna3": "rdna", "rdna35": "rdna", "rdna4": "rdna",
    "apple": "apple", "apple5": "apple", "xe": "intel", "xe2": "intel",
}  # fmt: skip
"""Families that resemble each other: one without rows takes after its kin before it takes after all."""
PREFILL_KIN = KIN | {"rdna4": "rdna4"}
"""In prefill RDNA 4 has matrix units of another kind and is nobody's kin."""

Array = NDArray[np.float64]
Theta = dict[str, Array]

SCALE = 0.12
"""Residuals of the logarithm beyond this count linearly: one odd row must not bend a family."""

DECODE_PRIOR = {
    # name: centre of the logarithm, width over all families, width between families (0: one for all)
    "weight": (0.10, 0.3, 0.20),
    "expert": (0.3, 0.4, 0.25),
    "cache": (0.6, 0.6, 0.35),
    "compute": (1.5, 1.0, 0.6),
    "block_s": (np.log(60e-6), 0.7, 0.5),
    "moe_s": (np.log(60e-6), 0.8, 0.5),
    "recurrent_s": (np.log(100e-6), 0.8, 0.35),
    "early": (0.35, 0.4, 0.3),
    "attention": (-2.5, 1.2, 0.0),
    "token": (np.log(1e-4), 1.0, 0.0),
    "device": (np.log(1.5e-4), 1.0, 0.0),
    "vulkan_weight": (0.0, 0.2, 0.0),
    "vulkan_block": (0.1, 0.3, 0.0),
}
PREFILL_PRIOR = {
    "quantized": (1.0, 0.6, 0.4),
    "half": (0.8, 0.6, 0.4),
    "expert": (0.6, 0.6, 0.35),
    "weight": (0.3, 0.4, 0.2),
    "attention": (1.0, 1.0, 0.5),
    "recurrent": (2.0, 1.5, 0.5),
    "block_s": (np.log(1.5e-4), 1.0, 0.6),
    "moe_s": (np.log(3e-4), 1.0, 0.6),
    "early": (0.2, 0.3, 0.2),
    "vulkan": (0.2, 0.4, 0.0),
    "pipeline": (0.0, 1.0, 0.0),
}


class Table:
    """Rows as arrays: features, the measured logarithm of time, and what a row belongs to."""

    def __init__(
        self,
        features: Array,
        log_time: Array,
        families: Sequence[str],
        kinds: Sequence[int],
        *,
        early: Array,
        vulkan: Array,
        weights: Array,
        overlap: Array | None = None,
    ) -> None:
        self.features, self.log_time = features, log_time
        self.names = sorted(set(families))
        self.family = np.array([self.names.index(name) for name in families])
        self.kinds = np.array(kinds)
        self.early, self.vulkan, self.weights = early, vulkan, weights
        self.overlap = np.zeros(len(log_time)) if overlap is None else overlap

    def part(self, index: NDArray[np.int64]) -> Table:
        """Return some of the rows with the same numbering of families."""
        found = object.__new__(Table)
        found.names = self.names
        for name in ("features", "log_time", "family", "kinds", "early", "vulkan", "weights", "overlap"):
            setattr(found, name, getattr(self, name)[index])
        return found


Slopes = dict[str, Array]
Model = Callable[[Theta, Table], tuple[Array, Slopes]]
"""Logarithm of the seconds of every row, and its derivative by each parameter."""


def decode_time(theta: Theta, rows: Table) -> tuple[Array, Slopes]:
    """Return the logarithm of the seconds of a token, with its slopes."""
    f = dict(zip(DECODE_FIELDS, rows.features.T, strict=True))
    e = np.exp
    read = e(theta["formats"][rows.kinds] + rows.vulkan * theta["vulkan_weight"])
    late = e(rows.early * theta["early"] + rows.vulkan * theta["vulkan_block"])
    dense, state = e(theta["weight"]) * read * f["weight"], e(theta["weight"]) * f["state"]
    expert = e(theta["weight"] + theta["expert"]) * read * f["expert"]
    terms = {
        "cache": e(theta["cache"]) * f["cache"],
        "compute": e(theta["compute"]) * f["compute"],
        "attention": e(theta["attention"]) * f["attention"],
        "block_s": late * e(theta["block_s"]) * f["block_s"],
        "recurrent_s": late * e(theta["recurrent_s"]) * f["recurrent_s"],
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
        "vulkan_weight": rows.vulkan * (dense + expert) / time,
        "vulkan_block": rows.vulkan * waits,
        "early": rows.early * waits,
    }
    return np.log(time), slopes


def prefill_time(theta: Theta, rows: Table) -> tuple[Array, Slopes]:
    """Return the logarithm of the seconds of a prompt, with its slopes."""
    f = dict(zip(PREFILL_FIELDS, rows.features.T, strict=True))
    e = np.exp
    is_half = rows.kinds == CLASSES.index("half")
    slow = e(rows.early * theta["early"] + rows.vulkan * theta["vulkan"])
    product = slow * np.where(is_half, e(theta["half"]), e(theta["quantized"]))
    share = 1 / (1 + e(-theta["pipeline"]))
    keep = 1 - share * rows.overlap
    dense, expert = keep * product * f["product"], keep * product * e(theta["expert"]) * f["expert"]
    terms = {
        "weight": keep * e(theta["weight"]) * f["weight"],
        "recurrent": keep * slow * e(theta["recurrent"]) * f["recurrent"],
        "block_s": keep * slow * e(theta["block_s"]) * f["block_s"],
        "moe_s": keep * slow * e(theta["moe_s"]) * f["moe_s"],
        "attention": slow * e(theta["attention"]) * f["attention"],
    }
    time = dense + expert + sum(terms.values())
    slowed = (time - terms["weight"]) / time
    stages = (time - terms["attention"]) / keep
    slopes = {name: term / time for name, term in terms.items()} | {
        "quantized": np.where(is_half, 0.0, (dense + expert) / time),
        "half": np.where(is_half, (dense + expert) / time, 0.0),
        "expert": expert / time,
        "early": rows.early * slowed,
        "vulkan": rows.vulkan * slowed,
        "pipeline": -stages * rows.overlap * share * (1 - share) / time,
    }
    return np.log(time), slopes


class Fit:
    """One model's parameters: shared centres, deviations of kin and of families, and the prior that ties them."""

    def __init__(
        self,
        prior: dict[str, tuple[float, float, float]],
        families: Sequence[str],
        *,
        kin: dict[str, str],
        formats: bool,
    ) -> None:
        self.prior = prior
        self.names = list(prior)
        self.local = [name for name in self.names if prior[name][2] > 0]
        self.formats = len(CLASSES) - 1 if formats else 0
        self.kin = sorted(set(kin.values()))
        self.kin_of = np.array([self.kin.index(kin[name]) for name in families])
        self.width = len(self.kin) + len(families)
        centres = [prior[name][0] for name in self.names]
        self.start = np.array(centres + [0.0] * (self.formats + self.width * len(self.local)))

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Return centres, formats and deviations (local x kin and families)."""
        count = len(self.names)
        return x[:count], x[count : count + self.formats], x[count + self.formats :].reshape(len(self.local), -1)

    def theta(self, x: Array, family: NDArray[np.int64] | int | None, kin: str | None = None) -> Theta:
        """Return the parameters as rows of given families see them; with None as a GPU of that kin, or none, does."""
        centres, formats, deviations = self.split(x)
        found: Theta = {}
        for at, name in enumerate(self.names):
            own: Array | float = 0.0
            if name in self.local:
                values = deviations[self.local.index(name)]
                if family is not None:
                    own = values[self.kin_of[family]] + values[len(self.kin) + np.asarray(family)]
                elif kin is not None:
                    own = values[self.kin.index(kin)]
            found[name] = np.asarray(centres[at] + own)
        found["formats"] = np.concatenate([[0.0], formats]) if self.formats else np.zeros(len(CLASSES))
        return found

    def columns(self, slopes: Slopes, rows: Table) -> Array:
        """Return the derivative of every row by every parameter."""
        count = len(rows.log_time)
        found = np.zeros((count, len(self.start)))
        at = np.arange(count)
        base = len(self.names) + self.formats
        for column, name in enumerate(self.names):
            found[:, column] = slopes[name]
        if self.formats:
            own = rows.kinds > 0
            found[at[own], len(self.names) + rows.kinds[own] - 1] = slopes["formats"][own]
        for row, name in enumerate(self.local):
            found[at, base + row * self.width + self.kin_of[rows.family]] = slopes[name]
            found[at, base + row * self.width + len(self.kin) + rows.family] = slopes[name]
        return found

    def prior_terms(self) -> tuple[Array, Array]:
        """Return the centre of every parameter and the inverse of its width."""
        widths = [self.prior[name][1] for name in self.names] + [0.2] * self.formats
        for name in self.local:
            widths += [self.prior[name][2]] * self.width
        return self.start, 1.0 / np.array(widths)

    def run(self, model: Model, rows: Table, start: Array | None = None, rounds: int = 40) -> Array:
        """Fit the rows by damped Gauss-Newton steps on pseudo-Huber residuals with the prior."""
        x = self.start.copy() if start is None else start.copy()
        centre, tight = self.prior_terms()
        for _ in range(rounds):
            value, slopes = model(self.theta(x, rows.family), rows)
            error = (value - rows.log_time) / SCALE
            weight = rows.weights / np.sqrt(1 + error**2)
            columns = self.columns(slopes, rows) / SCALE
            normal = (columns * weight[:, None]).T @ columns + np.diag(tight**2)
            pull = columns.T @ (weight * error) + tight**2 * (x - centre)
            step = np.clip(np.linalg.solve(normal, pull), -0.5, 0.5)
            x -= step
            if np.max(np.abs(step)) < 1e-4:
                break
        return x


def leave_out(fit: Fit, model: Model, rows: Table, groups: Sequence[str], best: Array) -> Array:
    """Return every row's predicted logarithm of time by a fit without its group."""
    found = np.zeros(len(rows.log_time))
    names = np.array(groups)
    for name in sorted(set(groups)):
        out, kept = np.where(names == name)[0], np.where(names != name)[0]
        x = fit.run(model, rows.part(kept), best, rounds=6)
        part = rows.part(out)
        found[out] = model(fit.theta(x, part.family), part)[0]
    return found
