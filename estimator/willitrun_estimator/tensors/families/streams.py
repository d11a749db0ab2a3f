"""Models with several residual streams (hyper-connections): DeepSeek V4, GLM 5.3 Flash."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Layer, Mla, ModelSpec, Moe, Recurrent
from willitrun_estimator.tensors import mixers
from willitrun_estimator.tensors.family import Family, expert_type, projections
from willitrun_estimator.tensors.feed_forward import feed_forward
from willitrun_estimator.tensors.part import Part, bare, matrix, norm

SPARSE_RATIO, HEAVY_RATIO = 4, 128
"""Tokens per compressed cache row of DeepSeek V4's two kinds of compressed attention."""


def _connections(spec: ModelSpec) -> Iterator[Part]:
    streams = dict(spec.sizes)["streams"]
    mixed = (2 + streams) * streams
    for place in ("attn", "ffn"):
        yield Part(f"hc_{place}_fn.weight", (streams * spec.hidden_size, mixed), "norm", "F32")
        yield norm(f"hc_{place}_base", mixed)
        yield norm(f"hc_{place}_scale", 3)


def _compressor(prefix: str, hidden: int, width: int, ratio: int, *, normed: int) -> Iterator[Part]:
    yield matrix(f"{prefix}_kv", hidden, width)
    yield matrix(f"{prefix}_gate", hidden, width)
    yield Part(f"{prefix}_ape.weight", (width, ratio), "norm", "F32")
    yield norm(f"{prefix}_norm", normed)


def _deepseek4(spec: ModelSpec, layer: Layer, index: int) -> Iterator[Part]:
    hidden, sizes, mixer = spec.hidden_size, dict(spec.sizes), mixers.only_attention(layer)
    yield norm("attn_norm", hidden)
    yield norm("ffn_norm", hidden)
    yield Part("attn_sinks.weight", (mixer.heads,), "norm")
    yield matrix("attn_q_a", hidden, sizes["q_rank"])
    yield norm("attn_q_a_norm", sizes["q_rank"])
    yield matrix("attn_q_b", sizes["q_rank"], mixer.heads * mixer.key_dim)
    yield matrix("attn_kv", hidden, mixer.key_dim)
    yield norm("attn_kv_a_norm", mixer.key_dim)
    groups = sizes["o_groups"]
    yield matrix("attn_output_a", mixer.heads * mixer.key_dim // groups, groups * sizes["o_rank"])
    yield matrix("attn_output_b", groups * sizes["o_rank"], hidden)
    yield from _connections(spec)
    if mixer.indexer_dim:
        width = mixer.indexer_dim
        yield from _compressor("attn_compressor", hidden, 2 * mixer.key_dim, SPARSE_RATIO, normed=mixer.key_dim)
        yield matrix("indexer.proj", hidden, sizes["indexer_heads"])
        yield matrix("indexer.attn_q_b", sizes["q_rank"], sizes["indexer_heads"] * width)
        yield from _compressor("indexer_compressor", hidden, 2 * width, SPARSE_RATIO, normed=width)
    elif mixer.window is None:
        yield from _compressor("attn_compressor", hidden, mixer.key_dim, HEAVY_RATIO, normed=mixer.key_dim)
    hashed = index < sizes["hash_layers"]
    yield from feed_forward(hidden, layer.ffn, router_bias=not hashed, expert_type=expert_type(spec))
    if hashed and isinstance(layer.ffn, Moe):
        yield Part("ffn_gate_tid2eid.weight", (layer.ffn.experts_used, spec.vocab_size), "router", "I32")


def _deepseek4_outside(spec: ModelSpec) -> Iterator[Part]:
    streams = dict(spec.sizes)["streams"]
    yield Part("output_hc_fn.weight", (streams * spec.hidden_size, streams), "norm", "F32")
    yield norm("output_hc_base", streams)
    yield norm("output_hc_scale", 1)


def _pooled_indexer(spec: ModelSpec, mixer: Mla) -> Iterator[Part]:
    hidden, width = spec.hidden_size, mixer.indexer_dim or 0
    yield from mixers.indexer(hidden, mixer)
    yield Part("indexer_compressor_gate.weight", (hidden, width), "attention", "F32")
    yield Part("indexer_compressor_ape.weight", (width, dict(spec.sizes)["indexer_pool"]), "norm", "F32")


def _glm5_next_core(spec: ModelSpec, layer: Layer) -> Iterator[Part]:
    hidden = spec.hidden_size
    yield norm("attn_norm", hidden)
    yield norm("ffn_norm", hidden)
    for mixer in layer.mixers:
        if isinstance(mixer, Mla):
            yield from mixers.latent(hidden, mixer)
            if mixer.indexer_dim:
                yield from _pooled_indexer(spec, mixer)
        elif isinstance(mixer, Recurrent):
            yield from (part for part in mixers.kimi_delta(hidden, mixer) if part.name != "ssm_a")
            yield bare("ssm_a", mixer.heads)
    yield from feed_forward(hidden, layer.ffn, router_bias=True)


def _glm5_next(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    yield from _glm5_next_core(spec, layer)
    yield from _connections(spec)


def _glm5_next_token(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    yield from _glm5_next_core(spec, layer)
    yield from projections(spec)


FAMILIES: dict[str, Family] = {
    "deepseek4": Family(whole_block=_deepseek4, outside_extra=_deepseek4_outside),
    "glm5-next": Family(whole_block=_glm5_next, next_token=_glm5_next_token),
}
