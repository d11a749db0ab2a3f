"""Which checkpoint formats run on which GPU, and whether the maths get faster or only the memory smaller.

Sources: the table of https://docs.vllm.ai/en/latest/features/quantization/ and `get_min_capability` of every module in
`vllm/model_executor/layers/quantization/` (wheel 0.33.0); hardware floors from
https://docs.vllm.ai/en/latest/getting_started/installation/gpu.html and the architectures the wheel carries code for.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from willitrun_estimator.device import Device
from willitrun_estimator.vllm.formats import Format
from willitrun_estimator.vllm.versions import Version

How = Literal["native", "weight-only", "emulated"]

SOURCE = "https://docs.vllm.ai/en/latest/features/quantization/"
ROCM_TARGETS = frozenset(
    {"gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1150", "gfx1151", "gfx1200", "gfx1201"}
)
"""AMD GPUs that released vLLM supports; others (MI50, MI100) run on forks only."""


class Kernel(Struct, frozen=True, kw_only=True):
    """How a format is computed on a device."""

    how: How | None
    """None: this format does not run there."""
    name: str
    """`marlin (weight-only)`, `cutlass fp8`; for the plan."""
    reason: str
    source: str = SOURCE


_Row = tuple[float, How, str]
"""From this compute capability on: how, and by which kernel."""

_CUDA: dict[str, tuple[_Row, ...]] = {
    "none": ((7.0, "native", "cublas"),),
    "awq": ((7.5, "weight-only", "marlin"),),
    "gptq": ((6.0, "weight-only", "exllama"), (7.5, "weight-only", "marlin")),
    "int8": ((7.5, "native", "cutlass int8"),),
    "fp8": ((7.5, "weight-only", "marlin"), (8.9, "native", "cutlass fp8")),
    "nvfp4": ((7.5, "weight-only", "marlin"), (10.0, "native", "cutlass fp4")),
    "mxfp4": ((8.0, "weight-only", "marlin"), (10.0, "native", "trtllm mxfp4")),
    "bitsandbytes": ((7.0, "weight-only", "bitsandbytes"),),
}
_NO_INT8_FROM = 10.0
"""INT8 matrix kernels are not built for Blackwell: its checkpoints are FP8."""
_ROCM: dict[str, tuple[How, str]] = {
    "none": ("native", "hipblaslt"),
    "awq": ("weight-only", "triton"),
    "gptq": ("weight-only", "triton"),
    "fp8": ("native", "hipblaslt fp8"),
    "mxfp4": ("weight-only", "triton mxfp4"),
    "nvfp4": ("emulated", "emulation"),
}
_ROCM_FP8 = ("gfx94", "gfx95", "gfx12")
_ROCM_MXFP4 = ("gfx95",)
_BITSANDBYTES_UNTIL: Version = (0, 27)
"""The last release whose registry names bitsandbytes (`quantization/__init__.py`); GGUF went earlier."""


def floor(device: Device, version: Version) -> str | None:
    """Say why vLLM does not run on a device at all; None where it does."""
    if device.backend == "rocm":
        target = device.gfx_target
        if target is not None and target not in ROCM_TARGETS:
            return f"{device.name} ({target}) is not supported by released vLLM, only by forks"
        return None
    if device.backend != "cuda":
        return f"vLLM does not run on the {device.backend} back end"
    least = 7.5 if version >= (0, 15) else 7.0
    if device.compute_capability is not None and capability(device) < least:
        return f"{device.name} has compute capability {device.compute_capability}; vLLM needs {least} or newer"
    return None


def capability(device: Device) -> float:
    """Give the compute capability as a number; an unknown one counts as Ampere's 8.0."""
    return float(device.compute_capability or 8.0)


def driver_floor(version: Version) -> str:
    """Say which driver the released wheels need (CUDA compatibility table of NVIDIA)."""
    if version >= (0, 27):
        return "CUDA 13 wheels: NVIDIA driver 580 or newer"
    return "CUDA 12 wheels: NVIDIA driver 525 or newer"


def kernel(checkpoint: Format, device: Device, version: Version) -> Kernel:
    """Tell how a format is computed on a device."""
    if device.backend == "rocm":
        return _rocm_kernel(checkpoint, device)
    if checkpoint.method == "bitsandbytes" and version > _BITSANDBYTES_UNTIL:
        return Kernel(how=None, name="", reason="vLLM 0.28 and newer no longer load bitsandbytes checkpoints")
    level = capability(device)
    if checkpoint.method == "int8" and level >= _NO_INT8_FROM:
        return Kernel(how=None, name="", reason="there are no INT8 kernels for Blackwell; use FP8 instead")
    found = [row for row in _CUDA[checkpoint.method] if row[0] <= level]
    if not found:
        least = _CUDA[checkpoint.method][0][0]
        return Kernel(
            how=None, name="", reason=f"{checkpoint.name} needs compute capability {least}, {device.name} has {level}"
        )
    return _described(checkpoint, found[-1][1], found[-1][2], device)


def _rocm_kernel(checkpoint: Format, device: Device) -> Kernel:
    target = device.gfx_target or ""
    if checkpoint.method not in _ROCM:
        return Kernel(how=None, name="", reason=f"vLLM on ROCm does not load {checkpoint.name} checkpoints")
    how, name = _ROCM[checkpoint.method]
    if checkpoint.method == "fp8" and not target.startswith(_ROCM_FP8):
        how = "emulated"
    if checkpoint.method == "mxfp4" and target.startswith(_ROCM_MXFP4):
        how, name = "native", "aiter mxfp4"
    return _described(checkpoint, how, name, device)


def _described(checkpoint: Format, how: How, name: str, device: Device) -> Kernel:
    reasons: dict[str, str] = {
        "native": f"{device.name} computes {checkpoint.name} natively",
        "weight-only": f"weight-only on {device.name}: {checkpoint.name} saves memory, the arithmetic is no faster",
        "emulated": f"{device.name} has no units for {checkpoint.name}: it is emulated, and slow",
    }
    return Kernel(how=how, name=name if how == "native" else f"{name} ({how})", reason=reasons[how])
