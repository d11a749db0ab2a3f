"""Weights of one model in one quantization, summed per block once, so that a placement costs a few additions."""

from __future__ import annotations

from msgspec import Struct
from willitrun_catalog.model import ModelSpec


class LayerWeights(Struct, frozen=True, kw_only=True):
    """One block's weights, split by where llama.cpp can put them and by what a token touches."""

    resident_bytes: int
    """Everything but routed experts: attention, norms, router, dense and shared feed-forward."""
    expert_bytes: int
    """All routed experts of the block; 0 in a dense block."""
    expert_active_bytes: int
    """The share of `expert_bytes` that one token reads (`experts_used` of `experts`)."""
    largest_tensor_bytes: int
    """Largest single resident matrix (what op offload copies when the block stays on the host)."""
    largest_expert_tensor_bytes: int
    """Largest of the three expert tensors, all experts together."""


class WeightProfile(Struct, frozen=True, kw_only=True):
    """Byte sums of a model in a quantization. `cumulative_*[i]` is the sum over blocks 0..i-1."""

    spec: ModelSpec
    quant: str
    layers: tuple[LayerWeights, ...]
    cumulative_resident_bytes: tuple[int, ...]
    cumulative_expert_bytes: tuple[int, ...]
    cumulative_expert_active_bytes: tuple[int, ...]
    embedding_bytes: int
    """The token table: host memory, always; one row of it is read per token."""
    output_bytes: int
    """The head as loaded beside the last blocks; the table's second copy where embeddings are tied."""
    host_extra_bytes: int
    """Other tensors that stay in host memory (per-layer embeddings)."""
    tensor_bytes: int
    """Sum over the file's tensors, next-token layers included, a tied table once."""
    unloaded_bytes: int
    """Listed in the file and not loaded (next-token layers)."""
    file_bytes: int
    """Tensors plus header and tokenizer metadata (estimated for a catalog model)."""
    params: int
    """Weights of the text model without next-token layers, a tied table once."""
    active_params: int
    """Weights one token touches: `params` without unused experts, the embedding row counted as the whole table."""
    bits_per_weight: float
    matmul_type: str
    """The type most of the matrix bytes have: decides kernels and speed on a CPU."""
