"""Reads what the amdgpu driver and KFD publish as files. Runs in the AMD child: a read may wake or block a card.

Linux: Documentation/gpu/amdgpu (driver-misc.rst), drivers/gpu/drm/amd/amdkfd/kfd_topology.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from willitrun_probe.roots import Roots, to_integer

Emit = Callable[[dict[str, Any]], None]

_BUS = "/sys/bus/pci/devices"
_NODES = "/sys/class/kfd/kfd/topology/nodes"
_PROCESSES = "/sys/class/kfd/kfd/proc"
_SIZES = ("mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total", "mem_info_gtt_used")
_WORDS = ("mem_info_vram_vendor", "current_compute_partition", "current_memory_partition", "unique_id",
          "product_name")  # fmt: skip


def read(roots: Roots, emit: Emit, *, leave: frozenset[int] = frozenset()) -> None:
    """Emit one line per AMD display device, then KFD's nodes and processes; devices in `leave` are not touched."""
    addresses = [address for address in roots.listing(_BUS) if _is_gpu(roots, f"{_BUS}/{address}")]
    for index, address in enumerate(addresses):
        if index in leave:
            continue
        folder = f"{_BUS}/{address}"
        emit({"kind": "at", "device": index})
        driver = roots.link(f"{folder}/driver")
        line: dict[str, Any] = {"kind": "device", "device": index, "address": address.lower()}
        line["driver"] = driver.rpartition("/")[2] if driver else None
        line |= {name: roots.integer(f"{folder}/{name}") for name in _SIZES}
        line |= {name: roots.line(f"{folder}/{name}") for name in _WORDS}
        line["board_info"] = roots.exists(f"{folder}/board_info")
        line |= _power(roots, folder)
        line["render"] = [name for name in roots.listing(f"{folder}/drm") if name.startswith("renderD")]
        emit(line)
    emit(
        {"kind": "kfd", "nodes": [_node(roots, name) for name in roots.listing(_NODES)], "processes": _processes(roots)}
    )


def _is_gpu(roots: Roots, folder: str) -> bool:
    kind = roots.integer(f"{folder}/class") or 0
    return roots.integer(f"{folder}/vendor") == 0x1002 and kind >> 16 in {0x03, 0x12}  # noqa: PLR2004 - AMD, displays


def _power(roots: Roots, folder: str) -> dict[str, int | None]:
    """Read the power cap and its default in microwatts (hwmon ABI)."""
    for name in roots.listing(f"{folder}/hwmon"):
        cap = roots.integer(f"{folder}/hwmon/{name}/power1_cap")
        if cap is not None:
            return {"power_cap": cap, "power_default": roots.integer(f"{folder}/hwmon/{name}/power1_cap_default")}
    return {"power_cap": None, "power_default": None}


def _node(roots: Roots, name: str) -> dict[str, Any]:
    """Read one KFD node; a node hidden by a device control group answers EPERM and has no properties."""
    folder = f"{_NODES}/{name}"
    return {
        "node": to_integer(name),
        "gpu_id": roots.integer(f"{folder}/gpu_id"),
        "properties": properties(roots.text(f"{folder}/properties")),
        "banks": [
            properties(roots.text(f"{folder}/mem_banks/{b}/properties")) for b in roots.listing(f"{folder}/mem_banks")
        ],
        "links": [
            properties(roots.text(f"{folder}/io_links/{i}/properties")) for i in roots.listing(f"{folder}/io_links")
        ],
    }


def _processes(roots: Roots) -> dict[str, dict[str, int]] | None:
    """Return bytes of memory by process and KFD GPU id; None when the kernel does not publish them."""
    if not roots.exists(_PROCESSES):
        return None
    found: dict[str, dict[str, int]] = {}
    for pid in roots.listing(_PROCESSES):
        if to_integer(pid) is None:
            continue
        for name in roots.listing(f"{_PROCESSES}/{pid}"):
            size = roots.integer(f"{_PROCESSES}/{pid}/{name}") if name.startswith("vram_") else None
            if size is not None:
                found.setdefault(pid, {})[name.removeprefix("vram_")] = size
    return found


def properties(text: str | None) -> dict[str, int]:
    """Read KFD's lines of `name value`; values beyond 63 bits (ids) are kept as they are."""
    found: dict[str, int] = {}
    for line in (text or "").splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].isascii() and parts[1].isdecimal() and len(parts[1]) <= 20:  # noqa: PLR2004
            found.setdefault(parts[0], int(parts[1]))
    return found
