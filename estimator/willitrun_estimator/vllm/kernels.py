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
from willitrun_estimator.vllm.versions import LATEST, Version, name_of

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
FP8_FROM = 8.9
CUDA_13_DRIVER = 580
LAST_CUDA_12: Version = (0, 26)
"""The last release with wheels and images for CUDA 12."""
_DRIVERS: tuple[tuple[Version, int], ...] = (((0, 27), CUDA_13_DRIVER), ((0, 0), 525))
"""From this release on: the first driver branch of its CUDA
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html)."""
LAST_VOLTA: Version = (0, 14)
"""The last release whose documentation names compute capability 7.0."""
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
    least = 7.5 if version > LAST_VOLTA else 7.0
    if device.compute_capability is not None and capability(device) < least:
        reason = f"{device.name} has compute capability {device.compute_capability}; vLLM needs {least} or newer"
        if capability(device) >= 7.0:  # noqa: PLR2004 - the floor above
            reason += f" (releases up to {name_of(LAST_VOLTA)} took 7.0: --engine-version {name_of(LAST_VOLTA)})"
        return reason
    return None


def capability(device: Device) -> float:
    """Give the compute capability as a number; an unknown one counts as Ampere's 8.0."""
    return float(device.compute_capability or 8.0)


def least_driver(version: Version) -> int:
    """Give the first NVIDIA driver branch that the released wheels run on (CUDA compatibility table of NVIDIA)."""
    return next(branch for since, branch in _DRIVERS if version >= since)


def driver_floor(version: Version) -> str:
    """Say which driver the released wheels need."""
    branch = least_driver(version)
    return f"CUDA {13 if branch >= CUDA_13_DRIVER else 12} wheels: NVIDIA driver {branch} or newer"


def driver_branch(device: Device) -> int | None:
    """Give the branch of a GPU's NVIDIA driver, 580 of `580.95.05`; None when it is not known."""
    first = (device.driver_version or "").partition(".")[0]
    return int(first) if device.backend == "cuda" and first.isdecimal() else None


def newest_for(devices: tuple[Device, ...]) -> Version:
    """Give the newest release whose wheels the driver runs; the latest where the driver is unknown or too old for all.

    `driver_too_old` then says why.
    """
    branches = [branch for branch in map(driver_branch, devices) if branch is not None]
    known = min(branches, default=CUDA_13_DRIVER)
    return LAST_CUDA_12 if _DRIVERS[-1][1] <= known < CUDA_13_DRIVER else LATEST


def driver_too_old(devices: tuple[Device, ...], version: Version) -> str | None:
    """Say that the driver is too old for a release; None where it is not, or not known."""
    branches = [branch for branch in map(driver_branch, devices) if branch is not None]
    if not branches or min(branches) >= least_driver(version):
        return None
    return f"NVIDIA driver {min(branches)} is too old for vLLM {name_of(version)} ({driver_floor(version)})"


def cache_refused(kv_type: str, device: Device) -> str | None:
    """Say why a GPU cannot keep its cache in a type; None where it can.

    Below compute capability 8.9 the attention kernels do not compile for E4M3, the meaning of `fp8`
    (https://github.com/vllm-project/vllm/issues/26431, an RTX 3090); `fp8_e5m2` is left to who asks for it.
    """
    if device.backend != "cuda" or kv_type not in {"fp8", "fp8_e4m3"} or capability(device) >= FP8_FROM:
        return None
    return (
        f"{device.name} (compute capability {device.compute_capability}) has no 8-bit floats: vLLM's FP8 cache needs "
        f"{FP8_FROM}; leave --kv-type out"
    )


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
        "emulated": f"{device.name} has no units for {checkpoint.name}: emulated, slowly, its speed is not known",
    }
    return Kernel(how=how, name=name if how == "native" else f"{name} ({how})", reason=reasons[how])
