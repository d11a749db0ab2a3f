"""Speculative decoding with a model's own next-token layers: what it takes. What it gains is not predicted.

A next-token (MTP) layer is one more layer of the kind the model ends with (attention and the widest feed-forward), and
a projection of two hidden states to one; tables and head are the model's (DeepSeek-V3 Technical Report, section 2.2,
https://arxiv.org/abs/2412.19437). The parameters counted this way are those stored beyond the trunk in the checkpoints
of Qwen3.5, Qwen3.6 and GLM-5 to 0.1 %, and of DeepSeek-V3 less its copies of the two tables.
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Attention, Mla, ModelSpec, NoFfn
from willitrun_estimator.vllm.cache import element_bytes, kv_heads_per_rank
from willitrun_estimator.vllm.formats import Format
from willitrun_estimator.vllm.weights import layer_bytes
from willitrun_probe.units import format_bytes

FLAG = """--speculative-config '{"method": "mtp", "num_speculative_tokens": 1}'"""
"""https://docs.vllm.ai/projects/recipes/en/latest/Qwen/Qwen3.5.html."""


class Drafting(Struct, frozen=True, kw_only=True):
    """What the next-token layers take on one rank."""

    layers: int
    weights_bytes: int
    cache_bytes_per_token: int


def drafting(spec: ModelSpec, checkpoint: Format, *, tensor_parallel: int, kv_type: str) -> Drafting | None:
    """Weigh a model's next-token layers; None for a model that names none, or has no attention to build one of."""
    attending = [
        at for at, layer in enumerate(spec.layers) if any(isinstance(m, Attention | Mla) for m in layer.mixers)
    ]
    layers = spec.mtp_layers or spec.checkpoint_mtp_layers
    if not layers or not attending:
        return None
    last = attending[-1]
    kept = layer_bytes(spec, last, checkpoint, tensor_parallel=tensor_parallel)
    if isinstance(spec.layers[last].ffn, NoFfn):
        feeding = [at for at, layer in enumerate(spec.layers) if not isinstance(layer.ffn, NoFfn)]
        kept += layer_bytes(spec, feeding[-1], checkpoint, tensor_parallel=tensor_parallel) if feeding else 0
    kept += 2 * spec.hidden_size**2 * checkpoint.other_bytes
    width = element_bytes(kv_type)
    cached = 0
    for mixer in spec.layers[last].mixers:
        if isinstance(mixer, Mla):
            cached += (mixer.kv_rank + mixer.rope_dim) * width
        elif isinstance(mixer, Attention):
            heads = kv_heads_per_rank(mixer.kv_heads, tensor_parallel)
            cached += heads * (mixer.key_dim + mixer.value_dim) * width
    return Drafting(
        layers=layers,
        weights_bytes=layers * kept,
        cache_bytes_per_token=layers * cached,
    )


def drafting_said(spec: ModelSpec, checkpoint: Format, *, tensor_parallel: int, kv_type: str) -> str | None:
    """Say that a model can draft with its own layers and what that takes; None where it cannot."""
    found = drafting(spec, checkpoint, tensor_parallel=tensor_parallel, kv_type=kv_type)
    if found is None:
        return None
    layers = "a next-token layer" if found.layers == 1 else f"{found.layers} next-token layers"
    return (
        f"{spec.title} names {layers}; where the checkpoint holds it, {FLAG} drafts with it. That takes "
        f"{format_bytes(found.weights_bytes)} of weights and {format_bytes(found.cache_bytes_per_token)} of cache a "
        "token more on each GPU; it is not in the plan, and what it gains depends on the text and is not predicted."
    )
