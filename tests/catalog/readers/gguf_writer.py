"""Writes GGUF files that are all header: metadata, a token table, the tensor table, and a hole instead of weights."""

from __future__ import annotations

import struct
from pathlib import Path

from willitrun_catalog.block_types import row_bytes
from willitrun_catalog.model import Attention, Mla, ModelSpec, Moe, Recurrent
from willitrun_catalog.readers import patterns
from willitrun_catalog.readers.gguf import TYPE_NAMES

NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
ALIGNMENT = 32


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item) -> bytes:  # noqa: PLR0911 - one form each
    match item:
        case bool():
            return struct.pack("<I?", 7, item)
        case int():
            return struct.pack("<II", 4, item) if 0 <= item < 1 << 32 else struct.pack("<Iq", 11, item)
        case float():
            return struct.pack("<If", 6, item)
        case str():
            return struct.pack("<I", 8) + text(item)
        case bytes():
            return item
        case [] | [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(text(entry) for entry in item)
        case [bool(), *_]:
            return struct.pack(f"<IIQ{len(item)}?", 9, 7, len(item), *item)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(item)}i", 9, 5, len(item), *item)
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(item)}f", 9, 6, len(item), *item)
    raise TypeError(item)


def tensor_size(shape, kind) -> int:
    rows = 1
    for size in shape[1:]:
        rows *= size
    return row_bytes(kind, shape[0]) * rows


def header(metadata: dict, tensors, *, version: int = 3) -> tuple[bytes, int]:
    """`tensors` are (name, shape, type); returns the header, padded, and the bytes of the data section."""
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    out += [text(key) + value(item) for key, item in metadata.items()]
    offset = 0
    for name, shape, kind in tensors:
        out.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, NUMBERS[kind], offset))
        offset += -(-tensor_size(shape, kind) // ALIGNMENT) * ALIGNMENT
    data = b"".join(out)
    return data + b"\0" * (-len(data) % ALIGNMENT), offset


def write(path: Path, metadata: dict, tensors, **options) -> Path:
    data, size = header(metadata, tensors, **options)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + size)
    return path


def tokens(count: int) -> dict:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"tok{number}" for number in range(count)],
        "tokenizer.ggml.scores": [0.5] * count,
        "tokenizer.ggml.token_type": [1] * count,
        "tokenizer.chat_template": "{{ messages }}",
    }


def metadata_of(spec: ModelSpec) -> dict:
    """What a converter writes for a model of this shape."""
    architecture = spec.architecture
    blocks = spec.block_count + spec.mtp_layers
    found: dict = {
        "block_count": blocks,
        "context_length": spec.max_context_tokens,
        "embedding_length": spec.hidden_size,
    }
    mixers = [layer.mixers for layer in spec.layers]
    attention = [next((m for m in group if isinstance(m, Attention | Mla)), None) for group in mixers]
    attention += [next((a for a in attention if a is not None), None)] * spec.mtp_layers
    some = next((a for a in attention if a is not None), None)
    heads = [a.heads if a else (some.heads if some else 0) for a in attention]
    kv_heads = [0 if a is None else 1 if isinstance(a, Mla) else a.kv_heads for a in attention]
    if some is not None:
        found["attention.head_count"] = heads[0] if len(set(heads)) == 1 else heads
        found["attention.head_count_kv"] = kv_heads[0] if len(set(kv_heads)) == 1 else kv_heads
    _add_attention(found, spec, attention)
    _add_recurrent(found, spec)
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, Moe)), None)
    if moe is not None:
        found["expert_count"] = moe.experts
        used = [layer.ffn.experts_used if isinstance(layer.ffn, Moe) else moe.experts_used for layer in spec.layers]
        used += [moe.experts_used] * spec.mtp_layers
        found["expert_used_count"] = used[0] if len(set(used)) == 1 else used
    if spec.mtp_layers:
        found["nextn_predict_layers"] = spec.mtp_layers
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": spec.title,
        **{f"{architecture}.{key}": item for key, item in found.items()},
    }


def _add_attention(found: dict, spec: ModelSpec, attention) -> None:
    latent = next((a for a in attention if isinstance(a, Mla)), None)
    plain = [a for a in attention if isinstance(a, Attention)]
    if latent is not None:
        found["attention.key_length"] = latent.kv_rank + latent.rope_dim
        found["attention.value_length"] = latent.kv_rank
        found["attention.key_length_mla"] = latent.nope_dim + latent.rope_dim
        found["attention.value_length_mla"] = latent.value_dim
        found["attention.kv_lora_rank"] = latent.kv_rank
        found["rope.dimension_count"] = latent.rope_dim
        if latent.q_rank:
            found["attention.q_lora_rank"] = latent.q_rank
    elif plain:
        full = next((a for a in plain if a.window is None), plain[0])
        found["attention.key_length"], found["attention.value_length"] = full.key_dim, full.value_dim
        sliding = next((a for a in plain if a.window is not None), None)
        if sliding is not None:
            found["attention.sliding_window"] = sliding.window
            if (sliding.key_dim, sliding.value_dim) != (full.key_dim, full.value_dim):
                found["attention.key_length_swa"] = sliding.key_dim
                found["attention.value_length_swa"] = sliding.value_dim
            rule = patterns.WINDOWS.get(spec.architecture)
            if rule is None or rule.period is None:
                found["attention.sliding_window_pattern"] = [
                    isinstance(a, Attention) and a.window is not None for a in attention
                ]
    index = next((a for a in attention if a is not None and a.indexer_dim), None)
    if index is not None:
        found["attention.indexer.key_length"] = index.indexer_dim
        found["attention.indexer.head_count"] = getattr(index, "indexer_heads", None) or 4
        if not all(a.indexer_dim for a in attention if a is not None):
            found["attention.indexer.types"] = [bool(a and a.indexer_dim) for a in attention]
    shared = sum(a.shares_kv for a in plain)
    if shared:
        found["attention.shared_kv_layers"] = shared


def _add_recurrent(found: dict, spec: ModelSpec) -> None:
    kinds = [next((m for m in layer.mixers if isinstance(m, Recurrent)), None) for layer in spec.layers]
    one = next((m for m in kinds if m is not None), None)
    if one is None:
        return
    match one.kind:
        case "shortconv":
            found["shortconv.l_cache"] = one.conv_kernel
        case "kda":
            found["kda.head_dim"], found["ssm.conv_kernel"] = one.head_dim, one.conv_kernel
        case "lightning":
            found["attention.recurrent_layers"] = [m is not None for m in kinds]
        case _:
            found["ssm.conv_kernel"], found["ssm.inner_size"] = one.conv_kernel, one.inner_dim
            found["ssm.state_size"], found["ssm.group_count"] = one.state_dim, one.groups
            found["ssm.time_step_rank"] = one.heads
