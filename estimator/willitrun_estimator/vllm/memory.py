"""The memory budget of one vLLM rank: weights, activation peak, libraries, CUDA graphs, and the KV pool that is left.

    requested = ceil(total x utilization)
    pool      = requested - weights - libraries - activation peak - CUDA-graph estimate (from 0.20 on)

`total` is what CUDA reports, not what is free; a start fails where less than `requested` is free. The CUDA context
lies outside the budget. Sources: `Worker.determine_available_memory` and `request_memory` of the released wheels; the
constants are fitted on the logged starts of `tests/truth/vllm_memory.csv` (55 of them name every term).
"""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from willitrun_catalog.model import Dense, ModelSpec, Moe
from willitrun_estimator.device import Device
from willitrun_estimator.vllm.formats import Format
from willitrun_estimator.vllm.versions import Rules
from willitrun_probe.units import GIB

CONTEXT_BYTES = round(0.51 * GIB)
"""The CUDA context, outside the budget: 78.68 of 79.19 GiB free before anything was loaded (H100)."""
ROCM_LOAD_BYTES = round(0.315 * GIB)
"""What a load on ROCm logs beyond the tensors (Llama 3.1 8B on MI300X: 15.30 against 14.99 GiB)."""
GRAPH_BYTES = round(0.57 * GIB)
GRAPH_BYTES_PER_LAYER = round(0.0126 * GIB)
"""CUDA graphs on H100 at the default capture sizes: 0.57 GiB and 0.0126 GiB a layer (median residual 0.07 GiB)."""
GRAPHS_DEFAULT = 512
"""Largest captured batch by default; graphs of fewer sequences are fewer."""
SAFETY_BYTES = GIB // 2
"""What a plan that must start keeps beyond the estimate, on every GPU."""
SAFETY_WIDE_BYTES = 3 * GIB // 2
"""The same with tensor parallelism, CUDA graphs that are subtracted, or a vision tower."""
SAFETY_UNIFIED_BYTES = 3 * GIB
"""The same on unified memory. There vLLM takes free memory from the operating system (`MemorySnapshot.measure` in
`vllm/utils/mem_utils.py`; https://github.com/vllm-project/vllm/pull/35356), so what the host allocates between two
looks, the compiler's processes above all, counts as the engine's: two starts of one model with the same flags on one
GB10 found 40.61 and 44.03 GiB for the cache."""

_CUDA_TOTAL_GIB: dict[str, tuple[float, float]] = {
    "H100": (79.65, 79.19),
    "A100": (80.0, 79.15),
    "RTX 3090": (24.0, 23.58),
    "RTX 4090": (23.99, 23.55),
    "RTX 5090": (31.84, 31.37),
    "A40": (44.99, 44.4),
}
"""Total memory by the driver library and as CUDA reports it: `nvidia-smi` against vLLM's start logs."""
_SAME_CARD = 0.01
_SAME_FIGURE = 0.0025
"""A total this close to CUDA's own figure came from CUDA, or from a log."""
_STACKED_SHARE = 0.994
_GDDR_SHARE = 0.983
"""What CUDA reports of other cards, the lowest share of those above: H100 for stacked memory, RTX 3090 for GDDR."""
_STACKED_FROM_BYTES = 60 * GIB


class ActivationShape(Struct, frozen=True, kw_only=True):
    """What of a model decides the peak of the profiling run."""

    hidden: int
    vocab: int
    dense_width: int
    """Widest dense or shared feed-forward, up and gate together with what down takes: 3 widths, 2 if not gated."""
    experts_used: int
    expert_width: int


class Budget(Struct, frozen=True, kw_only=True):
    """The terms of one rank, in bytes."""

    total_bytes: int
    requested_bytes: int
    weights_bytes: int
    libraries_bytes: int
    activation_bytes: int
    graphs_bytes: int
    """The CUDA graphs that will be captured; part of the budget only where `graphs_in_budget`."""
    graphs_in_budget: bool
    context_bytes: int
    pool_bytes: int
    """May be negative: then nothing starts."""

    @property
    def used_bytes(self) -> int:
        """Memory the process takes from the device, context and graphs included."""
        outside = 0 if self.graphs_in_budget else self.graphs_bytes
        return self.requested_bytes + outside + self.context_bytes


def cuda_total_bytes(device: Device) -> int:
    """Give the total memory as the engine will see it, from the total the driver library reports.

    Unified memory and AMD report the same figure to both.
    """
    total = device.memory_total_bytes
    if device.backend != "cuda" or device.unified:
        return total
    for name, (driver, cuda) in _CUDA_TOTAL_GIB.items():
        if name in device.name and abs(total - cuda * GIB) <= _SAME_FIGURE * total:
            return total
        if name in device.name and abs(total - driver * GIB) <= _SAME_CARD * total:
            return int(cuda * GIB)
    return int(total * (_STACKED_SHARE if total >= _STACKED_FROM_BYTES else _GDDR_SHARE))


def activation_shape(spec: ModelSpec) -> ActivationShape:
    """Reduce a model to what the activation formula needs."""
    width = used = expert = 0
    for layer in set(spec.layers):
        ffn = layer.ffn
        if isinstance(ffn, Dense):
            width = max(width, (3 if ffn.gated else 2) * ffn.width)
        elif isinstance(ffn, Moe):
            width = max(width, (3 if ffn.gated else 2) * ffn.shared_width)
            used, expert = max(used, ffn.experts_used), max(expert, ffn.width)
    return ActivationShape(
        hidden=spec.hidden_size, vocab=spec.vocab_size, dense_width=width, experts_used=used, expert_width=expert
    )


def activation_bytes(
    spec: ModelSpec,
    checkpoint: Format,
    rules: Rules,
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    tensor_parallel: int = 1,
    has_head: bool = True,
    towers: bool = True,
) -> int:
    """Estimate the peak of the profiling run: a full batch through a layer, or sampling, whichever is larger.

    Fitted on 55 starts (H100, 0.19): `max(ffn, logits) + experts + encoder`. Logits are gathered on every rank, so
    tensor parallelism does not shrink them; a stage without the head has none. Formats with 8-bit activations hold
    the gated product in one byte. The MXFP4 kernels keep no expert workspace beside the logits (gpt-oss).
    """
    shape = activation_shape(spec)
    tokens, rows = max_num_batched_tokens, min(max_num_seqs, max_num_batched_tokens)
    width = shape.dense_width * (2.5 / 3 if checkpoint.activation_bits == 8 else 1)  # noqa: PLR2004
    ffn = checkpoint.other_bytes * tokens * (width / tensor_parallel + 4.2 * shape.hidden)
    logits = 4 * tokens * shape.hidden + (rules.sampler_bytes_per_logit * rows * shape.vocab if has_head else 0)
    experts = 0.0
    if shape.experts_used:
        width = shape.expert_width / tensor_parallel
        experts = 2 * tokens * shape.experts_used * (max(2 * width, shape.hidden) + width)
    peak = max(ffn, logits, experts) if checkpoint.pads_experts else max(ffn, logits) + experts
    return round(peak) + (encoder_bytes(tokens, spec.hidden_size) if towers and spec.non_text_params else 0)


def encoder_bytes(max_num_batched_tokens: int, hidden: int) -> int:
    """Estimate what profiling the vision encoder adds: its token budget is `max_num_batched_tokens`.

    0.2 to 0.3 GiB up to 8192 tokens (Gemma 3, Mistral 3.1, Llama 4); beyond that about 110 bytes a token and hidden
    unit (two models on GB10 at 32768 and 65536 tokens, within 1.5 GiB).
    """
    return GIB // 4 + 110 * hidden * max(0, max_num_batched_tokens - 8192)


def libraries_bytes(
    rules: Rules, *, backend: str, family: str, tensor_parallel: int, pipeline_parallel: int, fast_links: bool
) -> int:
    """Estimate what NCCL, custom all-reduce and cuBLAS hold outside the tensor allocator ("non-torch" in the log).

    From 0.17 on a Hopper or later GPU with fast links keeps all-reduce workspaces of about 1.8 GiB.
    """
    if backend == "rocm":
        return round(0.66 * GIB)
    if tensor_parallel > 1:
        if rules.version >= (0, 17) and fast_links and family in {"hopper", "blackwell-dc"}:
            return round(2.1 * GIB)
        return round((0.55 if rules.version >= (0, 12) else 0.13) * GIB)
    if pipeline_parallel > 1:
        return round(0.07 * GIB)
    if family in {"ampere", "a100"}:
        return round(0.1 * GIB)
    return round((0.25 if rules.version >= (0, 18) else 0.13) * GIB)


def graphs_bytes(*, layers: int, max_num_seqs: int, enforce_eager: bool) -> int:
    """Estimate the CUDA-graph pool; fewer captured sizes take less."""
    if enforce_eager:
        return 0
    captured = capture_count(max_num_seqs) / capture_count(GRAPHS_DEFAULT)
    return round((GRAPH_BYTES + GRAPH_BYTES_PER_LAYER * layers) * (0.5 + 0.5 * captured))


def capture_sizes(max_num_seqs: int, *, limit: int = GRAPHS_DEFAULT) -> tuple[int, ...]:
    """List the batch sizes that get a CUDA graph: 1, 2, 4, every 8 to 256, every 16 above, up to min(2 S, limit)."""
    largest = min(2 * max_num_seqs, limit)
    return tuple(size for size in (1, 2, 4, *range(8, 256, 8), *range(256, limit + 1, 16)) if size <= largest)


def capture_count(max_num_seqs: int) -> int:
    """Count the captured sizes."""
    return len(capture_sizes(max_num_seqs))


def budget(
    *,
    total_bytes: int,
    utilization: float,
    weights_bytes: int,
    libraries: int,
    activation: int,
    graphs: int,
    rules: Rules,
) -> Budget:
    """Add the terms of one rank up."""
    requested = ceil(total_bytes * utilization)
    counted = graphs if rules.subtracts_graphs else 0
    return Budget(
        total_bytes=total_bytes,
        requested_bytes=requested,
        weights_bytes=weights_bytes,
        libraries_bytes=libraries,
        activation_bytes=activation,
        graphs_bytes=graphs,
        graphs_in_budget=rules.subtracts_graphs,
        context_bytes=CONTEXT_BYTES,
        pool_bytes=requested - weights_bytes - libraries - activation - counted,
    )
