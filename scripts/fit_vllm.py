"""Fits the constants of the batching law to published sweeps, per class of GPU, and writes what was held out.

    python scripts/fit_vllm.py                 # prints the table for vllm/rates.py
    python scripts/fit_vllm.py --held-out      # also fits without each model and writes tests/truth/vllm_held_out.json

Least squares on the logarithm of tokens/s with a saturating loss (the sweeps mix nightly builds and unlabelled
speculative decoding) and weak priors, so that a class with few rows stays near the others. Rows of one model on one GPU
share the weight of a few. Needs numpy and scipy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from msgspec import structs
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from accuracy_vllm import HELD_OUT, point  # noqa: E402 - beside the repository's benchmarks
from vllm_cases import SpeedCase, speed_cases  # noqa: E402

from willitrun_estimator.vllm import batching  # noqa: E402
from willitrun_estimator.vllm.batching import Terms  # noqa: E402
from willitrun_estimator.vllm.rates import Rates, gpu_class  # noqa: E402

PRIORS = {
    "bandwidth_share": (0.8, 0.25),
    "layer_s": (80e-6, 0.7),
    "collective_s": (20e-6, 1.0),
    "sequence_s": (20e-6, 1.0),
    "decode_flops_share": (0.3, 1.0),
    "prefill_flops_share": (0.4, 0.7),
    "expert_reads": (1.2, 0.3),
    "cache_reads": (1.3, 0.5),
    "link_share": (1.0, 0.7),
    "narrow_flops": (1.0, 0.5),
    "request_layer_s": (200e-6, 1.0),
}
"""Centre and spread of the logarithm of every constant."""
SCALE = 1.2
"""Errors beyond about this logarithm stop pulling."""
NOISE = 0.25
WIDEST = (0.45, 2.2)


def stacked(points: list[Terms]) -> Terms:
    """Turn rows into one value of arrays."""
    return Terms(**{name: np.array([getattr(one, name) for one in points]) for name in Terms.__struct_fields__})


def rates_of(logs: np.ndarray) -> Rates:
    """Build constants from fitted logarithms."""
    values = dict(zip(PRIORS, np.exp(logs).tolist(), strict=True))
    return Rates(**values, queue_share=0.0, low=1.0, high=1.0)


def fit(points: list[Terms], measured: np.ndarray, weights: np.ndarray) -> Rates:
    """Fit one class."""
    rows = stacked(points)
    centre = np.log([value for value, _ in PRIORS.values()])
    spread = np.array([width for _, width in PRIORS.values()])

    def residuals(logs: np.ndarray) -> np.ndarray:
        error = np.log(batching.output_tokens_per_s(rows, rates_of(logs)) / measured)
        return np.concatenate([np.sqrt(weights) * np.arctan(error / SCALE) * SCALE / NOISE, (logs - centre) / spread])

    return rates_of(least_squares(residuals, centre, max_nfev=300).x)


def weights_of(cases: list[SpeedCase]) -> np.ndarray:
    """Weigh rows so that a long sweep counts as its square root."""
    counts = Counter((one.spec.name, one.device.name) for one in cases)
    return np.array([counts[one.spec.name, one.device.name] ** -0.5 for one in cases])


def queue_share(cases: list[SpeedCase], points: list[Terms], constants: Rates) -> float:
    """Fit the share of the others' prefill that a request waits for, by the median over rows with a queue-free load."""
    shares = []
    for one, terms in zip(cases, points, strict=True):
        others = (terms.sequences - 1) * batching.request_s(terms, constants)
        queued = one.concurrency / terms.engines > terms.sequences * 1.05
        if one.ttft_s is not None and one.stated and terms.sequences >= 2 and not queued:
            own = batching.request_s(terms, constants) + batching.step_s(terms, constants)
            shares.append(min(1.0, max(0.0, (one.ttft_s - own) / others)))
    return float(np.median(shares)) if shares else 0.3


def bounds(errors: np.ndarray) -> tuple[float, float]:
    """Give the factors between which 80 % of measurements over predictions lie."""
    ratios = np.exp(-errors)
    return float(max(WIDEST[0], np.quantile(ratios, 0.1))), float(min(WIDEST[1], np.quantile(ratios, 0.9)))


def main(argv: list[str] | None = None) -> int:
    """Fit every class and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true", help="fit without each model in turn")
    options = parser.parse_args(argv)
    cases, _ = speed_cases()
    everything: list[np.ndarray] = []
    held_out: dict[str, dict[str, dict[str, float]]] = {}
    for name in sorted({gpu_class(one.device) for one in cases}):
        rows = [one for one in cases if gpu_class(one.device) == name]
        points = [point(one) for one in rows]
        measured = np.array([one.output_tokens_per_s for one in rows])
        weights = weights_of(rows)
        constants = fit(points, measured, weights)
        constants = structs.replace(constants, queue_share=queue_share(rows, points, constants))
        models = np.array([one.spec.name for one in rows])
        errors = np.zeros(len(rows))
        without: dict[str, Rates] = {}
        for model in sorted(set(models)) if options.held_out else []:
            rest = models != model
            one = fit([p for p, keep in zip(points, rest, strict=True) if keep], measured[rest], weights[rest])
            without[model] = one
            tested = stacked([p for p, keep in zip(points, rest, strict=True) if not keep])
            errors[~rest] = np.log(batching.output_tokens_per_s(tested, one) / measured[~rest])
        if not options.held_out:
            errors = np.log(batching.output_tokens_per_s(stacked(points), constants) / measured)
        stated = np.array([one.stated for one in rows])
        low, high = bounds(errors[stated])
        constants = structs.replace(constants, low=low, high=high)
        held_out[name] = {
            model: {k: float(f"{v:.4g}") for k, v in structs.asdict(one).items()}
            | {"queue_share": constants.queue_share, "low": low, "high": high}
            for model, one in without.items()
        }
        sizes = np.abs(np.expm1(errors))
        print(f"# {name}: {len(rows)} rows, {len(set(models))} models, median {np.median(sizes):.3f}, ", end="")
        print(f"p90 {np.quantile(sizes, 0.9):.3f}{' with the model left out' if options.held_out else ''}")
        print(f'    "{name}": Rates(')
        for key, value in structs.asdict(constants).items():
            print(f"        {key}={value:.3g},")
        print("    ),")
        everything.append(errors[stated])
    sizes = np.abs(np.expm1(np.concatenate(everything)))
    print(f"# all: median {np.median(sizes):.3f}, p90 {np.quantile(sizes, 0.9):.3f}")
    if options.held_out:
        HELD_OUT.write_text(json.dumps(held_out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
