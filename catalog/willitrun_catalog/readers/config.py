"""config.json of a checkpoint in GGUF's words, so that both kinds of file go through one reader of layers.

Which field becomes which key follows `set_gguf_parameters` in conversion/*.py of
https://github.com/ggml-org/llama.cpp (commit 0c1e57098).
"""

from __future__ import annotations

from typing import Any

from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.class_names import GGUF_ARCHITECTURES
from willitrun_catalog.readers.gguf import GgufHeader, Value
from willitrun_catalog.readers.hyper import MAX_BLOCKS, Hyper

Fields = dict[str, Any]

_NUMBERS: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "context_length": (
        "max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length",
        "seq_length",
    ),
    "embedding_length": ("hidden_size", "n_embd", "d_model", "dim"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num"),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attention.indexer.head_count": ("index_n_heads",),
    "attention.indexer.key_length": ("index_head_dim",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk"),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "full_attention_interval": ("full_attention_interval",),
    "nextn_predict_layers": ("num_nextn_predict_layers", "mtp_num_hidden_layers"),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("mamba_d_conv", "linear_conv_kernel_dim", "conv_kernel", "d_conv"),
    "ssm.state_size": ("mamba_d_state", "linear_key_head_dim", "ssm_state_size", "state_size", "d_state"),
    "ssm.group_count": ("mamba_n_groups", "linear_num_key_heads", "n_groups"),
    "ssm.time_step_rank": (
        "mamba_n_heads", "linear_num_value_heads", "mamba_num_heads", "num_heads", "mamba_dt_rank", "time_step_rank",
    ),
}  # fmt: skip


def text_fields(config: Fields) -> Fields:
    """Get the part of a configuration that describes the text model."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            return text_fields({**{name: config[name] for name in ("tie_word_embeddings",) if name in config}, **inner})
    return config


def class_name(config: Fields) -> str | None:
    """Get the model's class, as `architectures` names it."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def gguf_architecture(config: Fields) -> tuple[str, bool]:
    """Name the architecture, and whether llama.cpp is known to convert this class."""
    for fields in (config, text_fields(config)):
        known = GGUF_ARCHITECTURES.get(class_name(fields) or "")
        if known is not None:
            return known, True
    name = text_fields(config).get("model_type") or config.get("model_type") or class_name(config)
    return (name if isinstance(name, str) and name else "unknown"), False


def hyper_of(config: Fields, path: str) -> Hyper:
    """Read a configuration as GGUF hyper-parameters; raises `FileFormatError` naming the field."""
    architecture, _ = gguf_architecture(config)
    fields = text_fields(config)
    values: dict[str, Value] = {}
    for key, names in _NUMBERS.items():
        found = _first_number(fields, names, path)
        if found is not None:
            values[key] = found
    blocks = values.get("block_count")
    if not isinstance(blocks, int) or not 0 < blocks <= MAX_BLOCKS:
        raise FileFormatError(path, f"has {blocks!r} layers", field="num_hidden_layers")
    _add_heads(values, fields, path)
    _add_windows(values, fields, blocks)
    _add_states(values, fields, path)
    metadata: dict[str, Value] = {f"{architecture}.{key}": value for key, value in values.items()}
    metadata["general.architecture"] = architecture
    return Hyper(
        GgufHeader(path=path, version=0, metadata=metadata, tensors=(), alignment=1, header_bytes=0, file_bytes=0)
    )


def number(fields: Fields, names: tuple[str, ...], path: str, default: int = 0) -> int:
    """Get the first of several fields that is a number; raises `FileFormatError` for one that is negative."""
    found = _first_number(fields, names, path)
    return default if found is None else found


def _first_number(fields: Fields, names: tuple[str, ...], path: str) -> int | None:
    for name in names:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if not 0 <= value < 1 << 31:
            raise FileFormatError(path, f"is {value}", field=name)
        return value
    return None


def _add_heads(values: dict[str, Value], fields: Fields, path: str) -> None:
    heads = values.get("attention.head_count", 0)
    hidden = values.get("embedding_length", 0)
    if fields.get("multi_query") is True and "attention.head_count_kv" not in values:
        values["attention.head_count_kv"] = 1
    even = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0
    size = number(fields, ("head_dim", "attention_head_dim", "kv_channels"), path, even)
    values["attention.key_length"] = values["attention.value_length"] = size
    rank = values.get("attention.kv_lora_rank")
    if isinstance(rank, int) and rank:
        rope = number(fields, ("qk_rope_head_dim",), path)
        values["attention.head_count_kv"] = 1
        values["attention.key_length"] = rank + rope
        values["attention.value_length"] = rank
        values["attention.key_length_mla"] = number(fields, ("qk_nope_head_dim",), path) + rope
        values["attention.value_length_mla"] = number(fields, ("v_head_dim",), path, size)
    whole = number(fields, ("global_head_dim",), path)
    if whole:
        values["attention.key_length_swa"] = values["attention.value_length_swa"] = size
        values["attention.key_length"] = values["attention.value_length"] = whole


def _add_windows(values: dict[str, Value], fields: Fields, blocks: int) -> None:
    window = fields.get("sliding_window") or fields.get("attention_chunk_size") or fields.get("sliding_window_size")
    if isinstance(window, int) and window > 0 and fields.get("use_sliding_window") is not False:
        values["attention.sliding_window"] = window
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and len(kinds) >= blocks:
        listed = [str(kind) for kind in kinds[:blocks]]
        if any("sliding" in kind or "chunked" in kind for kind in listed):
            values["attention.sliding_window_pattern"] = tuple("sliding" in k or "chunked" in k for k in listed)
        if any("linear" in kind for kind in listed):
            values["attention.recurrent_layers"] = tuple("linear" in kind for kind in listed)
        return
    pattern = fields.get("hybrid_layer_pattern")
    if isinstance(pattern, list) and all(isinstance(entry, int) for entry in pattern):
        values["attention.sliding_window_pattern"] = tuple(entry == 1 for entry in pattern[:blocks])
    elif isinstance(fields.get("sliding_window_pattern"), int):
        values["attention.sliding_window_pattern"] = fields["sliding_window_pattern"]


def _add_states(values: dict[str, Value], fields: Fields, path: str) -> None:
    hidden = values.get("embedding_length", 0)
    inner = number(fields, ("mamba_d_ssm",), path)
    heads, width = number(fields, ("mamba_num_heads",), path), number(fields, ("mamba_head_dim",), path)
    values_of = number(fields, ("linear_num_value_heads",), path) * number(fields, ("linear_value_head_dim",), path)
    expand = number(fields, ("mamba_expand", "expand"), path)
    inner = inner or values_of or heads * width or (expand * hidden if isinstance(hidden, int) else 0)
    if inner:
        values["ssm.inner_size"] = inner
    linear = fields.get("linear_attn_config")
    if isinstance(linear, dict):
        size = number(linear, ("head_dim",), path)
        if size:
            values["kda.head_dim"] = size
            values["ssm.conv_kernel"] = number(linear, ("short_conv_kernel_size",), path)
