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
    "collective_s": (20e-6, 0.5),
    "sequence_s": (20e-6, 1.0),
    "decode_flops_share": (0.3, 1.0),
    "prefill_flops_share": (0.4, 0.7),
    "expert_decode_flops": (0.5, 0.7),
    "expert_prefill_flops": (0.5, 0.7),
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
BETWEEN_CLASSES = 0.3
"""How far, in logarithms, the constants of one class of GPU may lie from those of all."""
OWN = ("collective_s",)
"""What links decide, which differ more than the chips do: every class keeps the prior of all-reduces over NVLink."""
ENOUGH_ROWS = 30
"""A class with fewer takes its interval from the errors of all classes."""


class Data:
    """The rows as arrays."""

    def __init__(self, cases: list[SpeedCase]) -> None:
        """Reduce every row to numbers."""
        self.rows = stacked([point(one) for one in cases])
        self.measured = np.array([one.output_tokens_per_s for one in cases])
        self.classes = np.array([gpu_class(one.device) for one in cases])
        self.models = np.array([one.spec.name for one in cases])
        self.gpus = np.array([one.device.name for one in cases])
        self.stated = np.array([one.stated for one in cases])


def stacked(points: list[Terms]) -> Terms:
    """Turn rows into one value of arrays."""
    return Terms(**{name: np.array([getattr(one, name) for one in points]) for name in Terms.__struct_fields__})


def chosen(rows: Terms, mask: np.ndarray) -> Terms:
    """Keep the rows of a mask."""
    return Terms(**{name: getattr(rows, name)[mask] for name in Terms.__struct_fields__})


def rates_of(logs: np.ndarray) -> Rates:
    """Build constants from fitted logarithms."""
    values = dict(zip(PRIORS, np.exp(logs).tolist(), strict=True))
    return Rates(**values, queue_share=0.0, low=1.0, high=1.0)


def fit(rows: Terms, measured: np.ndarray, weights: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Fit the logarithms of the constants around a prior."""

    def residuals(logs: np.ndarray) -> np.ndarray:
        error = np.log(batching.output_tokens_per_s(rows, rates_of(logs)) / measured)
        return np.concatenate([np.sqrt(weights) * np.arctan(error / SCALE) * SCALE / NOISE, (logs - centre) / spread])

    return least_squares(residuals, centre, max_nfev=300).x


def fit_classes(data: Data, used: np.ndarray) -> dict[str, Rates]:
    """Fit every class on the rows of a mask, around what all of them together say.

    The first fit has one set of constants for all GPUs; it is the prior of every class, so a class with few rows, or
    with none, stays near the others.
    """
    centre = np.log([value for value, _ in PRIORS.values()])
    spread = np.array([width for _, width in PRIORS.values()])
    shared = fit(chosen(data.rows, used), data.measured[used], weights_of(data, used), centre, spread)
    own = np.array([name in OWN for name in PRIORS])
    middle, around = np.where(own, centre, shared), np.where(own, spread, np.minimum(spread, BETWEEN_CLASSES))
    found = {}
    for name in sorted(set(data.classes)):
        mine = used & (data.classes == name)
        logs = middle
        if mine.any():
            logs = fit(chosen(data.rows, mine), data.measured[mine], weights_of(data, mine), middle, around)
        found[name] = rates_of(logs)
    return found


def weights_of(data: Data, used: np.ndarray) -> np.ndarray:
    """Weigh rows so that a long sweep counts as its square root."""
    names = [f"{model} {gpu}" for model, gpu in zip(data.models[used], data.gpus[used], strict=True)]
    counts = Counter(names)
    return np.array([counts[name] ** -0.5 for name in names])


def queue_share(cases: list[SpeedCase], constants: Rates) -> float:
    """Fit the share of the others' prefill that a request waits for, by the median over rows with a queue-free load."""
    shares = []
    for one in cases:
        terms = point(one)
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


def left_out(data: Data, keys: np.ndarray) -> tuple[np.ndarray, dict[str, dict[str, Rates]]]:
    """Predict every row without the rows of its key; give the logarithmic errors and the constants, by key."""
    errors = np.zeros(len(data.measured))
    without = {}
    for key in sorted(set(keys)):
        test = keys == key
        without[key] = fit_classes(data, ~test)
        for name in sorted(set(data.classes[test])):
            mine = test & (data.classes == name)
            predicted = batching.output_tokens_per_s(chosen(data.rows, mine), without[key][name])
            errors[mine] = np.log(predicted / data.measured[mine])
    return errors, without


def said(errors: np.ndarray) -> str:
    """Put median and 90th percentile of relative errors into words."""
    sizes = np.abs(np.expm1(errors))
    return f"{len(sizes)} rows, median {np.median(sizes):.3f}, p90 {np.quantile(sizes, 0.9):.3f}"


def main(argv: list[str] | None = None) -> int:
    """Fit every class and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true", help="fit without each model in turn, and each GPU in turn")
    options = parser.parse_args(argv)
    cases, _ = speed_cases()
    data = Data(cases)
    everything = fit_classes(data, np.ones(len(cases), bool))
    errors, without = np.zeros(len(cases)), {}
    for name, constants in everything.items():
        mine = data.classes == name
        errors[mine] = np.log(batching.output_tokens_per_s(chosen(data.rows, mine), constants) / data.measured[mine])
    if options.held_out:
        errors, without = left_out(data, data.models)
    held_out: dict[str, dict[str, dict[str, float]]] = {}
    for name, fitted in everything.items():
        mine = data.classes == name
        counted = mine & data.stated
        low, high = bounds(errors[counted if counted.sum() >= ENOUGH_ROWS else data.stated])
        rows = [one for one, kept in zip(cases, mine, strict=True) if kept]
        constants = structs.replace(fitted, queue_share=queue_share(rows, fitted), low=low, high=high)
        print(f"# {name}: {said(errors[counted])}{' with the model left out' if options.held_out else ''}")
        print(f'    "{name}": Rates(')
        for key, value in structs.asdict(constants).items():
            print(f"        {key}={value:.3g},")
        print("    ),")
        held_out[name] = {
            model: {k: float(f"{v:.4g}") for k, v in structs.asdict(without[model][name]).items()}
            | {"queue_share": constants.queue_share, "low": low, "high": high}
            for model in sorted(set(data.models[mine]))
            if model in without
        }
    print(f"# all: {said(errors[data.stated])}")
    if options.held_out:
        HELD_OUT.write_text(json.dumps(held_out, indent=1) + "\n")
        by_gpu, _ = left_out(data, data.gpus)
        print(f"# all, with the GPU left out: {said(by_gpu[data.stated])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
