"""What ollama chooses when nobody tells it: context, slots, cache type, flash attention, micro-batch.

Read from https://github.com/ollama/ollama, v0.33: `envconfig/config.go` (OLLAMA_CONTEXT_LENGTH 0, OLLAMA_NUM_PARALLEL
1, OLLAMA_KV_CACHE_TYPE empty, which is f16), `api/types.go` (`DefaultOptions`: num_batch 512), `server/routes.go` and
docs/context-length.mdx: an unset context follows from the memory of the GPUs, 4096 tokens below 24 GiB, 32768 below
48 GiB, 262144 from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.placement import Settings

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.device import Devices

GIB = 1 << 30

CONTEXT_BY_MEMORY: tuple[tuple[int, int], ...] = ((47 * GIB, 262_144), (23 * GIB, 32_768), (0, 4096))
"""Total memory of the GPUs from which a default context holds: 48 and 24 GiB with a GiB of slack (server/routes.go)."""

NUM_PARALLEL = 1
"""OLLAMA_NUM_PARALLEL: one request at a time per model unless set (envconfig/config.go)."""

KV_TYPES = ("f16", "q8_0", "q4_0")
"""What OLLAMA_KV_CACHE_TYPE takes (docs/faq.mdx, "How can I set the quantization type for the K/V cache?")."""


def default_context(spec: ModelSpec, devices: Devices) -> int:
    """Give the context that ollama picks for a machine: by the total memory of its GPUs, at most the model's."""
    total = sum(gpu.memory_total_bytes for gpu in devices.gpus)
    tokens = next(tokens for least, tokens in CONTEXT_BY_MEMORY if total >= least)
    return min(tokens, spec.max_context_tokens)


def ollama(
    spec: ModelSpec, devices: Devices, *, context_tokens: int | None = None, parallel: int = NUM_PARALLEL
) -> Settings:
    """Give the settings under which ollama runs a model.

    `context_tokens` is `num_ctx` (or OLLAMA_CONTEXT_LENGTH) per request: the cache holds it once per slot. The cache
    is f16 unless OLLAMA_KV_CACHE_TYPE says otherwise; flash attention is on where the model and the GPU allow it.
    """
    each = default_context(spec, devices) if context_tokens is None else context_tokens
    return Settings(
        context_tokens=each * parallel,
        kv_type_k="f16",
        kv_type_v="f16",
        flash_attention=True,
        ubatch=512,
        batch=512,
        parallel=parallel,
        kv_unified=False,
    )
