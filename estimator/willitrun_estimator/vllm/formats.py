"""Checkpoint formats that vLLM loads, and what a tensor weighs in them.

Bits are those of the stored layouts: `weight + scale + zero point` per group of weights. Sources: compressed-tensors
(https://github.com/vllm-project/compressed-tensors), AutoAWQ and GPTQ group size 128, the OCP microscaling
specification (MXFP4: one 8-bit scale per 32), NVIDIA's NVFP4 (one 8-bit scale per 16), bitsandbytes NF4 (one 32-bit
`absmax` per 64); the padding of MXFP4 experts in `vllm/model_executor/layers/fused_moe/oracle/mxfp4.py`.
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_estimator.errors import EstimatorError

PAD_VOCAB_ROWS = 64
"""`DEFAULT_VOCAB_PADDING_SIZE` of `vocab_parallel_embedding.py`."""
MXFP4_HIDDEN_MULTIPLE = 256
"""Kernels of MXFP4 experts take hidden sizes in these steps."""


def expert_tile(version: tuple[int, int], family: str) -> int:
    """Give what MXFP4 kernels round an expert's width per rank up to: 64 (Triton on Hopper, 0.11 to 0.16) or 128."""
    return 64 if family == "hopper" and (0, 11) <= version <= (0, 16) else 128


class Format(Struct, frozen=True, kw_only=True):
    """One checkpoint format."""

    name: str
    method: str
    """What the kernel table calls it: `none`, `fp8`, `int8`, `awq`, `gptq`, `nvfp4`, `mxfp4`, `bitsandbytes`."""
    linear_bits: float = 16.0
    """Per weight of dense matrices, scales included."""
    expert_bits: float = 16.0
    """Per weight of routed experts."""
    activation_bits: int = 16
    """Width the matrix units see where the hardware computes the format natively."""
    pads_experts: bool = False
    dense_with_experts_bits: float | None = None
    """Dense matrices of a model with routed experts, where published checkpoints leave them in another width."""
    other_bytes: int = 2
    """Per weight of what is not quantized: tables, norms, routers."""
    nearest: str = "BF16"
    """The GGUF type of the closest quality."""


_SYMMETRIC_4 = 4 + 20 / 128
_SYMMETRIC_8 = 8 + 24 / 128

FORMATS: dict[str, Format] = {
    "bf16": Format(name="BF16", method="none", nearest="BF16"),
    "f32": Format(name="F32", method="none", linear_bits=32, expert_bits=32, other_bytes=4, nearest="F32"),
    "fp8": Format(name="FP8", method="fp8", linear_bits=8.0, expert_bits=8.0, activation_bits=8, nearest="Q8_0"),
    "int8": Format(name="W8A8", method="int8", linear_bits=8.0, expert_bits=8.0, activation_bits=8, nearest="Q8_0"),
    "awq": Format(name="AWQ", method="awq", linear_bits=_SYMMETRIC_4, expert_bits=_SYMMETRIC_4, nearest="Q4_K_M"),
    "gptq": Format(
        name="GPTQ-INT4", method="gptq", linear_bits=_SYMMETRIC_4, expert_bits=_SYMMETRIC_4, nearest="Q4_K_M"
    ),
    "gptq-8bit": Format(
        name="GPTQ-INT8", method="gptq", linear_bits=_SYMMETRIC_8, expert_bits=_SYMMETRIC_8, nearest="Q8_0"
    ),
    "nvfp4": Format(
        name="NVFP4",
        method="nvfp4",
        linear_bits=4.5,
        expert_bits=4.5,
        dense_with_experts_bits=16,
        activation_bits=4,
        nearest="Q4_K_M",
    ),
    "mxfp4": Format(
        name="MXFP4",
        method="mxfp4",
        linear_bits=16,
        expert_bits=4.25,
        activation_bits=4,
        pads_experts=True,
        nearest="MXFP4_MOE",
    ),
    "bitsandbytes": Format(name="BNB-NF4", method="bitsandbytes", linear_bits=4.5, expert_bits=4.5, nearest="Q4_0"),
}

_ALIASES = {
    "": "bf16", "none": "bf16", "fp16": "bf16", "f16": "bf16", "float16": "bf16", "bfloat16": "bf16", "16 bit": "bf16",
    "float32": "f32", "fp32": "f32",
    "fp8-dynamic": "fp8", "fp8_dynamic": "fp8", "fp8-block": "fp8", "fbgemm_fp8": "fp8", "mxfp8": "fp8",
    "w8a8": "int8", "int8-w8a8": "int8", "quantized.w8a8": "int8",
    "awq-4bit": "awq", "awq-int4": "awq", "int4": "gptq", "w4a16": "gptq", "gptq-int4": "gptq", "gptq-4bit": "gptq",
    "auto_round": "gptq", "autoround": "gptq", "gptq-int8": "gptq-8bit", "w8a16": "gptq-8bit",
    "modelopt_fp4": "nvfp4", "mxfp4_moe": "mxfp4",
    "bnb": "bitsandbytes", "bnb-4bit": "bitsandbytes", "bnb-nf4": "bitsandbytes", "nf4": "bitsandbytes",
}  # fmt: skip


def format_of(quant: str) -> Format:
    """Find the format a quantization name means; raises EstimatorError for one that vLLM does not load."""
    key = quant.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in FORMATS:
        raise EstimatorError(
            f"vLLM does not load {quant!r} checkpoints",
            "use one of " + ", ".join(f.name for f in FORMATS.values()) + "; GGUF files belong to llama.cpp",
        )
    return FORMATS[key]


def is_format(quant: str) -> bool:
    """Tell whether vLLM loads checkpoints of this name."""
    key = quant.strip().lower()
    return _ALIASES.get(key, key) in FORMATS
