"""What changed between vLLM versions, as far as a plan depends on it.

Sources: the Python sources of the released wheels 0.10.0, 0.11.0, 0.12.0 … 0.33.0 (`vllm/config/cache.py`,
`vllm/envs.py`, `vllm/v1/core/kv_cache_utils.py`, `vllm/v1/kv_cache_interface.py`, `vllm/engine/arg_utils.py`) for
every rule read there; the logged starts in `tests/truth/vllm_memory.csv` for the two measured constants.
"""

from __future__ import annotations

import re

from msgspec import Struct

from willitrun_estimator.errors import EstimatorError
from willitrun_probe.units import GIB

Version = tuple[int, int]

LATEST: Version = (0, 33)
OLDEST: Version = (0, 10)
"""Before it the first engine could still be chosen, which profiled memory by other rules."""


class Rules(Struct, frozen=True, kw_only=True):
    """The rules of one vLLM version."""

    version: Version
    gpu_memory_utilization: float
    """Default of `--gpu-memory-utilization`: 0.9, from 0.20 on 0.92."""
    subtracts_graphs: bool
    """The estimated CUDA graphs are taken off the pool (`VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS`, on from 0.20)."""
    in_flight_batches: int
    """Batches whose tokens a window may still hold: 2 with asynchronous scheduling from 0.26 on, else 1."""
    prints_capacity: bool
    """From 0.21 the log's "GPU KV cache size" is concurrency x length; before, blocks of one group x block size."""
    sampler_bytes_per_logit: float
    """Peak bytes per logit while sampling; 0.12 to 0.16 sorted every row."""


class BatchDefaults(Struct, frozen=True, kw_only=True):
    """What `vllm serve` takes for the two batch flags when they are left out."""

    max_num_batched_tokens: int
    max_num_seqs: int


def parse_version(text: str) -> Version:
    """Read `0.19.0`, `v0.11.2`, `0.20.1rc1.dev16+g1234` or `latest`.

    Raises EstimatorError for anything else, and for a version before 0.10.
    """
    if text.strip().lower() in {"latest", "nightly"}:
        return LATEST
    match = re.match(r"\s*v?(\d+)\.(\d+)", text)
    if match is None:
        raise EstimatorError(f"'{text}' is not a vLLM version", "write it like 0.19.0, or leave --engine-version out")
    version = (int(match.group(1)), int(match.group(2)))
    if version < OLDEST:
        raise EstimatorError(
            f"vLLM {name_of(version)} is older than the rules known here, which begin with {name_of(OLDEST)}",
            "upgrade vLLM (pip install --upgrade vllm)",
        )
    return version


def name_of(version: Version) -> str:
    """Write a version like `0.33`."""
    return f"{version[0]}.{version[1]}"


def rules(version: Version = LATEST) -> Rules:
    """Give the rules of a version; one newer than `LATEST` is planned like `LATEST`."""
    return Rules(
        version=version,
        gpu_memory_utilization=0.92 if version >= (0, 20) else 0.9,
        subtracts_graphs=version >= (0, 20),
        in_flight_batches=2 if version >= (0, 26) else 1,
        prints_capacity=version >= (0, 21),
        sampler_bytes_per_logit=38.7 if (0, 12) <= version <= (0, 16) else 14.1,
    )


def batch_defaults(
    version: Version, *, memory_total_bytes: int, name: str, compute_capability: str | None
) -> BatchDefaults:
    """Give the defaults of the server for a GPU (`EngineArgs.get_batch_defaults`)."""
    if memory_total_bytes >= 160 * GIB and version >= (0, 28):
        return BatchDefaults(max_num_batched_tokens=16384, max_num_seqs=1024)
    small = "a100" in name.lower() or (compute_capability == "12.1" and version >= (0, 33))
    if memory_total_bytes >= 70 * GIB and not small:
        return BatchDefaults(max_num_batched_tokens=8192, max_num_seqs=1024)
    return BatchDefaults(max_num_batched_tokens=2048, max_num_seqs=256)
