"""Holds vLLM predictions against logged starts and published sweeps: weights, cache, pool, speed.

    python benchmarks/accuracy_vllm.py [--memory FILE.csv] [--speed FILE.csv] [--worst N] [--json]

Speeds are predicted with constants that were fitted without the model in question (`scripts/fit_vllm.py --held-out`
writes them to `tests/truth/vllm_held_out.json`), except for models the fit has never seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import vllm_cases
from vllm_cases import MemoryCase, SpeedCase

from willitrun_estimator.vllm import batching, cache, memory
from willitrun_estimator.vllm.formats import expert_tile
from willitrun_estimator.vllm.parallel import Split
from willitrun_estimator.vllm.rates import RATES, Rates, gpu_class
from willitrun_estimator.vllm.settings import stage_budgets
from willitrun_estimator.vllm.versions import BatchDefaults, batch_defaults, rules
from willitrun_estimator.vllm.weights import StageWeights, stage_weights
from willitrun_probe.units import GIB

HELD_OUT = vllm_cases.TRUTH / "vllm_held_out.json"


def defaults(case: MemoryCase | SpeedCase) -> BatchDefaults:
    """Give the batch flags that the version takes by itself on the case's GPU."""
    return batch_defaults(
        case.version,
        memory_total_bytes=round(case.total_gib * GIB),
        name=case.device.name,
        compute_capability=case.device.compute_capability,
    )


def weights_of(case: MemoryCase | SpeedCase, *, towers: bool) -> tuple[StageWeights, ...]:
    """Weigh the stages of a case."""
    return stage_weights(
        case.spec,
        case.checkpoint,
        tensor_parallel=case.tensor_parallel,
        pipeline_parallel=case.pipeline_parallel,
        towers=towers,
        expert_tile=expert_tile(case.version, case.device.family),
    )


def pools(
    case: MemoryCase | SpeedCase, *, utilization: float, sequences: int, tokens: int, eager: bool, towers: bool
) -> tuple[int, ...]:
    """Predict the pool of every stage."""
    budgets = stage_budgets(
        case.spec,
        case.checkpoint,
        case.device,
        weights_of(case, towers=towers),
        Split(
            tensor_parallel=case.tensor_parallel,
            pipeline_parallel=case.pipeline_parallel,
            data_parallel=1,
            gpus=(0,),
        ),
        rules(case.version),
        total_bytes=round(case.total_gib * GIB),
        utilization=utilization,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        enforce_eager=eager,
        towers=towers,
    )
    return tuple(one.pool_bytes for one in budgets)


def weight_error(case: MemoryCase) -> float | None:
    """Relative error of the heaviest stage's weights."""
    if case.weights_gib is None:
        return None
    predicted = max(stage.rank.total_bytes for stage in weights_of(case, towers=case.towers)) / GIB
    if case.device.backend == "rocm":
        predicted += memory.ROCM_LOAD_BYTES / GIB
    return predicted / case.weights_gib - 1


def pool_error(case: MemoryCase) -> float | None:
    """Error of the pool in GiB, of the stage that logged (the first); None where the utilization is not known."""
    if case.pool_gib is None or case.pool_gib < 0 or case.utilization is None:
        return None
    standard = defaults(case)
    predicted = pools(
        case,
        utilization=case.utilization,
        sequences=case.max_num_seqs or standard.max_num_seqs,
        tokens=case.max_num_batched_tokens or standard.max_num_batched_tokens,
        eager=case.eager,
        towers=case.towers,
    )
    return predicted[0] / GIB - case.pool_gib


def cache_errors(case: MemoryCase) -> tuple[float | None, float | None]:
    """Relative errors of tokens and concurrency, from the logged pool."""
    if case.pool_gib is None or case.pool_gib < 0 or case.pipeline_parallel > 1:
        return None, None
    ruled = rules(case.version)
    layout = cache.cache_layout(case.spec, ruled, tensor_parallel=case.tensor_parallel, kv_type=case.kv_type)
    length = case.context_tokens
    per_request = cache.blocks_per_request(
        layout,
        ruled,
        context_tokens=length or 8192,
        max_num_batched_tokens=case.max_num_batched_tokens or defaults(case).max_num_batched_tokens,
        prefix_caching=bool(case.prefix_caching),
    )
    blocks = cache.pool_blocks((layout,), (round(case.pool_gib * GIB),))
    held = cache.concurrency(blocks, per_request)
    tokens = cache.cache_tokens(layout, ruled, blocks, per_request=per_request, context_tokens=length or 8192)
    known = length is not None or not ruled.prints_capacity
    return (
        tokens / case.tokens - 1 if case.tokens and known else None,
        held / case.concurrency - 1 if case.concurrency and length else None,
    )


def drafted(case: MemoryCase) -> bool:
    """Tell whether a draft model shares the cache: its layers are not in the row."""
    return case.model.startswith("AEON") or any(word in case.notes for word in ("DFlash", "MTP", "draft", "speculat"))


def point(case: SpeedCase) -> batching.Terms:
    """Reduce a row to the numbers of the batching law, with the running requests capped by the pool."""
    standard, ruled = defaults(case), rules(case.version)
    sequences = case.max_num_seqs or standard.max_num_seqs
    stages = weights_of(case, towers=True)
    predicted = pools(
        case,
        utilization=ruled.gpu_memory_utilization,
        sequences=sequences,
        tokens=standard.max_num_batched_tokens,
        eager=False,
        towers=True,
    )
    layouts = tuple(
        cache.cache_layout(
            case.spec,
            ruled,
            tensor_parallel=case.tensor_parallel,
            kv_type=case.kv_type,
            stage=(stage.first_layer, stage.last_layer),
        )
        for stage in stages
    )
    length = int(case.input_tokens + case.output_tokens / 2)
    per_request = max(
        cache.blocks_per_request(
            layout,
            ruled,
            context_tokens=length,
            max_num_batched_tokens=min(standard.max_num_batched_tokens, 2048),
            prefix_caching=False,
        )
        for layout in layouts
    )
    held = cache.concurrency(cache.pool_blocks(layouts, predicted), per_request)
    shape = batching.step_shape(
        case.spec,
        stages,
        case.checkpoint,
        tensor_parallel=case.tensor_parallel,
        max_num_batched_tokens=standard.max_num_batched_tokens,
    )
    return batching.terms(
        shape,
        case.device,
        concurrency=case.concurrency,
        running_limit=max(1.0, min(float(sequences), held)),
        cache_bytes_per_sequence=batching.cache_bytes(
            case.spec,
            tensor_parallel=case.tensor_parallel,
            kv_type=case.kv_type,
            context_tokens=case.input_tokens + case.output_tokens / 2,
        ),
        input_tokens=case.input_tokens,
        output_tokens=case.output_tokens,
        data_parallel=case.data_parallel,
        prefill_counted=case.prefill_counted,
    )


def constants_of(case: SpeedCase, held_out: dict[str, dict[str, dict[str, float]]]) -> Rates:
    """Give the constants fitted without the case's model, or the shipped ones for a model the fit never saw."""
    found = held_out.get(gpu_class(case.device), {}).get(case.spec.name)
    return Rates(**found) if found else RATES[gpu_class(case.device)]


def quantile(values: list[float], share: float) -> float:
    """Give the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(values: list[float]) -> dict[str, float]:
    """Give count, median, 90th percentile and worst of absolute values."""
    sizes = [abs(value) for value in values]
    return {
        "n": len(sizes),
        "median": statistics.median(sizes),
        "p90": quantile(sizes, 0.9),
        "worst": max(sizes),
    }


def measure(memory_file: Path | None, speed_file: Path | None) -> tuple[dict[str, Any], list[tuple[float, str]]]:
    """Hold every prediction against the rows; the second value lists rows with their error, for `--worst`."""
    starts, starts_left = vllm_cases.memory_cases(memory_file)
    sweeps, sweeps_left = vllm_cases.speed_cases(speed_file)
    worst: list[tuple[float, str]] = []
    weights, tokens, held, pool, unified = [], [], [], [], []
    for case in starts:
        label = f"{case.id} {case.spec.name} {case.checkpoint.name} tp {case.tensor_parallel} {case.device.name}"
        error = weight_error(case)
        if error is not None:
            weights.append(error)
            worst.append((abs(error), f"weights {error:+.2%} {label}"))
        plain = not drafted(case) and "rounded" not in case.notes
        for kind, values, value in zip(("tokens", "held"), (tokens, held), cache_errors(case), strict=True):
            if value is not None and plain:
                values.append(value)
                worst.append((abs(value), f"{kind} {value:+.3%} {label}"))
        gap = pool_error(case)
        if gap is not None:
            (unified if case.device.unified else pool).append(gap)
            worst.append((abs(gap), f"pool {gap:+.2f} GiB {label}"))
    held_out = json.loads(HELD_OUT.read_text()) if HELD_OUT.exists() else {}
    speed, stated, inside = [], [], 0
    for one in sweeps:
        constants = constants_of(one, held_out)
        predicted = batching.output_tokens_per_s(point(one), constants)
        error = predicted / one.output_tokens_per_s - 1
        speed.append(error)
        if one.stated:
            stated.append(error)
            inside += predicted * constants.low <= one.output_tokens_per_s <= predicted * constants.high
        worst.append((abs(error), f"speed {error:+.0%} {one.id} {one.spec.name} {one.device.name}"))
    result: dict[str, Any] = {"left_out": {"starts": starts_left, "sweeps": sweeps_left}}
    # Rows whose inputs are not known stay out: draft models beside the cache, rounded pools, no utilization.
    named = {
        "weights": weights,
        "cache_tokens": tokens,
        "concurrency": held,
        "pool_gib": pool,
        "pool_gib_unified": unified,
        "pool_gib_all": [*pool, *unified],
        "speed": stated,
        "speed_with_bursts": speed,
    }
    result |= {name: summary(values) for name, values in named.items() if values}
    if stated:
        result["interval_coverage"] = inside / len(stated)
    return result, worst


def main(argv: list[str] | None = None) -> int:
    """Print the errors, one quantity a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=Path, help="logged starts (default: tests/truth/vllm_memory.csv)")
    parser.add_argument("--speed", type=Path, help="serving sweeps (default: tests/truth/vllm_speed.csv)")
    parser.add_argument("--worst", type=int, default=0, help="also list the N worst rows of each quantity")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    result, worst = measure(options.memory, options.speed)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    for name, value in result.items():
        if isinstance(value, dict) and "median" in value:
            shown = "  ".join(f"{key} {value[key]:.4g}" for key in ("median", "p90", "worst"))
            print(f"{name:18} n {value['n']:5}  {shown}")
        else:
            print(f"{name:18} {value}")
    for kind in ("weights", "tokens", "held", "pool", "speed"):
        rows = sorted((row for row in worst if row[1].startswith(kind)), reverse=True)
        for _, text in rows[: options.worst]:
            print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
