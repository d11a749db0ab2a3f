"""Runnable GGUF files of any size with a small vocabulary and made-up weights, written once into the cache folder."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.catalog.readers import gguf_writer
from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec, Moe
from willitrun_estimator.tensors import tensors

VOCABULARY = 512
BLOCK = struct.pack("<e", 0.002)
CHUNK_BLOCKS = 1 << 15


def spec(name: str, *, layers: int, hidden: int, heads: int, kv_heads: int, ffn: Dense | Moe) -> ModelSpec:
    attention = Attention(heads=heads, kv_heads=kv_heads, key_dim=hidden // heads, value_dim=hidden // heads)
    moe = isinstance(ffn, Moe)
    return ModelSpec(
        name=name,
        title=name,
        architecture="qwen3moe" if moe else "llama",
        source="test",
        hidden_size=hidden,
        vocab_size=VOCABULARY,
        tied_embeddings=False,
        max_context_tokens=32768,
        layers=(Layer(mixers=(attention,), ffn=ffn),) * layers,
        traits=("qk-norm",) if moe else (),
    )


DENSE = spec("random-dense", layers=32, hidden=1536, heads=24, kv_heads=8, ffn=Dense(width=4096))
MOE = spec("random-moe", layers=16, hidden=1024, heads=16, kv_heads=4, ffn=Moe(experts=32, experts_used=4, width=512))


def vocabulary() -> dict[str, object]:
    """A sentencepiece vocabulary of bytes: any text becomes tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    names += [f"tok{number}" for number in range(len(names), VOCABULARY)]
    kinds += [1] * (VOCABULARY - len(kinds))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [-float(number) for number in range(VOCABULARY)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write(model: ModelSpec, folder: Path) -> Path:
    """Write the model in Q8_0 unless it is there; every block has the same scale and random values."""
    path = folder / f"{model.name}-{model.block_count}-q8_0.gguf"
    if path.exists():
        return path
    listed = [
        (tensor.name, tensor.shape, "F32" if len(tensor.shape) == 1 or tensor.role in {"norm", "router"} else "Q8_0")
        for tensor in tensors(model)
    ]
    first = model.layers[0]
    metadata = gguf_writer.metadata_of(model) | vocabulary()
    prefix = model.architecture
    metadata[f"{prefix}.attention.layer_norm_rms_epsilon"] = 1e-5
    metadata[f"{prefix}.feed_forward_length"] = first.ffn.width  # type: ignore[union-attr]
    metadata[f"{prefix}.vocab_size"] = VOCABULARY
    if isinstance(first.ffn, Moe):
        metadata[f"{prefix}.expert_feed_forward_length"] = first.ffn.width
    header, _ = gguf_writer.header(metadata, listed)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pattern = b"".join(BLOCK + os.urandom(32) for _ in range(CHUNK_BLOCKS))
    ones = struct.pack("<f", 1.0) * 4096
    with partial.open("wb") as file:
        file.write(header)
        for _, shape, kind in listed:
            size = gguf_writer.tensor_size(shape, kind)
            source, left = (pattern if kind == "Q8_0" else ones), size
            while left:
                left -= file.write(source[: min(left, len(source))])
            file.write(b"\0" * (-size % gguf_writer.ALIGNMENT))
    partial.rename(path)
    return path
