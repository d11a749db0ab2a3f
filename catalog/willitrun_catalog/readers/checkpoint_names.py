"""Tensor names of Hugging Face checkpoints in GGUF's words.

Which name stands for which follows gguf-py/gguf/tensor_mapping.py of https://github.com/ggml-org/llama.cpp. Names
that are not known keep their own; a role is still found for them by the words in them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_BLOCK = re.compile(
    r"^(?:model\.|language_model\.|text_model\.|transformer\.|backbone\.|decoder\.|encoder\.)*"
    r"(?:layers|h|blocks|block)\.(?P<layer>\d{1,5})\.(?P<rest>.+)$"
)
_OUTSIDE_TOWER = re.compile(
    r"^(?:model\.)?(?:vision|visual|audio|multi_modal|mm_projector|embed_vision|embed_audio|vision_tower|"
    r"vision_model|audio_tower|image_newline|aligner|projector|connector|vit|whisper|speech)"
)
_EXPERT = re.compile(r"^(?P<before>.*\bexperts)\.(?P<number>\d{1,5})\.(?P<part>\w+)$")
_SUFFIX = re.compile(
    r"\.?(?P<base>[\w.]*?)[._](?P<suffix>qweight|qzeros|g_idx|scales|weight_packed|weight_shape|weight_scale_inv|"
    r"weight_scale_2|weight_scale|weight_zero_point|weight_g_idx|weight_global_scale|input_global_scale|"
    r"input_scale|activation_scale|k_scale|v_scale|SCB|weight\.absmax|weight\.quant_map|weight\.nested_absmax|"
    r"weight\.nested_quant_map|weight\.quant_state\.bitsandbytes__\w+|blocks|weight|bias)$"
)
PACKED = {"qweight", "weight_packed", "blocks"}
"""Suffixes of the matrix itself in a quantized checkpoint."""
_BESIDE = {
    "qzeros", "g_idx", "scales", "weight_shape", "weight_scale_inv", "weight_scale_2", "weight_scale",
    "weight_zero_point", "weight_g_idx", "weight_global_scale", "input_global_scale", "input_scale", "k_scale",
    "v_scale", "activation_scale", "SCB",
}  # fmt: skip

_ATTENTION = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "out_proj": "attn_output",
    "dense": "attn_output", "wo": "attn_output", "c_proj": "attn_output", "qkv_proj": "attn_qkv", "wqkv": "attn_qkv",
    "query_key_value": "attn_qkv", "W_pack": "attn_qkv", "c_attn": "attn_qkv", "Wqkv": "attn_qkv",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "query_layernorm": "attn_q_norm",
    "key_layernorm": "attn_k_norm", "q_layernorm": "attn_q_norm", "k_layernorm": "attn_k_norm", "sinks": "attn_sinks",
    "q_a_proj": "attn_q_a", "q_b_proj": "attn_q_b", "kv_a_proj_with_mqa": "attn_kv_a_mqa", "kv_b_proj": "attn_kv_b",
    "q_a_layernorm": "attn_q_a_norm", "kv_a_layernorm": "attn_kv_a_norm", "g_proj": "attn_gate",
    "gate_proj": "attn_gate", "indexer.wq_b": "indexer.attn_q_b", "indexer.wk": "indexer.attn_k",
    "indexer.k_norm": "indexer.k_norm", "indexer.weights_proj": "indexer.proj", "q_conv1d": "ssm_conv1d_q",
    "k_conv1d": "ssm_conv1d_k", "v_conv1d": "ssm_conv1d_v", "f_a_proj": "ssm_f_a", "f_b_proj": "ssm_f_b",
    "b_proj": "ssm_beta", "g_a_proj": "ssm_g_a", "g_b_proj": "ssm_g_b", "A_log": "ssm_a", "dt_bias": "ssm_dt",
    "o_norm": "ssm_norm",
}  # fmt: skip
_LINEAR = {
    "in_proj_qkvz": "ssm_in", "in_proj_qkv": "attn_qkv", "in_proj_z": "attn_gate", "in_proj_ba": "ssm_ba",
    "in_proj_b": "ssm_beta", "in_proj_a": "ssm_alpha", "conv1d": "ssm_conv1d", "A_log": "ssm_a", "dt_bias": "ssm_dt",
    "norm": "ssm_norm", "out_proj": "ssm_out",
}  # fmt: skip
_MAMBA = {
    "in_proj": "ssm_in", "conv1d": "ssm_conv1d", "x_proj": "ssm_x", "dt_proj": "ssm_dt", "A_log": "ssm_a",
    "D": "ssm_d", "dt_bias": "ssm_dt", "norm": "ssm_norm", "out_proj": "ssm_out", "dt_layernorm": "ssm_dt_norm",
    "b_layernorm": "ssm_b_norm", "c_layernorm": "ssm_c_norm",
}  # fmt: skip
_ROUTER_PARTS = {
    "router": "ffn_gate_inp", "shared_expert_gate": "ffn_gate_inp_shexp", "e_score_correction": "exp_probs_b",
    "expert": "exp_probs_b",
}  # fmt: skip
_ROUTERS = (
    "mlp.gate", "block_sparse_moe.gate", "feed_forward.gate", "router.layer", "gate.wg", "router.proj", "moe.gate",
)  # fmt: skip
_SHARED = frozenset({"shared_expert", "shared_experts", "shared_mlp", "share_expert"})
_CONV = {"conv": "shortconv.conv", "in_proj": "shortconv.in_proj", "out_proj": "shortconv.out_proj"}
_GATE_UP_DOWN = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
    "fc1": "up", "fc2": "down", "c_fc": "up", "c_proj": "down", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    "gate_up_proj": "gate_up", "input_linear": "gate_up", "output_linear": "down",
}  # fmt: skip
_NORMS = {
    "input_layernorm": "attn_norm", "ln_1": "attn_norm", "operator_norm": "attn_norm", "norm": "attn_norm",
    "attention_norm": "attn_norm", "post_attention_layernorm": "ffn_norm", "ffn_norm": "ffn_norm",
    "ln_2": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm", "pre_ff_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OUTSIDE = {
    "embed_tokens": "token_embd", "wte": "token_embd", "word_embeddings": "token_embd", "embeddings": "token_embd",
    "embedding": "token_embd", "tok_embeddings": "token_embd", "lm_head": "output", "embed_out": "output",
    "norm": "output_norm", "final_layernorm": "output_norm", "ln_f": "output_norm", "norm_f": "output_norm",
    "embedding_norm": "output_norm", "embed_tokens_per_layer": "per_layer_token_embd",
}  # fmt: skip


def is_beside(suffix: str) -> bool:
    """Whether a suffix names what belongs to a quantized matrix: scales, zero points, orders, states."""
    return suffix in _BESIDE or suffix.startswith("weight.")


class CheckpointName(NamedTuple):
    """A checkpoint's tensor name, taken apart."""

    layer: int | None
    part: str
    """GGUF name without the block and the suffix: `attn_q`, `ffn_down_exps`; the checkpoint's own where unknown."""
    suffix: str
    """What follows: `weight`, `bias`, `qweight`, `weight_scale` …"""
    expert: int | None
    tower: bool
    """Part of a vision or audio tower."""


@lru_cache(maxsize=4096)
def _split_suffix(rest: str) -> tuple[str, str]:
    match = _SUFFIX.match(rest)
    return (match["base"], match["suffix"]) if match and match["base"] else (rest, "")


def parse(name: str) -> CheckpointName:
    """Take a checkpoint's tensor name apart."""
    if _OUTSIDE_TOWER.match(name):
        return CheckpointName(None, name, "", None, tower=True)
    match = _BLOCK.match(name)
    if match is None:
        base, suffix = _split_suffix(name)
        return CheckpointName(None, _OUTSIDE.get(base.rsplit(".", 1)[-1], base), suffix, None, tower=False)
    base, suffix = _split_suffix(match["rest"])
    expert = _EXPERT.match(base)
    if expert is not None:
        base = f"{expert['before']}.{expert['part']}"
    number = int(expert["number"]) if expert else None
    return CheckpointName(int(match["layer"]), block_part(base), suffix, number, tower=False)


@lru_cache(maxsize=4096)
def block_part(base: str) -> str:
    """Name a block's tensor in GGUF's words, or leave it as it is."""
    words = base.split(".")
    last = words[-1]
    return _feed_forward_part(base, words, last) or _mixing_part(words, last) or _NORMS.get(base, base)


def _feed_forward_part(base: str, words: list[str], last: str) -> str | None:
    known = _GATE_UP_DOWN.get(last)
    if known is not None and _SHARED & set(words):
        return f"ffn_{known}_shexp"
    if (last != "e_score_correction" and "experts" in words) or (
        words[0] == "block_sparse_moe" and last in {"input_linear", "output_linear"}
    ):
        return f"ffn_{known or last}_exps"
    if last in _ROUTER_PARTS or base.endswith(_ROUTERS):
        return _ROUTER_PARTS.get(last, "ffn_gate_inp")
    if known is None or words[0] not in {"mlp", "feed_forward", "ffn", "block_sparse_moe"}:
        return None
    return "ffn_up" if known == "gate_up" else f"ffn_{known}"


def _mixing_part(words: list[str], last: str) -> str | None:
    first = words[0]
    if first in {"self_attn", "attention", "attn", "self_attention"}:
        inner = ".".join(words[1:])
        return _ATTENTION.get(inner) or _ATTENTION.get(last) or f"attn_{last}"
    if first == "linear_attn":
        return _LINEAR.get(last, f"ssm_{last}")
    if first in {"mamba", "mixer"}:
        return _mixer_part(last)
    return _CONV.get(last) if first == "conv" else None


def _mixer_part(last: str) -> str:
    if last in _MAMBA:
        return _MAMBA[last]
    if last in {"up_proj", "down_proj"}:
        return f"ffn_{_GATE_UP_DOWN[last]}"
    return _ATTENTION.get(last, f"ssm_{last}")
