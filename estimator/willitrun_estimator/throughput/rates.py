"""Rates of a device that costs are relative to, with what stands in where a data sheet is silent.

All follow from the sheet's FP32 rate, which is multiprocessors x clock x pipes everywhere: the matrix rates that
vendors print mix sparse with dense, 16- with 32-bit accumulation and base with boost clocks (the sheets of L40 and L40S
differ by two for the same chip), and a family's constants hold what is left.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from willitrun_estimator.device import Device, Host
from willitrun_estimator.throughput.constants import Constants, Family

HALF_TYPES = frozenset({"F16", "BF16", "F32"})
"""Weights that are multiplied in 16-bit matrix units; all others are multiplied in 8 bit."""
POWER_RANGE = 4.0
"""A power limit further from the family's usual one than this factor was never measured."""


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
    vector_per_s: float
    """FP32 operations per second, instructions issued one by one."""
    matrix_per_s: float
    """16-bit operations per second of the matrix units, or of the pipes where there are none."""
    power: float
    """Watts per operation over what is usual in the family: below 1 the clock falls under load."""


def rates(device: Device, family: Family) -> Rates | None:
    """Return a device's rates, None without a bandwidth: then nothing can be said about its speed."""
    bandwidth = device.bandwidth_bytes_per_s
    if not bandwidth:
        return None
    fp32 = device.fp32_flops_per_s or bandwidth * family.fp32_per_byte
    power = 1.0
    if device.power_watts and device.fp32_flops_per_s and family.watts_per_tflops:
        usual = family.watts_per_tflops * device.fp32_flops_per_s / 1e12
        power = min(max(device.power_watts / usual, 1 / POWER_RANGE), POWER_RANGE)
    return Rates(
        bytes_per_s=bandwidth,
        vector_per_s=fp32 * family.vector_per_fp32,
        matrix_per_s=fp32 * family.matrix_per_fp32,
        power=power,
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
