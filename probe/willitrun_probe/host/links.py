"""PCI Express rates and link attributes."""

from __future__ import annotations

import re

from willitrun_probe.machine import Pcie
from willitrun_probe.roots import Roots

_LANE_BYTES_PER_S = {
    # transfer rate x line coding / 8: PCI-SIG base specifications 1.0 to 6.0 (8b/10b, 128b/130b, 242/256 FLIT)
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}
_GENERATION_OF_SPEED = {
    "2.5": 1,
    "5": 2,
    "5.0": 2,
    "8": 3,
    "8.0": 3,
    "16": 4,
    "16.0": 4,
    "32": 5,
    "32.0": 5,
    "64": 6,
    "64.0": 6,
}
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*GT/s", re.ASCII)
_WIDEST = 32


def pcie_bytes_per_s(generation: int | None, width: int | None) -> float | None:
    """Return the rate of a link in one direction, before packet overhead; None when it is not known."""
    lane = _LANE_BYTES_PER_S.get(generation or 0)
    return lane * width if lane and width and 0 < width <= _WIDEST else None


def read_pcie(roots: Roots, address: str) -> Pcie | None:
    """Read a device's link from sysfs; None when it has none (Linux, Documentation/ABI/testing/sysfs-bus-pci)."""
    folder = f"/sys/bus/pci/devices/{address}"
    generation, best = (
        _generation(roots.line(f"{folder}/{name}")) for name in ("current_link_speed", "max_link_speed")
    )
    width, widest = (_width(roots.integer(f"{folder}/{name}")) for name in ("current_link_width", "max_link_width"))
    if generation is None and best is None:
        return None
    return Pcie(
        generation=generation,
        width=width,
        max_generation=best,
        max_width=widest,
        bytes_per_s=pcie_bytes_per_s(best or generation, width or widest),
    )


def _generation(speed: str | None) -> int | None:
    found = _SPEED.match(speed or "")
    return _GENERATION_OF_SPEED.get(found.group(1)) if found else None


def _width(lanes: int | None) -> int | None:
    return lanes if lanes is not None and 0 < lanes <= _WIDEST else None
