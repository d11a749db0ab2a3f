"""What sysfs tells of Intel GPUs: Arc cards with memory of their own, and integrated ones with the host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from willitrun_probe.findings import finding
from willitrun_probe.gpus.undriven import INTEL_INTEGRATED
from willitrun_probe.host.links import read_pcie
from willitrun_probe.host.pci import numa_node, pci_name
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Gpu, Outcome, Source

_LARGEST_BYTES = 2**50


def interpret(reply: Reply, host: Host) -> Interpretation:
    """Turn the child's lines into GPUs, findings and the source's record."""
    found: list[Finding] = []
    lines = [line for line in reply.lines if line.get("kind") == "device"]
    gpus = [_device(line, host, found) for line in lines if line.get("driver") in {"i915", "xe"}]
    devices = [device for device in host.devices if device.vendor == "intel"]
    for index, reason in reply.lost.items():
        subject = devices[index].address if index < len(devices) else f"Intel GPU {index}"
        code = "gpu-hangs" if "time" in reason else "gpu-crashes"
        found.append(finding(code, subject, f"reading its files {reason}"))
    outcome: Outcome = "answered" if lines else "failed" if reply.ending != "complete" else "absent"
    source = Source(name="sysfs", outcome=outcome, seconds=reply.seconds, reason=reply.reason)
    return Interpretation(tuple(gpus), tuple(found), (source,))


def _device(line: Mapping[str, Any], host: Host, found: list[Finding]) -> Gpu:
    address = str(line["address"])
    known = next((device for device in host.devices if device.address == address), None)
    pci_id = known.id if known else None
    sizes = [s for s in line.get("tiles") or line.get("local") or () if isinstance(s, int) and 0 < s < _LARGEST_BYTES]
    total: int | None = sum(sizes) or None
    free = None
    integrated = total is None and address == INTEL_INTEGRATED
    sources: dict[str, str] = {"name": "sysfs"}
    if integrated:
        total, free = host.memory.total_bytes, host.memory.available_bytes
        sources |= {"memory_total_bytes": "procfs", "memory_free_bytes": "procfs"}
        found.append(finding("memory-unified", address, "integrated graphics use the host's memory"))
    elif total is not None:
        sources["memory_total_bytes"] = "sysfs"
        found.append(finding("free-memory-unknown", address, "the kernel tells free memory of Intel GPUs to root only"))
    else:
        found.append(finding("memory-unknown", address, "neither xe nor i915 tells the size of its memory"))
    render = [name for name in line.get("render") or () if isinstance(name, str)]
    if render and host.roots.accessible(f"/dev/dri/{render[0]}") is False:
        found.append(finding("render-permission", f"/dev/dri/{render[0]}", "this user may not read and write it"))
    return Gpu(
        vendor="intel",
        name=(pci_name(host.roots, pci_id) if pci_id else None) or f"Intel GPU {pci_id or address}",
        pci_address=address,
        pci_id=pci_id,
        kind="integrated" if integrated else "gpu",
        memory_total_bytes=total,
        memory_free_bytes=free,
        unified=integrated,
        driver_version=host.roots.line("/proc/sys/kernel/osrelease"),
        numa_node=numa_node(host.roots, address),
        pcie=None if integrated else read_pcie(host.roots, address),
        sources=sources,
    )
