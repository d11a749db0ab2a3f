"""Memory beyond llama.cpp's own buffers: the GPU context and its libraries' workspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from willitrun_estimator.device import Device

MIB = 1 << 20

AFTER_USE: dict[str, tuple[float, float]] = {
    "cuda": (93.0, 3.2),
    "rocm": (89.0, 5.0),
    "vulkan": (100.0, 0.0),
    "metal": (0.0, 0.0),
    "cpu": (0.0, 0.0),
}
"""MiB = constant + slope x multiprocessors (SM, CU), after the first prompts."""

UNKNOWN_MULTIPROCESSORS = 192
"""Assumed where the number is unknown: as many as the largest cards have, so that the reserve is never short."""


def runtime_bytes(gpu: Device) -> int:
    """Bytes that the GPU's driver context, kernels and library workspaces hold after real use."""
    constant, slope = AFTER_USE[gpu.backend]
    count = UNKNOWN_MULTIPROCESSORS if gpu.multiprocessors is None else gpu.multiprocessors
    return int((constant + slope * count) * MIB)


def runtime_notes(gpu: Device) -> tuple[tuple[str, int, str], ...]:
    """The named parts of `runtime_bytes` with their basis."""
    return (("GPU context", runtime_bytes(gpu), f"{gpu.backend}, after use"),)
