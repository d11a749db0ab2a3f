"""Rates of a device that costs are relative to, with what stands in where a data sheet is silent."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from willitrun_estimator.device import Device, Host
from willitrun_estimator.throughput.constants import Constants, Family

HALF_TYPES = frozenset({"F16", "BF16", "F32"})
"""Weights that are multiplied in 16-bit matrix units; all others are multiplied in 8 bit."""


def type_class(matmul_type: str) -> str:
    """Return the class of a weight type whose kernels are alike: `Q4_K` is `K`, `IQ4_XS` is `IQ`, `F16` is `half`."""
    if matmul_type in HALF_TYPES:
        return "half"
    if matmul_type.startswith("IQ"):
        return "IQ"
    if matmul_type.endswith("_K"):
        return "K"
    if matmul_type in {"MXFP4", "NVFP4"}:
        return "FP4"
    return "Q8_0" if matmul_type.startswith("Q8") else "Q4_0"


class Rates(Struct, frozen=True, kw_only=True):
    """What a GPU can do at most."""

    bytes_per_s: float
    fp32_per_s: float
    quantized_per_s: float
    """Matrix rate for quantized weights, operations per second."""
    half_per_s: float
    """Matrix rate for 16-bit weights."""


def rates(device: Device, family: Family) -> Rates | None:
    """Return a device's rates, None without a bandwidth: then nothing can be said about its speed."""
    bandwidth = device.bandwidth_bytes_per_s
    if not bandwidth:
        return None
    fp32 = device.fp32_flops_per_s or bandwidth * family.fp32_per_byte
    matrix = fp32 * family.matrix_per_fp32
    if not family.tensor_cores:
        return Rates(bytes_per_s=bandwidth, fp32_per_s=fp32, quantized_per_s=fp32, half_per_s=fp32)
    eight_bit = device.int8_ops_per_s / 2 if device.int8_ops_per_s else None
    return Rates(
        bytes_per_s=bandwidth,
        fp32_per_s=fp32,
        quantized_per_s=eight_bit or device.flops_per_s or matrix,
        half_per_s=eight_bit or device.flops_per_s or matrix,
    )


INSTRUCTION_SETS = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp", "asimd")
"""CPU flags that choose llama.cpp's kernels, the fastest first, as the kernel spells them."""


def host_bytes_per_s(host: Host, constants: Constants) -> float | None:
    """Return the rate at which matrix products read the host's memory, None when nothing is known of it."""
    if not host.bandwidth_bytes_per_s:
        return None
    shares = constants.host.bandwidth
    return host.bandwidth_bytes_per_s * shares.get(host.bandwidth_basis, shares["measured"])


def instruction_set(host: Host, table: Mapping[str, float]) -> str:
    """Return the fastest of a processor's instruction sets that a table knows, `other` without any."""
    return next((flag for flag in INSTRUCTION_SETS if flag in host.flags and flag in table), "other")
