"""Formats of checkpoints that are not GGUF: what they store per weight, and which engines read them."""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Role


class CheckpointFormat(Struct, frozen=True, kw_only=True):
    """How a format stores the matrices it quantizes; the rest stays in `rest_bits`."""

    name: str
    title: str
    bits: float
    """Per quantized weight, scales and zero points included."""
    roles: frozenset[Role]
    """Which matrices it quantizes."""
    rest_bits: float = 16.0
    engines: tuple[str, ...] = ("vllm",)
    kernel: str = ""
    """How it is computed: `w4a16`, `w8a8` …"""
    source: str = ""


_BLOCK_MATRICES: frozenset[Role] = frozenset({"attention", "ffn", "experts"})
_EXPERTS_ONLY: frozenset[Role] = frozenset({"experts"})

FORMATS: dict[str, CheckpointFormat] = {
    found.name: found
    for found in (
        CheckpointFormat(
            name="AWQ",
            title="AWQ, 4 bits, groups of 128",
            bits=4 + (16 + 4) / 128,
            roles=_BLOCK_MATRICES,
            kernel="w4a16",
            source="https://arxiv.org/abs/2306.00978; packing of AutoAWQ: qweight, qzeros and scales per group of 128",
        ),
        CheckpointFormat(
            name="GPTQ-INT4",
            title="GPTQ, 4 bits, groups of 128",
            bits=4 + (16 + 4) / 128,
            roles=_BLOCK_MATRICES,
            kernel="w4a16",
            source="https://arxiv.org/abs/2210.17323; packing of AutoGPTQ: qweight, qzeros, scales (g_idx left out)",
        ),
        CheckpointFormat(
            name="GPTQ-INT8",
            title="GPTQ, 8 bits, groups of 128",
            bits=8 + (16 + 8) / 128,
            roles=_BLOCK_MATRICES,
            kernel="w8a16",
            source="https://arxiv.org/abs/2210.17323; packing of AutoGPTQ",
        ),
        CheckpointFormat(
            name="FP8",
            title="FP8 (E4M3), scales per 128 x 128 block or per channel",
            bits=8 + 32 / (128 * 128),
            roles=_BLOCK_MATRICES,
            kernel="w8a8-fp8",
            source="https://github.com/deepseek-ai/DeepSeek-V3 README_WEIGHTS.md: FP32 scale per 128 x 128 block",
        ),
        CheckpointFormat(
            name="W8A8",
            title="INT8 weights and activations, scale per channel",
            bits=8.0,
            roles=_BLOCK_MATRICES,
            kernel="w8a8-int8",
            source="https://docs.vllm.ai/en/latest/features/quantization/int8.html",
        ),
        CheckpointFormat(
            name="NVFP4",
            title="NVFP4: FP4 (E2M1) with an FP8 scale per 16",
            bits=4 + 8 / 16,
            roles=_BLOCK_MATRICES,
            kernel="w4a4-fp4",
            source="https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/",
        ),
        CheckpointFormat(
            name="MXFP4",
            title="MXFP4 experts: FP4 (E2M1) with a shared exponent per 32",
            bits=4 + 8 / 32,
            roles=_EXPERTS_ONLY,
            kernel="w4a16-mxfp4",
            source="https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf",
        ),
        CheckpointFormat(
            name="BNB-NF4",
            title="bitsandbytes NF4, blocks of 64, scales quantized again",
            bits=4 + 8 / 64 + 32 / (64 * 256),
            roles=_BLOCK_MATRICES,
            kernel="w4a16",
            source="https://arxiv.org/abs/2305.14314 (QLoRA): 0.127 bits per weight for doubly quantized scales",
        ),
        CheckpointFormat(
            name="BNB-INT8",
            title="bitsandbytes LLM.int8(), scale per row",
            bits=8.0,
            roles=_BLOCK_MATRICES,
            kernel="w8a16",
            source="https://arxiv.org/abs/2208.07339",
        ),
    )
}
"""By name. BF16 and F16 are read by every engine and are in the mixes."""
