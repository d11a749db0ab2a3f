"""Driver versions below which the usual builds of an engine do not work, each with its source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.machine import Finding, Gpu


class Floor(NamedTuple):
    """The least driver for one engine's builds on GPUs up to a compute capability."""

    engine: str
    driver: int
    below_capability: tuple[int, int] | None
    """Only for GPUs below this capability; None for all."""
    source: str


FLOORS = (
    Floor("ollama (CUDA 12 builds)", 550, None, "ollama discover/cuda_compat.go: compressed fatbins need 550"),
    Floor("ollama (CUDA 12 builds)", 570, (7, 0), "ollama discover/cuda_compat.go: PTX of CUDA 12.8 needs 570"),
    Floor("vllm images since 25.10 (CUDA 13)", 580, None, "NVIDIA CUDA 13 release notes, minimum driver r580"),
)


def below_floors(gpus: Iterable[Gpu], driver: str | None) -> list[Finding]:
    """Return a finding per engine whose builds need a newer driver than this one."""
    branch = (driver or "").split(".")[0]
    gpus = [gpu for gpu in gpus if gpu.pci_address]  # Jetson drivers count differently and are on no bus
    if not gpus or not branch.isdecimal() or not branch.isascii():
        return []
    lowest = min((capability(gpu) for gpu in gpus if gpu.compute_capability), default=None)
    found: dict[str, Floor] = {}
    for floor in FLOORS:
        concerns = floor.below_capability is None or (lowest is not None and lowest < floor.below_capability)
        if concerns and int(branch[:6]) < floor.driver:
            found[floor.engine] = floor
    return [
        finding("driver-below-engine-floor", engine, f"driver {driver} is older than {floor.driver} ({floor.source})")
        for engine, floor in found.items()
    ]


def capability(gpu: Gpu) -> tuple[int, int]:
    """Return a compute capability as numbers."""
    major, _, minor = (gpu.compute_capability or "0.0").partition(".")
    return int(major), int(minor or 0)
