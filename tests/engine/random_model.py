"""Runnable GGUF files of any size with a small vocabulary and made-up weights, written once into the cache folder."""

from __future__ import annotations

import itertools
import os
import random
import struct
from pathlib import Path

from tests.catalog.readers import gguf_writer
from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec, Moe
from willitrun_estimator.tensors import tensors

VOCABULARY = 512
CHUNK_BYTES = 1 << 22


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
        native_type="Q8_0" if moe else "F16",
    )


DENSE = spec("random-dense", layers=12, hidden=3072, heads=24, kv_heads=8, ffn=Dense(width=8192))
"""2.3 GB in F16: every layer is 192 MiB, far more than a device holds beside its buffers."""
MOE = spec("random-moe", layers=14, hidden=2048, heads=16, kv_heads=4, ffn=Moe(experts=32, experts_used=4, width=768))
"""2.4 GB in Q8_0: the experts of every layer are 153 MiB."""
SMALL = spec("random-small", layers=4, hidden=512, heads=8, kv_heads=2, ffn=Dense(width=1024))


def vocabulary() -> dict[str, object]:
    """A sentencepiece vocabulary of bytes, by which any text becomes tokens, and of short words to make them fewer."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    pieces = ["\u2581w", "\u2581wo", "\u2581wor", "\u2581word"]
    pieces += [f"{tens}{ones}" for tens, ones in itertools.product("123456789", "0123456789")]
    pieces += [f"tok{number}" for number in range(VOCABULARY - len(names) - len(pieces))]
    names, kinds = names + pieces, kinds + [1] * len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [-float(number) for number in range(VOCABULARY)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def pattern(kind: str) -> bytes:
    """Return random weights of a type, small enough to keep every sum finite."""
    draw = random.Random(5)
    if kind == "F32":
        return struct.pack("<f", 1.0) * 4096
    if kind == "F16":
        return b"".join(struct.pack("<e", draw.gauss(0.0, 0.02)) for _ in range(65521))
    scale = struct.pack("<e", 0.0002)
    return b"".join(scale + draw.randbytes(32) for _ in range(8191))


def write(model: ModelSpec, folder: Path) -> Path:
    """Write the model in its own type unless it is there; random weights are repeated, which is quick to write."""
    kind = model.native_type
    assert kind is not None
    path = folder / f"{model.name}-{model.block_count}x{model.hidden_size}-{kind.lower()}.gguf"
    if path.exists():
        return path
    listed = [
        (tensor.name, tensor.shape, "F32" if len(tensor.shape) == 1 or tensor.role in {"norm", "router"} else kind)
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
    sources = {}
    for one in ("F32", kind):
        short = pattern(one)
        sources[one] = short * max(1, CHUNK_BYTES // len(short))
    with partial.open("wb") as file:
        file.write(header)
        for _, shape, one in listed:
            left = gguf_writer.tensor_size(shape, one)
            file_padding = -left % gguf_writer.ALIGNMENT
            while left:
                left -= file.write(memoryview(sources[one])[: min(left, len(sources[one]))])
            file.write(b"\0" * file_padding)
    partial.rename(path)
    return path
