"""The memory of an AMD GPU: a card's own, or an APU's carve-out together with what the driver lends of the host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.gpus.amd_smi import Enrichment
from willitrun_probe.interpretation import Host
from willitrun_probe.machine import Finding

_LARGEST_BYTES = 2**50
_TRANSFERS = {
    # transfers per clock that KFD reports, by the gfx family's memory: HBM2 and HBM2e 2, HBM3 4, GDDR6 16
    # (products of width and clock against AMD's data sheets: MI100 1229, MI250X 3277,
    # MI300X 5325, RX 7900 XTX 960 GB/s)
    "gfx906": 2, "gfx908": 2, "gfx90a": 2, "gfx942": 4, "gfx10": 16, "gfx11": 16, "gfx12": 16,
}  # fmt: skip
_GTT_OF_APU = 4
"""An APU's lendable memory is at least this many times its carve-out where nothing else tells (ollama, discover)."""


class AmdMemory(NamedTuple):
    """What an engine can take from, and how fast it is."""

    total: int | None
    free: int | None
    unified: bool
    bandwidth: float | None
    bus_bits: int | None
    clock_hz: float | None
    sources: dict[str, str]


def read_memory_of(
    line: Mapping[str, Any], nodes: list[dict[str, Any]], extra: Enrichment, host: Host, found: list[Finding]
) -> AmdMemory:
    """Read a device's memory and rate. Sysfs is in bytes and needs no library."""
    address = str(line["address"])
    sources: dict[str, str] = {}
    bus_bits, clock_hz = _bank(nodes)
    unified = is_apu(line, nodes)
    if unified:
        total, free = _apu_pool(line, host)
        if total is not None:
            sources |= {"memory_total_bytes": "sysfs", "memory_free_bytes": "sysfs"}
            found.append(finding("memory-unified", address, "carve-out and lendable host memory are one pool"))
    else:
        total, free = _size(line, "mem_info_vram_total"), None
        used = _size(line, "mem_info_vram_used")
        if total is not None:
            sources["memory_total_bytes"] = "sysfs"
            if used is not None and used <= total:
                free = total - used
                sources["memory_free_bytes"] = "sysfs"
            else:
                found.append(finding("free-memory-unknown", address, f"mem_info_vram_used is {used}"))
        elif extra.total_bytes:
            total, free = extra.total_bytes, extra.free_bytes
            sources |= {"memory_total_bytes": "amdsmi", "memory_free_bytes": "amdsmi"}
    if not total:
        total = free = None
        sources = {}
        found.append(finding("memory-unknown", address, "mem_info_vram_total is not readable or 0"))
    bandwidth = extra.bandwidth_bytes_per_s
    if bandwidth is not None:
        sources["memory_bandwidth_bytes_per_s"] = "amdsmi"
    elif bus_bits and clock_hz and not unified and (per := _transfers(nodes)):
        bandwidth = bus_bits / 8 * clock_hz * per
        sources["memory_bandwidth_bytes_per_s"] = "kfd"
    return AmdMemory(total, free, unified, bandwidth, bus_bits, clock_hz, sources)


def is_apu(line: Mapping[str, Any], nodes: list[dict[str, Any]]) -> bool:
    """Say whether a device shares the host's memory.

    KFD lists CPU cores in the same node, or neither board nor memory vendor is known and the driver may lend at
    least four times the carve-out (ollama, discover/amd.go). Lendable memory alone proves nothing: on old kernels
    it equals a card's own (gpu-utils #118).
    """
    if any(node["properties"].get("cpu_cores_count") for node in nodes):
        return True
    own, lent = _size(line, "mem_info_vram_total"), _size(line, "mem_info_gtt_total")
    anonymous = not line.get("board_info") and (line.get("mem_info_vram_vendor") or "unknown") == "unknown"
    return anonymous and own is not None and lent is not None and lent >= _GTT_OF_APU * own


def _apu_pool(line: Mapping[str, Any], host: Host) -> tuple[int | None, int | None]:
    """Return carve-out plus lendable memory, never more than the machine has."""
    own, used = _size(line, "mem_info_vram_total"), _size(line, "mem_info_vram_used")
    lent, lent_used = _size(line, "mem_info_gtt_total"), _size(line, "mem_info_gtt_used")
    if own is None and lent is None:
        return None, None
    ram, available = host.memory.total_bytes, host.memory.available_bytes
    lendable = lent or 0
    if ram is not None:
        lendable = min(lendable, ram)
    total = (own or 0) + lendable
    if available is None or (used is not None and own is not None and used > own):
        return total, None
    lendable_free = min(max(0, (lent or 0) - (lent_used or 0)), available)
    return total, min(total, max(0, (own or 0) - (used or 0)) + lendable_free)


def _bank(nodes: list[dict[str, Any]]) -> tuple[int | None, float | None]:
    """Return the width in bits and the highest clock of the GPU's memory bank."""
    for node in nodes:
        for bank in node.get("banks", ()):
            width, clock = bank.get("width", 0), bank.get("mem_clk_max", 0)
            if 0 < width <= 2**16 and 0 < clock < 10**5:
                return width, clock * 1e6
    return None, None


def _transfers(nodes: list[dict[str, Any]]) -> int | None:
    from willitrun_probe.gpus.amd import gfx_target  # noqa: PLC0415 - the two know each other

    target = gfx_target(nodes[0]["properties"].get("gfx_target_version", 0)) or ""
    return _TRANSFERS.get(target) or (_TRANSFERS.get(target[:5]) if len(target) == 7 else None)  # noqa: PLR2004


def _size(line: Mapping[str, Any], name: str) -> int | None:
    value = line.get(name)
    return value if isinstance(value, int) and 0 <= value < _LARGEST_BYTES else None
