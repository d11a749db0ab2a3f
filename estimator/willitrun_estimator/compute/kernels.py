"""Which flash attention kernels a backend has: attention of another shape is computed on the host."""

from __future__ import annotations

SAME_HEAD = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
"""K and V heads of this size need nothing else (`ggml_cuda_get_best_fattn_kernel`, ggml-cuda/fattn.cu)."""
UNEQUAL_HEAD = {192: (128, 8), 320: (256, 32), 512: (512, 2), 576: (512, 2)}
"""K head size: the V head size that belongs to it, and what the number of queries per KV head is a multiple of."""
METAL_HEAD = frozenset({32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576})
"""`ggml_metal_device_supports_op` in ggml-metal/ggml-metal-device.m, where K's head is at least as long as V's."""
MULTIPLE_OF_VULKAN = 8
"""`ggml_backend_vk_device_supports_op` in ggml-vulkan.cpp."""

GATHERED = frozenset({"f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"})
"""Types of which CUDA gathers rows (`ggml_backend_cuda_device_supports_op`, ggml-cuda/ggml-cuda.cu)."""


def gathers_rows(kv_type: str) -> bool:
    """Tell whether a GPU gathers rows of a cache of this type; the host does otherwise."""
    return kv_type in GATHERED


def has_flash_kernel(
    backend: str, key_dim: int, value_dim: int, queries_per_head: int, kv_type_k: str = "f16", kv_type_v: str = "f16"
) -> bool:
    """Tell whether a backend computes flash attention for heads of this shape and a cache of these types."""
    if backend == "vulkan":
        return key_dim % MULTIPLE_OF_VULKAN == 0 and value_dim % MULTIPLE_OF_VULKAN == 0
    if backend == "metal":
        return key_dim in METAL_HEAD and key_dim >= value_dim and kv_type_k == kv_type_v
    if key_dim in SAME_HEAD:
        return value_dim == key_dim
    needed = UNEQUAL_HEAD.get(key_dim)
    return needed is not None and value_dim == needed[0] and queries_per_head % needed[1] == 0
