"""Reads what the i915 and xe drivers publish without root. Runs in the Intel child.

Linux: Documentation/ABI/testing/sysfs-driver-intel-xe-*, and i915's lmem_total_bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from willitrun_probe.roots import Roots

Emit = Callable[[dict[str, Any]], None]

_BUS = "/sys/bus/pci/devices"


def read(roots: Roots, emit: Emit, *, leave: frozenset[int] = frozenset()) -> None:
    """Emit one line per Intel display device; devices in `leave` are not touched."""
    addresses = [address for address in roots.listing(_BUS) if _is_gpu(roots, f"{_BUS}/{address}")]
    for index, address in enumerate(addresses):
        if index in leave:
            continue
        folder = f"{_BUS}/{address}"
        emit({"kind": "at", "device": index})
        driver = roots.link(f"{folder}/driver")
        tiles = [
            roots.integer(f"{folder}/{n}/physical_vram_size_bytes") for n in roots.listing(folder) if n[:4] == "tile"
        ]
        cards = [n for n in roots.listing(f"{folder}/drm") if n.startswith("card")]
        local = [roots.integer(f"{folder}/drm/{name}/lmem_total_bytes") for name in cards]
        emit(
            {
                "kind": "device",
                "device": index,
                "address": address.lower(),
                "driver": driver.rpartition("/")[2] if driver else None,
                "tiles": [size for size in tiles if size],
                "local": [size for size in local if size],
                "render": [n for n in roots.listing(f"{folder}/drm") if n.startswith("renderD")],
            }
        )


def _is_gpu(roots: Roots, folder: str) -> bool:
    kind = roots.integer(f"{folder}/class") or 0
    return roots.integer(f"{folder}/vendor") == 0x8086 and kind >> 16 == 0x03  # noqa: PLR2004 - Intel, displays
