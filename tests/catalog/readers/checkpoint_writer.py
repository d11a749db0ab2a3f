"""Writes safetensors files that are all header and a hole, and folders of them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from willitrun_catalog.readers.safetensors import BITS


def table(tensors: dict) -> bytes:
    """`tensors` maps a name to (dtype, shape)."""
    entries, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def size_of(tensors: dict) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in tensors.values())


def write(path: Path, tensors: dict) -> Path:
    head = table(tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size_of(tensors))
    return path


def folder(path: Path, config: dict, shards: list[dict]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if len(shards) == 1:
        write(path / "model.safetensors", shards[0])
        return path
    index = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(path / name, tensors)
        index |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 320,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


def llama(dtype: str = "BF16", layers: int = 2) -> dict:
    out = {"model.embed_tokens.weight": (dtype, (320, 256)), "model.norm.weight": (dtype, (256,))}
    for number in range(layers):
        at = f"model.layers.{number}"
        out |= {
            f"{at}.input_layernorm.weight": (dtype, (256,)),
            f"{at}.post_attention_layernorm.weight": (dtype, (256,)),
            f"{at}.self_attn.q_proj.weight": (dtype, (256, 256)),
            f"{at}.self_attn.k_proj.weight": (dtype, (128, 256)),
            f"{at}.self_attn.v_proj.weight": (dtype, (128, 256)),
            f"{at}.self_attn.o_proj.weight": (dtype, (256, 256)),
            f"{at}.mlp.gate_proj.weight": (dtype, (512, 256)),
            f"{at}.mlp.up_proj.weight": (dtype, (512, 256)),
            f"{at}.mlp.down_proj.weight": (dtype, (256, 512)),
        }
    return out | {"lm_head.weight": (dtype, (320, 256))}


def packed(tensors: dict, pack) -> dict:
    """Replace every block matrix by what `pack(name, out, in)` stores for it."""
    out = {}
    for name, (dtype, shape) in tensors.items():
        if ".layers." in name and len(shape) == 2:
            base = name.removesuffix(".weight")
            out |= {f"{base}.{suffix}": stored for suffix, stored in pack(*shape).items()}
        else:
            out[name] = (dtype, shape)
    return out


FORMATS = {
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        lambda o, i: {"qweight": ("I32", (i, o // 8)), "qzeros": ("I32", (i // 128, o // 8)),
                      "scales": ("F16", (i // 128, o))},
    ),
    "GPTQ-INT4": (
        {"quant_method": "gptq", "bits": 4},
        lambda o, i: {"qweight": ("I32", (i // 8, o)), "qzeros": ("I32", (i // 128, o // 8)),
                      "scales": ("F16", (i // 128, o)), "g_idx": ("I32", (i,))},
    ),
    "GPTQ-INT8": (
        {"quant_method": "gptq", "bits": 8},
        lambda o, i: {"qweight": ("I32", (i // 4, o)), "scales": ("F16", (i // 128, o))},
    ),
    "FP8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda o, i: {"weight": ("F8_E4M3", (o, i)), "weight_scale_inv": ("F32", (-(-o // 128), -(-i // 128)))},
    ),
    "W8A8": (
        {"quant_method": "compressed-tensors", "config_groups": {"g": {
            "weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}}},
        lambda o, i: {"weight": ("I8", (o, i)), "weight_scale": ("BF16", (o, 1))},
    ),
    "NVFP4": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": {
            "weights": {"num_bits": 4, "type": "float"}, "input_activations": {"num_bits": 4}}}},
        lambda o, i: {"weight_packed": ("U8", (o, i // 2)), "weight_scale": ("F8_E4M3", (o, i // 16)),
                      "weight_global_scale": ("F32", (1,)), "input_global_scale": ("F32", (1,))},
    ),
    "BNB-NF4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda o, i: {"weight": ("U8", (o * i // 2, 1)), "weight.absmax": ("U8", (o * i // 64,))},
    ),
}  # fmt: skip
