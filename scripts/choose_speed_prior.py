"""Choose the widths in `speed_prior.json` by leaving one GPU model out, and write the file.

    python scripts/choose_speed_prior.py [--rounds N]

Every parameter's deviations of kin and of families get the width, of a few, with which rows of unseen GPUs are
predicted best; so do the scale of the loss and the weight of crowds. Centres and their own widths stay as they are in
the file. A few minutes; run `fit_speed.py` afterwards.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np
from fit_speed import Fitted, admissible, gpu_rows
from speed_features import typical
from speed_fit import PRIOR_FILE, Fit, Prior

from benchmarks.speed_cases import cases

WIDTHS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.6)
SCALES = (0.08, 0.12, 0.2)
CROWDS = (0.0, 0.3, 0.5)
WORST = 1.0
"""Errors of the logarithm beyond this count as this: odd rows must not choose."""
GAIN = 1e-4
"""What a change must gain at least, so that ties keep what is simpler."""


class Search:
    """One test's prior and how well it predicts GPUs it has not seen."""

    def __init__(self, fitted: Fitted, found: dict[str, Any]) -> None:
        self.table, self.found = fitted.table, found
        self.gpus = [one.gpu for one in fitted.rows]
        self.count = Counter(self.gpus)

    def weights(self, power: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the rows' weights when a GPU with n of them counts n^(1 - power)."""
        weights = np.array([self.count[gpu] ** -power for gpu in self.gpus])
        return weights / weights.mean()

    def score(self) -> float:
        """Return the mean error of the logarithm, half by rows and half by GPUs' square roots."""
        prior = Prior(self.found["widths"], scale=self.found["scale"], crowd=self.found["crowd"])
        self.table.weights = self.weights(prior.crowd)
        fit = Fit(prior, self.table)
        errors = np.minimum(np.abs(fit.leave_out(fit.run(), rounds=0) - self.table.log_time), WORST)
        return float(np.mean(errors) + np.average(errors, weights=self.weights(0.5))) / 2

    def choose(self, holder: Any, key: Any, options: tuple[float, ...], best: float) -> float:
        """Set one figure to the best of the options; return the score."""
        kept = holder[key]
        for option in options:
            if option == kept:
                continue
            before, holder[key] = holder[key], option
            value = self.score()
            if value < best - GAIN:
                best = value
            else:
                holder[key] = before
        return best

    def sweep(self, best: float) -> float:
        """Choose every figure once."""
        for name, (_, _, kin, family) in list(self.found["widths"].items()):
            if kin or family or name in LOCAL:
                for column in (2, 3):
                    best = self.choose(self.found["widths"][name], column, WIDTHS, best)
        best = self.choose(self.found, "scale", SCALES, best)
        return self.choose(self.found, "crowd", CROWDS, best)


LOCAL = frozenset(
    ("weight", "expert", "cache", "compute", "block_s", "moe_s", "recurrent_s", "early", "vulkan_weight",
     "vulkan_block", "quantized", "half", "activation", "attention", "recurrent", "vulkan", "power")
)  # fmt: skip
"""Parameters that may differ between families."""


def main() -> None:
    """Search and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    found = json.loads(PRIOR_FILE.read_text())
    rows = admissible(cases())
    families = typical(rows)
    for test in ("tg", "pp"):
        search = Search(Fitted(gpu_rows(rows, test), families, test), found[test])
        best = search.score()
        print(test, f"{best:.4f}", flush=True)
        for _ in range(options.rounds):
            before, best = best, search.sweep(best)
            print(test, f"{best:.4f}", flush=True)
            PRIOR_FILE.write_text(json.dumps(found, indent=1) + "\n")
            if best > before - GAIN:
                break


if __name__ == "__main__":
    main()
