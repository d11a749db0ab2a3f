"""GGUF files with made-up weights: as fast to run as real ones of their shape and types, and nothing to download.

A kernel's speed does not depend on the values, only on shapes and types; scales are kept small so that nothing
overflows and a router still spreads its tokens.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from willitrun_catalog.block_types import block_type, row_bytes
from willitrun_catalog.model import Attention, Dense, ModelSpec, Moe
from willitrun_catalog.readers.gguf import TYPE_NAMES

ALIGNMENT = 32
CHUNK_BYTES = 1 << 20
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
SCALE = struct.pack("<e", 0.002)
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,),
    "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where a block keeps its 16-bit scales (`ggml/src/ggml-common.h` of llama.cpp, the block structs)."""
MXFP4_EXPONENT = bytes([119])
"""2^-8 in a byte that counts powers of two from -127."""

Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
Listed = tuple[str, tuple[int, ...], str]
"""Name, shape and type of a tensor."""


def text(value: str) -> bytes:
    """Encode a string."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def encoded(value: Value) -> bytes:
    """Encode a metadata value with its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(one)) for one in value)
    kind, code = (6, "f") if value and isinstance(value[0], float) else (5, "i")
    return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)


def header(metadata: Mapping[str, Value], tensors: Sequence[Listed]) -> bytes:
    """Return everything of a GGUF file (version 3) before its weights."""
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    out += [text(key) + encoded(value) for key, value in metadata.items()]
    offset = 0
    for name, shape, kind in tensors:
        out.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[kind], offset))
        offset += -(-size_of(shape, kind) // ALIGNMENT) * ALIGNMENT
    data = b"".join(out)
    return data + b"\0" * (-len(data) % ALIGNMENT)


def size_of(shape: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a tensor."""
    rows = 1
    for size in shape[1:]:
        rows *= size
    return row_bytes(kind, shape[0]) * rows


def weights_of(kind: str) -> bytes:
    """Return about `CHUNK_BYTES` of whole blocks of a type: random weights under the same small scale."""
    if kind == "F32":
        return struct.pack("<f", 1.0) * (CHUNK_BYTES // 4)
    size = block_type(kind).block_bytes
    data = bytearray(os.urandom(CHUNK_BYTES // size * size))
    if kind in {"F16", "BF16"}:
        top, sign = (0x24, 0x83) if kind == "F16" else (0x3C, 0x80)  # magnitudes of 2^-6 and below
        data[1::2] = bytes(data[1::2]).translate(bytes(byte & sign | top for byte in range(256)))
    elif kind == "MXFP4":
        data[::size] = MXFP4_EXPONENT * (len(data) // size)
    else:
        for at in SCALES[kind]:
            data[at::size] = SCALE[:1] * (len(data) // size)
            data[at + 1 :: size] = SCALE[1:] * (len(data) // size)
    return bytes(data)


def write(path: Path, metadata: Mapping[str, Value], tensors: Iterable[Listed]) -> Path:
    """Write a model file in one step. Raises OSError, and KeyError for a type without known scales."""
    listed = tuple(tensors)
    patterns = {kind: weights_of(kind) for kind in {kind for _, _, kind in listed}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(header(metadata, listed))
            for _, shape, kind in listed:
                left = size = size_of(shape, kind)
                while left:
                    left -= file.write(patterns[kind][:left])
                file.write(b"\0" * (-size % ALIGNMENT))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def metadata_of(spec: ModelSpec) -> dict[str, Value]:
    """Return what a model whose blocks are all plain attention and feed-forward says of itself, without a vocabulary.

    Raises ValueError for any other kind of block.
    """
    mixer, ffn = spec.layers[0].mixers[0], spec.layers[0].ffn
    if not isinstance(mixer, Attention) or not isinstance(ffn, Dense | Moe):
        raise ValueError("only plain blocks can be made up")  # noqa: TRY004 - the value, not its Python type
    prefix = spec.architecture
    found: dict[str, Value] = {
        "general.architecture": prefix,
        "general.name": spec.title,
        f"{prefix}.block_count": spec.block_count,
        f"{prefix}.context_length": spec.max_context_tokens,
        f"{prefix}.embedding_length": spec.hidden_size,
        f"{prefix}.feed_forward_length": ffn.width,
        f"{prefix}.attention.head_count": mixer.heads,
        f"{prefix}.attention.head_count_kv": mixer.kv_heads,
        f"{prefix}.attention.key_length": mixer.key_dim,
        f"{prefix}.attention.value_length": mixer.value_dim,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{prefix}.rope.dimension_count": mixer.key_dim,
        f"{prefix}.vocab_size": spec.vocab_size,
        "tokenizer.ggml.model": "no_vocab",
    }
    if isinstance(ffn, Moe):
        found[f"{prefix}.expert_count"] = ffn.experts
        found[f"{prefix}.expert_used_count"] = ffn.experts_used
        found[f"{prefix}.expert_feed_forward_length"] = ffn.width
    return found


def byte_vocabulary(size: int) -> dict[str, Value]:
    """Return a SentencePiece vocabulary of bytes and fillers: any text becomes tokens, which a server needs."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    kinds += [1] * (size - len(kinds))
    names += [f"tok{number}" for number in range(len(names), size)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [-float(number) for number in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
