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
from willitrun_estimator.throughput.rates import type_class

CLASSES = ("Q4_0", "Q8_0", "half", "K", "FP4", "IQ")
TENSOR_FAMILIES = frozenset(
    ["turing", "a100", "ampere", "ada", "hopper", "blackwell", "blackwell-dc", "cdna", "cdna3", "rdna4", "xe", "xe2"]
)
"""Families whose speed follows the matrix rate of their data sheets; the others are nearer to their FP32 rate."""

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
PREFILL_FIELDS = ("product", "expert", "weight", "attention", "recurrent", "block_s", "moe_s")

_NO_DECODE = DecodeCosts(
    weight=0, expert=0, cache=0, compute=0, attention=0, block_s=0, recurrent_s=0, moe_s=0, early=1
)
_NO_PREFILL = PrefillCosts(
    quantized=0, half=0, expert=0, weight=0, attention=0, recurrent=0, block_s=0, moe_s=0, early=1
)


def unit(
    family: Family, name: str, *, decode: dict[str, float], prefill: dict[str, float], **shared: float
) -> Constants:
    """Return constants that are 0 but for what is given."""
    formats = dict.fromkeys(CLASSES, shared.pop("formats", 1.0))
    common = {
        "token_s": 0.0,
        "device_s": 0.0,
        "vulkan_weight": 1.0,
        "vulkan_block": 1.0,
        "vulkan_prefill": 1.0,
        "pipeline": 0.0,
    }
    one = structs.replace(
        family, decode=structs.replace(_NO_DECODE, **decode), prefill=structs.replace(_NO_PREFILL, **prefill)
    )
    return structs.replace(
        shipped(), families={name: one, "unknown": one}, shared=Shared(formats=formats, **(common | shared))
    )


def decode_features(one: Case, family: Family) -> list[float]:
    """Return the coefficients of `DECODE_FIELDS` in the seconds of one token."""
    found = []
    for field in DECODE_FIELDS:
        if field == "state":
            constants = unit(family, one.family, decode={"weight": 1.0}, prefill={}, formats=0.0)
        elif field in {"token", "device"}:
            constants = unit(family, one.family, decode={}, prefill={}, **{field + "_s": 1.0})
        else:
            constants = unit(family, one.family, decode={field: 1.0}, prefill={})
        model = SpeedModel(one.weights, one.devices, one.settings, constants=constants)
        found.append(model.decode_s(one.placement, gpu_depth(one)) or 0.0)
    found[0] -= found[1]
    return found


def prefill_features(one: Case, family: Family) -> list[float]:
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
        model = SpeedModel(
            one.weights, one.devices, one.settings, constants=unit(family, one.family, decode={}, prefill=given)
        )
        found.append(model.prefill_s(one.placement, prompt_tokens=tokens, depth_tokens=one.depth) or 0.0)
    found[1] -= found[0]
    return found


def typical(rows: list[Case]) -> dict[str, Family]:
    """Return families without costs: ratios of rates from the data sheets of their GPUs, and how many there are."""
    zero = {"decode": _NO_DECODE, "prefill": _NO_PREFILL}
    found = {}
    for name in (*sorted({one.family for one in rows if one.family != "cpu"}), "unknown"):
        devices = {
            one.gpu: one.devices.gpus[0] for one in rows if one.devices.gpus and name in {one.family, "unknown"}
        }.values()
        fp32 = [
            d.fp32_flops_per_s / d.bandwidth_bytes_per_s
            for d in devices
            if d.fp32_flops_per_s and d.bandwidth_bytes_per_s
        ]
        matrix = [
            (d.int8_ops_per_s / 2 if d.int8_ops_per_s else d.flops_per_s) / d.fp32_flops_per_s
            for d in devices
            if d.fp32_flops_per_s and (d.int8_ops_per_s or d.flops_per_s)
        ]
        found[name] = Family(
            **zero,
            gpus=len(devices) if name != "unknown" else 0,
            fp32_per_byte=rounded(float(np.median(fp32))),
            matrix_per_fp32=rounded(float(np.median(matrix))) if matrix else 1.0,
            tensor_cores=name in TENSOR_FAMILIES,
        )
    return found


def rounded(value: float) -> float:
    """Keep four digits: the data says no more."""
    return float(f"{value:.4g}")


def class_index(one: Case) -> int:
    """Return the place of a row's weight type in `CLASSES`."""
    return CLASSES.index(type_class(one.weights.matmul_type))
