"""What the speed model does, taken apart: the coefficient of every constant in the time of a measured row.

The model's times are linear in its constants, so asking it with one constant at 1 and the others at 0 gives that
constant's coefficient. The fit therefore needs no second copy of the formulas.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from msgspec import structs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed_cases import Case, gpu_depth
from willitrun_estimator.throughput.constants import Constants, DecodeCosts, Family, PrefillCosts, Shared, shipped
from willitrun_estimator.throughput.model import SpeedModel
from willitrun_estimator.throughput.rates import rates, type_class
from willitrun_estimator.throughput.work import Work

CLASSES = ("Q4_0", "Q8_0", "half", "K", "FP4", "IQ")
RECURRENT_KINDS = ("gated-delta-net", "mamba2", "shortconv")
"""Kinds of recurrent mixers with rows; the others count as the first."""

MATRIX_PER_FP32 = {
    "kepler": 1, "maxwell": 1, "gp100": 2, "pascal": 4, "turing16": 2, "volta": 8, "turing": 8, "ampere": 4, "ada": 4,
    "blackwell": 4, "a100": 16, "hopper": 16, "blackwell-dc": 16,
    "gcn": 1, "gcn5": 4, "cdna": 8, "cdna3": 16,
    "rdna1": 2, "rdna2": 4, "rdna3": 2, "rdna35": 4, "rdna4": 4,
    "apple": 1, "apple5": 4, "xe": 8, "xe2": 8,
}  # fmt: skip
"""What quantized weights can be multiplied with, over the FP32 rate that data sheets give: matrix units at their 16-bit
rate, else products of four bytes, else packed 16-bit pipes.

NVIDIA: 16-bit operations of a multiprocessor and clock in the tensor cores (1024 from Volta to Blackwell, 2048 in A100,
4096 in Hopper) over twice its FP32 pipes, of the architecture whitepapers; dp4a from compute capability 6.1 on (CUDA
C++ Programming Guide, arithmetic instructions). AMD: matrix instructions of CDNA and WMMA of RDNA 3 to 4 per compute
unit (512, 1024 from RDNA 4 on), V_DOT4 of GCN 5.1 and RDNA 2 (instruction set guides). Intel: XMX of Xe-HPG. The M5's
matrix units are taken from what Apple says of it; no rate is published."""
VECTOR_PER_FP32 = {"rdna3": 0.5, "rdna4": 0.5}
"""Sheets count dual issue there, which compilers hardly find; those of RDNA 3.5 do not (RDNA 3 ISA guide, VOPD)."""

DECODE_FIELDS = (
    "weight",
    "state",
    "expert",
    "cache",
    "compute",
    "attention",
    "block_s",
    "recurrent_s",
    "moe_s",
    "token",
    "device",
)
PREFILL_FIELDS = (
    "product",
    "expert",
    "weight",
    "activation",
    "attention",
    "recurrent",
    "block_s",
    "recurrent_s",
    "moe_s",
)

_NO_DECODE = DecodeCosts(**(dict.fromkeys(DecodeCosts.__struct_fields__, 0.0) | {"early": 1.0}))
_NO_PREFILL = PrefillCosts(**(dict.fromkeys(PrefillCosts.__struct_fields__, 0.0) | {"early": 1.0}))
_NO_DECODE = structs.replace(_NO_DECODE, vulkan_weight=1.0, vulkan_block=1.0)
_NO_PREFILL = structs.replace(_NO_PREFILL, vulkan=1.0)


def unit(
    family: Family, name: str, *, decode: dict[str, float], prefill: dict[str, float], **shared: float
) -> Constants:
    """Return constants that are 0 but for what is given."""
    common = Shared(
        token_s=shared.get("token_s", 0.0),
        device_s=shared.get("device_s", 0.0),
        formats=dict.fromkeys(CLASSES, shared.get("formats", 1.0)),
        prefill_formats=dict.fromkeys(CLASSES, 1.0),
        recurrent={"other": 1.0},
        prefill_recurrent={"other": 1.0},
        inline_ecc=1.0,
        power=0.0,
        prefill_power=0.0,
        vulkan_half=1.0,
        pipeline=0.0,
    )
    one = structs.replace(
        family, decode=structs.replace(_NO_DECODE, **decode), prefill=structs.replace(_NO_PREFILL, **prefill)
    )
    return structs.replace(shipped(), families={name: one, "unknown": one}, shared=common)


def decode_features(one: Case, family: Family, work: Work) -> list[float]:
    """Return the coefficients of `DECODE_FIELDS` in the seconds of one token."""
    found = []
    for field in DECODE_FIELDS:
        if field == "state":
            constants = unit(family, one.family, decode={"weight": 1.0}, prefill={}, formats=0.0)
        elif field in {"token", "device"}:
            constants = unit(family, one.family, decode={}, prefill={}, **{field + "_s": 1.0})
        else:
            constants = unit(family, one.family, decode={field: 1.0}, prefill={})
        model = SpeedModel(one.weights, one.devices, one.settings, constants=constants, work=work)
        found.append(model.decode_s(one.placement, gpu_depth(one)) or 0.0)
    found[0] -= found[1]
    return found


def prefill_features(one: Case, family: Family, work: Work) -> list[float]:
    """Return the coefficients of `PREFILL_FIELDS` in the seconds of the prompt, without pipelining."""
    found = []
    tokens = max(1, round(one.tokens))
    for field in PREFILL_FIELDS:
        if field == "product":
            given = {"quantized": 1.0, "half": 1.0}
        elif field == "expert":
            given = {"quantized": 1.0, "half": 1.0, "expert": 1.0}
        else:
            given = {field: 1.0}
        constants = unit(family, one.family, decode={}, prefill=given)
        model = SpeedModel(one.weights, one.devices, one.settings, constants=constants, work=work)
        found.append(model.prefill_s(one.placement, prompt_tokens=tokens, depth_tokens=one.depth) or 0.0)
    found[1] -= found[0]
    return found


def typical(rows: list[Case]) -> dict[str, Family]:
    """Return families without costs: rates of their instruction sets and data sheets, and how many GPUs there are."""
    found = {}
    for name in (*sorted({one.family for one in rows if one.family != "cpu"}), "unknown"):
        devices = {
            one.gpu: one.devices.gpus[0] for one in rows if one.devices.gpus and name in {one.family, "unknown"}
        }.values()
        known = [d for d in devices if d.fp32_flops_per_s]
        fp32 = [d.fp32_flops_per_s / d.bandwidth_bytes_per_s for d in known if d.bandwidth_bytes_per_s]
        watts = [d.power_watts / (d.fp32_flops_per_s / 1e12) for d in known if d.power_watts]
        found[name] = Family(
            decode=_NO_DECODE,
            prefill=_NO_PREFILL,
            gpus=len(devices) if name != "unknown" else 0,
            fp32_per_byte=rounded(float(np.median(fp32))),
            vector_per_fp32=VECTOR_PER_FP32.get(name, 1.0),
            matrix_per_fp32=float(np.median([MATRIX_PER_FP32[d.family] for d in devices])),
            watts_per_tflops=rounded(float(np.median(watts))) if watts and name != "unknown" else 0.0,
        )
    return found


def log_power(one: Case, family: Family) -> float:
    """Return the logarithm of a row's power per operation over its family's usual one."""
    speed = rates(one.devices.gpus[0], family)
    return float(np.log(speed.power)) if speed else 0.0


def rounded(value: float) -> float:
    """Keep four digits: the data says no more."""
    return float(f"{value:.4g}")


def class_index(one: Case) -> int:
    """Return the place of a row's weight type in `CLASSES`."""
    return CLASSES.index(type_class(one.weights.matmul_type))
