"""Gemma 3n and 4: embeddings per layer, shared caches, experts beside a dense network."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Dense, Layer, ModelSpec, Moe
from willitrun_estimator.tensors import feed_forward
from willitrun_estimator.tensors.family import SANDWICH_NORMS, Family
from willitrun_estimator.tensors.mixers import only_attention
from willitrun_estimator.tensors.part import Part, bare, matrix, norm


def _per_layer_block(spec: ModelSpec) -> Iterator[Part]:
    width = dict(spec.sizes).get("per_layer_dim", 0)
    if width:
        yield matrix("inp_gate", spec.hidden_size, width)
        yield matrix("proj", width, spec.hidden_size)
        yield norm("post_norm", spec.hidden_size)


def _per_layer_tables(spec: ModelSpec) -> Iterator[Part]:
    sizes = dict(spec.sizes)
    width = sizes.get("per_layer_dim", 0)
    if width:
        rows = (
            max(sizes["per_layer_vocab"], spec.vocab_size)
            if spec.architecture == "gemma3n"
            else sizes["per_layer_vocab"]
        )
        yield matrix("per_layer_token_embd", width * spec.block_count, rows)
        yield matrix("per_layer_model_proj", spec.hidden_size, width * spec.block_count)
        yield norm("per_layer_proj_norm", width)


def _gemma3n_block(spec: ModelSpec, _layer: Layer, _index: int) -> Iterator[Part]:
    sizes, hidden = dict(spec.sizes), spec.hidden_size
    inputs, rank = sizes["altup_inputs"], sizes["laurel_rank"]
    yield from _per_layer_block(spec)
    yield matrix("altup_correct_coef", inputs, inputs)
    yield matrix("altup_correct_scale", hidden)
    yield matrix("altup_predict_coef", inputs, inputs * inputs)
    yield matrix("altup_router", hidden, inputs)
    yield norm("altup_router_norm", hidden)
    yield matrix("laurel_l", hidden, rank)
    yield matrix("laurel_r", rank, hidden)
    yield norm("laurel_post_norm", hidden)


def _gemma3n_outside(spec: ModelSpec) -> Iterator[Part]:
    yield from _per_layer_tables(spec)
    others = dict(spec.sizes)["altup_inputs"] - 1
    yield matrix("altup_proj", spec.hidden_size, spec.hidden_size, others)
    yield matrix("altup_unembd_proj", spec.hidden_size, spec.hidden_size, others)


def _gemma4_block(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    hidden, mixer, ffn = spec.hidden_size, only_attention(layer), layer.ffn
    for name in SANDWICH_NORMS:
        yield norm(name, hidden)
    yield matrix("attn_q", hidden, mixer.heads * mixer.key_dim)
    yield matrix("attn_k", hidden, mixer.kv_heads * mixer.key_dim)
    if mixer.window is not None or "shared-value" not in spec.traits:
        yield matrix("attn_v", hidden, mixer.kv_heads * mixer.value_dim)
    yield norm("attn_q_norm", mixer.key_dim)
    yield norm("attn_k_norm", mixer.key_dim)
    yield matrix("attn_output", mixer.heads * mixer.value_dim, hidden)
    yield norm("layer_output_scale", 1)
    if isinstance(ffn, Dense):
        yield from feed_forward.dense(hidden, ffn.width)
    elif isinstance(ffn, Moe):
        yield from feed_forward.dense(hidden, ffn.shared_width)
        yield matrix("ffn_gate_inp", hidden, ffn.experts)
        yield bare("ffn_gate_inp.scale", hidden)
        yield norm("pre_ffw_norm_2", hidden)
        yield norm("post_ffw_norm_1", hidden)
        yield norm("post_ffw_norm_2", hidden)
        yield from feed_forward.experts(hidden, ffn, joined=True)
        yield Part("ffn_down_exps.scale", (ffn.experts,), "norm")
    yield from _per_layer_block(spec)


FAMILIES: dict[str, Family] = {
    "gemma3n": Family(norms=SANDWICH_NORMS, qk_norm="head", more=_gemma3n_block, outside_extra=_gemma3n_outside),
    "gemma4": Family(whole_block=_gemma4_block, outside_extra=_per_layer_tables),
}
