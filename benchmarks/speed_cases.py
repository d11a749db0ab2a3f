"""Measured rows as questions to the speed model: weights, devices, placement and settings of each."""

from __future__ import annotations

import csv
import functools
from itertools import pairwise
from pathlib import Path
from typing import Literal

from msgspec import Struct

from willitrun_catalog import shipped
from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import CatalogError
from willitrun_catalog.find import find_model
from willitrun_estimator.device import Backend, Device, Devices, Host
from willitrun_estimator.families import family
from willitrun_estimator.hardware import LINK_EFFICIENCY, PCIE_BYTES_PER_S, inline_ecc
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import WeightProfile, weight_profile

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "estimator/willitrun_estimator/data/measured_speeds.csv"
GB = 10**9

DYNAMIC = {
    "UD-Q3_K_XL": "Q3_K_M",
    "UD-Q4_K_XL": "Q4_K_M",
    "UD-Q6_K_XL": "Q6_K",
    "UD-Q8_K_XL": "Q8_0",
    "UD-IQ4_XS": "IQ4_XS",
}
"""Unsloth's dynamic mixes vary with the model; the plain mix of nearly the same size stands in."""

Where = Literal["gpu", "offload", "host"]


class Case(Struct, frozen=True, kw_only=True):
    """One measurement and what predicts it."""

    gpu: str
    family: str
    engine: str
    backend: str
    model: str
    quant: str
    host: str
    where: Where
    moe: bool
    test: str
    tokens: float
    depth: float
    slots: int
    tok_s: float
    before_2025: bool
    skip: str
    source: str
    weights: WeightProfile
    devices: Devices
    placement: Placement
    settings: Settings


def backend_of(row: dict[str, str], sheet: Datasheet | None) -> Backend:
    """Return the back end of a row; ollama does not say, then it is the vendor's own."""
    names: dict[str, Backend] = {
        "CUDA": "cuda",
        "ROCm": "rocm",
        "Vulkan": "vulkan",
        "Metal": "metal",
        "CUDA+CPU": "cuda",
    }
    if row["backend"] in names:
        return names[row["backend"]]
    own: dict[str, Backend] = {"nvidia": "cuda", "amd": "rocm", "intel": "vulkan", "apple": "metal"}
    return own[sheet.vendor] if sheet else "cpu"


@functools.cache
def sheets() -> dict[str, Datasheet]:
    """Return all data sheets by name."""
    return {sheet.name: sheet for sheet in shipped.datasheets()}


def device_of(sheet: Datasheet, backend: Backend) -> Device:
    """Return the device a data sheet describes."""
    memory = sheet.memory_bytes or 0
    lanes = (
        PCIE_BYTES_PER_S[sheet.pcie_generation] * sheet.pcie_lanes
        if sheet.pcie_generation and sheet.pcie_lanes
        else None
    )
    return Device(
        name=sheet.name,
        backend=backend,
        family=family(
            vendor=sheet.vendor,
            compute_capability=sheet.compute_capability,
            gfx_target=sheet.gfx_target,
            name=sheet.name,
        ),
        memory_total_bytes=memory,
        memory_free_bytes=memory,
        bandwidth_bytes_per_s=sheet.bandwidth_bytes_per_s,
        flops_per_s=sheet.fp16_flops_per_s,
        int8_ops_per_s=sheet.int8_ops_per_s,
        fp32_flops_per_s=sheet.fp32_flops_per_s,
        power_watts=sheet.power_watts,
        inline_ecc=inline_ecc(sheet),
        link_bytes_per_s=None if sheet.unified or lanes is None else lanes * LINK_EFFICIENCY,
        unified=sheet.unified,
        multiprocessors=sheet.multiprocessors,
    )


def host_of(row: dict[str, str]) -> Host:
    """Return the host of a row as far as it is known."""
    rate = float(row["bandwidth_gbs"]) * GB if row["bandwidth_gbs"] else None
    return Host(
        ram_total_bytes=0,
        ram_available_bytes=0,
        bandwidth_bytes_per_s=rate,
        bandwidth_basis=row["basis"] or "unknown",
        threads=int(row["threads"] or 4),
        cpu_name=row["host"] or None,
        flags=tuple(row["flags"].split()),
    )


@functools.cache
def profile(model: str, quant: str) -> WeightProfile | None:
    """Return the weights of a row, None where the catalog or the mixes do not know them."""
    try:
        return weight_profile(find_model(model).spec, DYNAMIC.get(quant, quant))
    except CatalogError:
        return None


def split_of(units: int, gpus: int) -> tuple[int, ...]:
    """Share units evenly over equal GPUs, as llama.cpp does."""
    cuts = [round(units * part / gpus) for part in range(gpus + 1)]
    return tuple(after - before for before, after in pairwise(cuts))


def case(row: dict[str, str]) -> Case | None:
    """Return the question of a row, None where its model, GPU or placement is unknown."""
    sheet = sheets().get(row["gpu"]) if row["gpu"] else None
    weights = profile(row["model"], row["quant"])
    if weights is None or (row["gpu"] and sheet is None) or row["gpu_layers"] == "?":
        return None
    backend = backend_of(row, sheet)
    count = max(1, int(row["gpus"] or 1)) if sheet else 0
    gpus = (device_of(sheet, backend),) * count if sheet else ()
    blocks = weights.spec.block_count
    given = row["gpu_layers"]
    units = 0 if given == "" else blocks + 1 if given == "all" else min(int(given), blocks + 1)
    moved = int(row["cpu_moe"] or 0)
    if row["cpu_moe"].startswith("+"):
        moved += blocks + 1 - units
    moved = min(moved, blocks)
    moe = weights.cumulative_expert_bytes[-1] > 0
    tokens = float(row["tokens"] or (128 if row["test"] == "tg" else 512))
    kind: Where = "host" if not units else "offload" if units <= blocks or (moved and moe) else "gpu"
    kv = row["kv"] if row["kv"] in {"q8_0", "q4_0", "bf16"} else "f16"
    ubatch = int(row["ubatch"] or 512)
    return Case(
        gpu=row["gpu"],
        family=gpus[0].family if gpus else "cpu",
        engine=row["engine"],
        backend=backend,
        model=row["model"],
        quant=row["quant"],
        host=row["host"],
        where=kind,
        moe=moe,
        test=row["test"],
        tokens=tokens,
        depth=float(row["depth"] or 0),
        slots=int(row["slots"] or 1),
        tok_s=float(row["tok_s"]),
        before_2025=bool(row["date"]) and row["date"] < "2025",
        skip=row["skip"],
        source=row["source"],
        weights=weights,
        devices=Devices(name="row", gpus=gpus, host=host_of(row)),
        placement=Placement(gpu_layers=units, split=split_of(units, count) if count else (), cpu_moe_layers=moved),
        settings=Settings(
            context_tokens=4096,
            kv_type_k=kv,
            kv_type_v=kv,
            ubatch=ubatch,
            batch=max(2048, ubatch),
            op_offload=row["op_offload"] != "0",
        ),
    )


def cases(path: Path = ROWS) -> list[Case]:
    """Return the questions of all rows of a file that can be asked."""
    with path.open(newline="") as file:
        return [found for found in map(case, csv.DictReader(file)) if found is not None]


def gpu_depth(one: Case) -> float:
    """Return the mean depth while the row was measured: `tg 128` averages over the contexts 0..128."""
    return one.depth + one.tokens / 2
