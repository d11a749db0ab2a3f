"""Which flash attention kernels a backend has: attention of another shape is computed on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Mla

if TYPE_CHECKING:
    from collections.abc import Iterable

    from willitrun_catalog.model import ModelSpec

SAME_HEAD = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
"""K and V heads of this size need nothing else (`ggml_cuda_get_best_fattn_kernel`, ggml-cuda/fattn.cu)."""
UNEQUAL_HEAD = {192: (128, 8), 320: (256, 32), 512: (512, 1), 576: (512, 1)}
"""K head size: the V head size that belongs to it, and what the number of queries per KV head is a multiple of.

They need two queries or more (`gqa_opt_applies`).
"""
CUDA_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"})
"""Cache types that CUDA and ROCm know: `ggml_cuda_fattn_kv_type_supported` (fattn.cu), and those whose rows they gather
(`ggml_backend_cuda_device_supports_op`, ggml-cuda.cu)."""
METAL_HEAD = frozenset({32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576})
"""`ggml_metal_device_supports_op` in ggml-metal/ggml-metal-device.m, where K's head is at least as long as V's."""
MULTIPLE_OF_VULKAN = 8
"""`ggml_backend_vk_device_supports_op` in ggml-vulkan.cpp."""


INDEXER_HEADS = {"cuda": frozenset({32, 64}), "rocm": frozenset({32, 64}), "metal": frozenset({64})}
"""Heads of the indexers that a back end has a kernel for, with keys of `CUDA_TYPES`; others take any.

`ggml_cuda_lightning_indexer_supported` (ggml-cuda/lightning-indexer.cu), `OP_LIGHTNING_INDEXER_NH` of ggml-metal.
"""


def has_indexer_kernel(backend: str, heads: int, key_type: str) -> bool:
    """Tell whether a backend scores an indexer's keys in one operation."""
    known = INDEXER_HEADS.get(backend)
    return known is None or (heads in known and key_type in CUDA_TYPES)


def gathers_rows(kv_type: str) -> bool:
    """Tell whether a GPU gathers rows of a cache of this type; the host does otherwise."""
    return kv_type in CUDA_TYPES


def has_flash_kernel(
    backend: str, key_dim: int, value_dim: int, queries_per_head: int, kv_type_k: str = "f16", kv_type_v: str = "f16"
) -> bool:
    """Tell whether a backend computes flash attention for heads of this shape and a cache of these types."""
    if backend == "cpu":
        return True
    if backend == "vulkan":
        mixed = "bf16" in {kv_type_k, kv_type_v} and kv_type_k != kv_type_v
        return key_dim % MULTIPLE_OF_VULKAN == 0 and value_dim % MULTIPLE_OF_VULKAN == 0 and not mixed
    if not {kv_type_k, kv_type_v} <= CUDA_TYPES:
        return False
    if backend == "metal":
        return key_dim in METAL_HEAD and key_dim >= value_dim and kv_type_k == kv_type_v
    if key_dim in SAME_HEAD:
        return value_dim == key_dim
    needed, multiple = UNEQUAL_HEAD.get(key_dim, (None, 1))
    return value_dim == needed and queries_per_head > 1 and queries_per_head % multiple == 0


def chooses_flash(spec: ModelSpec, backends: Iterable[str], kv_type: str = "f16") -> bool:
    """Tell what llama.cpp's `-fa auto` comes to for a model with blocks on GPUs of these backends.

    Off for all blocks where one would leave its attention to the host, unless V is quantized, which needs it
    (`llama_context::resolve_fused_ops` and `llama_init_from_model`, src/llama-context.cpp).
    """
    wanted = {*backends}
    if not wanted or kv_type not in {"f32", "f16", "bf16"}:
        return True
    shapes = set()
    for layer in dict(zip(map(id, spec.layers), spec.layers, strict=True)).values():
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                shapes.add((mixer.key_dim, mixer.value_dim, mixer.heads // mixer.kv_heads))
            elif isinstance(mixer, Mla):
                shapes.add((mixer.kv_rank + mixer.rope_dim, mixer.kv_rank, mixer.heads))
    return all(has_flash_kernel(backend, *shape, kv_type, kv_type) for backend in wanted for shape in shapes)
