"""Bounds of 80 % of outcomes: quantile regression of residuals that the fit did not see, groups drawn to their parent.

A residual is the logarithm of measured over predicted speed, of a fit without the row's GPU model. Its low and
high percentile are sums of a base (dense or with routed experts), a deviation of the family, and one for each
thing that widens: Vulkan, ollama. Deviations are normal with a narrow width, so few rows move little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from speed_features import rounded
from speed_fit import Array

from willitrun_estimator.interval import Spread

TAILS = (0.09, 0.91)
"""A little outside the tenths: of GPUs that neither the fit nor the bounds have seen, fewer fall between them."""
SMOOTH = 0.01
"""Over which the corner of the pinball loss is rounded."""
WIDTH = 0.03
"""How far a group's bound may be from its parent's before the rows must speak up."""
LOSS_SCALE = 0.03
"""Mean pinball loss of a good bound: what a row weighs against the prior."""


def bounds(errors: Array, groups: Sequence[Sequence[str]], bases: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the bounds' contributions by name; every row lists what contributes to it, a base among them."""
    names = sorted({name for row in groups for name in row})
    columns = np.array([[float(name in row) for name in names] for row in groups])
    loose = np.array([1e-6 if name in bases else 1 / WIDTH**2 for name in names])
    tails = []
    for tail in TAILS:
        x = np.array([float(np.quantile(errors, tail)) if name in bases else 0.0 for name in names])
        for _ in range(200):
            left = errors - columns @ x
            below = 1 / (1 + np.exp(np.clip(left / SMOOTH, -50, 50)))
            slope = columns.T @ (below - tail) / LOSS_SCALE + loose * x
            curve = (columns * (below * (1 - below) / SMOOTH + 0.5)[:, None]).T @ columns / LOSS_SCALE
            step = np.linalg.solve(curve + np.diag(loose) + 1e-9 * np.eye(len(x)), slope)
            x -= np.clip(step, -0.1, 0.1)
            if np.max(np.abs(step)) < 1e-5:
                break
        tails.append(x)
    return {name: (float(low), float(high)) for name, low, high in zip(names, *tails, strict=True)}


def spread_of(low: float, high: float, rows: int) -> Spread:
    """Return bounds of the logarithm as ratios."""
    return Spread(low=rounded(float(np.exp(low))), high=rounded(float(np.exp(high))), rows=rows)


def plain(errors: Array) -> Spread:
    """Return the percentiles of residuals as they are."""
    low, high = (float(np.quantile(errors, tail)) for tail in TAILS)
    return spread_of(low, high, len(errors))
