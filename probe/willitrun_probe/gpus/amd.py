"""What sysfs, KFD and AMD SMI say about AMD GPUs: cards, compute partitions and APUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from willitrun_probe.findings import finding
from willitrun_probe.gpus.amd_memory import AmdMemory, read_memory_of
from willitrun_probe.gpus.amd_smi import Enrichment, enrich, smi_state
from willitrun_probe.gpus.processes import holder, in_container
from willitrun_probe.host.links import read_pcie
from willitrun_probe.host.pci import numa_node, pci_name
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Gpu, GpuKind, Holder, Link, Source
from willitrun_probe.roots import clean

_XGMI, _PCIE = 11, 2
_POWER_CAPPED = 0.9


def interpret(reply: Reply, host: Host) -> Interpretation:
    """Turn the child's lines into GPUs, findings and the records of the three sources."""
    found: list[Finding] = []
    kfd: Mapping[str, Any] = next((line for line in reply.lines if line.get("kind") == "kfd"), {})
    nodes = [n for n in kfd.get("nodes") or () if isinstance(n, dict) and n.get("properties", {}).get("simd_count")]
    enrichments, smi_source, told = smi_state(reply)
    found += told
    gpus: list[Gpu] = []
    for line in reply.lines:
        if line.get("kind") == "device" and line.get("driver") == "amdgpu":
            mine = [node for node in nodes if _at(node["properties"], str(line.get("address")))]
            gpus += _device(line, mine, kfd, enrichments, host, found)
    found += _lost(reply, host)
    gpus = _linked(gpus, nodes)
    found += _permissions(host, gpus)
    override = host.environment.get("HSA_OVERRIDE_GFX_VERSION")
    if override and gpus:
        found.append(finding("gfx-override", str(gpus[0].pci_address), f"HSA_OVERRIDE_GFX_VERSION={clean(override)}"))
    answered = any(line.get("kind") == "device" for line in reply.lines)
    sources = (
        Source(
            name="sysfs",
            outcome="answered" if answered else "failed" if reply.ending != "complete" else "absent",
            seconds=reply.seconds,
            reason="" if answered else reply.reason,
        ),
        Source(name="kfd", outcome="answered" if nodes else "absent", seconds=0.0),
        smi_source,
    )
    return Interpretation(tuple(gpus), tuple(found), sources)


def gfx_target(version: int) -> str | None:
    """Spell KFD's number as compilers do: 90402 is gfx942, 110501 gfx1151 (ollama, discover/amd.go)."""
    if not 0 < version < 10**7:
        return None
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _device(
    line: Mapping[str, Any],
    nodes: list[dict[str, Any]],
    kfd: Mapping[str, Any],
    enrichments: Mapping[str, Enrichment],
    host: Host,
    found: list[Finding],
) -> list[Gpu]:
    """Return a card, or its compute partitions."""
    address = str(line["address"])
    known = next((device for device in host.devices if device.address == address), None)
    pci_id = known.id if known else None
    extra = enrich(line, enrichments.get(address), found)
    name = extra.name or clean(line.get("product_name")) or (pci_name(host.roots, pci_id) if pci_id else None)
    memory = read_memory_of(line, nodes, extra, host, found)
    first = nodes[0]["properties"] if nodes else {}
    cap, default = (line.get(key) for key in ("power_cap", "power_default"))
    limit = cap / 1e6 if isinstance(cap, int) and 0 < cap < 10**10 else extra.power_limit_w
    usual = default / 1e6 if isinstance(default, int) and 0 < default < 10**10 else extra.power_default_w
    if limit and usual and limit < _POWER_CAPPED * usual:
        found.append(finding("power-capped", address, f"{limit:g} W of {usual:g} W"))
    if extra.uncorrectable:
        found.append(finding("gpu-unhealthy", address, f"{extra.uncorrectable} uncorrected memory errors"))
    usable = _given(line, host, address, found)
    kind: GpuKind = "integrated" if memory.unified and len(nodes) < 2 else "gpu"  # noqa: PLR2004 - partitions
    card = Gpu(
        vendor="amd",
        name=name or f"AMD GPU {pci_id or address}",
        uuid=_uuid(line, first),
        pci_address=address,
        pci_id=pci_id,
        kind=kind,
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.free,
        memory_bandwidth_bytes_per_s=memory.bandwidth,
        memory_bus_bits=memory.bus_bits,
        memory_clock_hz=memory.clock_hz,
        unified=memory.unified,
        usable=usable,
        gfx_target=gfx_target(first.get("gfx_target_version", 0)) or extra.gfx_target,
        multiprocessors=_compute_units(first) or extra.compute_units,
        driver_version=host.roots.line("/sys/module/amdgpu/version") or host.roots.line("/proc/sys/kernel/osrelease"),
        runtime_version=host.roots.line("/opt/rocm/.info/version"),
        virtualization="vf" if extra.name and extra.name.endswith(" VF") else None,
        numa_node=numa_node(host.roots, address),
        pcie=read_pcie(host.roots, address),
        power_limit_w=limit,
        power_default_w=usual,
        health=("ecc-uncorrected",) if extra.uncorrectable else (),
        holders=_holders(kfd, nodes, extra, host),
        sources={"name": extra.name_source or "sysfs", **memory.sources},
    )
    if len(nodes) < 2:  # noqa: PLR2004 - one node is the whole card
        return [card]
    return _partitions(card, line, nodes, memory, kfd, host, found)


def _given(line: Mapping[str, Any], host: Host, address: str, found: list[Finding]) -> bool:
    """Say whether the card's render node is here: a container sees all cards in sysfs, whatever it was given."""
    nodes = [name for name in line.get("render") or () if isinstance(name, str)]
    if not nodes or not in_container(host.roots):
        return True
    if any(host.roots.accessible(f"/dev/dri/{name}") is not None for name in nodes):
        return True
    reason = f"/dev/dri/{nodes[0]} was not given to this container"
    found.append(finding("gpu-forbidden", address, reason, "Pass `--device /dev/kfd --device /dev/dri`."))
    return False


def _partitions(
    card: Gpu,
    line: Mapping[str, Any],
    nodes: list[dict[str, Any]],
    memory: AmdMemory,
    kfd: Mapping[str, Any],
    host: Host,
    found: list[Finding],
) -> list[Gpu]:
    """Divide a card between its compute partitions so that its memory is counted once.

    In CPX mode with one memory domain every partition shows the whole card's memory (ROCm issue #4750, MI300X
    partitioning guide); the memory domains (NPS) never outnumber the partitions.
    """
    count = len(nodes)
    domains = line.get("current_memory_partition")
    if domains != f"NPS{count}" and not memory.unified:
        reason = f"{count} partitions share the memory ({domains or 'memory domains unknown'})"
        found.append(finding("memory-shared-by-partitions", str(card.pci_address), reason))
    parts: list[Gpu] = []
    for number, node in enumerate(nodes):
        properties = node["properties"]
        parts.append(
            msgspec.structs.replace(
                card,
                name=f"{card.name} {line.get('current_compute_partition') or 'partition'} {number}",
                uuid=own if (own := _uuid({}, properties)) != card.uuid or number == 0 else None,
                kind="partition",
                memory_total_bytes=_part(card.memory_total_bytes, count),
                memory_free_bytes=_part(card.memory_free_bytes, count),
                memory_bandwidth_bytes_per_s=_share(card.memory_bandwidth_bytes_per_s, count),
                multiprocessors=_compute_units(properties),
                parent_uuid=card.uuid,
                holders=_holders(kfd, [node], Enrichment(), host),
            )
        )
    return parts


def _at(properties: Mapping[str, int], address: str) -> bool:
    """Say whether a KFD node is at a PCI address; partitions count up in the function's place (kfd_topology.c)."""
    domain, bus, rest = address.split(":") if address.count(":") == 2 else ("", "", "")  # noqa: PLR2004
    try:
        place = int(bus, 16) << 8 | int(rest.partition(".")[0], 16) << 3
        return properties.get("domain", 0) == int(domain, 16) and properties.get("location_id", -1) & ~7 == place
    except ValueError:
        return False


def _uuid(line: Mapping[str, Any], properties: Mapping[str, int]) -> str | None:
    """Return ROCm's spelling of the unique id, which ROCR_VISIBLE_DEVICES takes."""
    number = properties.get("unique_id", 0)
    if 0 < number < 2**64:
        return f"GPU-{number:016x}"
    text = str(line.get("unique_id") or "").lower().removeprefix("0x")
    return f"GPU-{text:0>16}" if text and len(text) <= 16 and text.isalnum() and text.strip("0") else None  # noqa: PLR2004


def _compute_units(properties: Mapping[str, int]) -> int | None:
    simds, per = properties.get("simd_count", 0), properties.get("simd_per_cu", 0)
    return simds // per if 0 < per <= simds < 2**20 else None


def _holders(
    kfd: Mapping[str, Any], nodes: list[dict[str, Any]], extra: Enrichment, host: Host
) -> tuple[Holder, ...] | None:
    """Return who holds memory, from KFD's own list (compute processes of all users) or from AMD SMI's."""
    processes = kfd.get("processes")
    ids = {str(node.get("gpu_id")) for node in nodes}
    if not isinstance(processes, dict) or not ids:
        return None if extra.holders is None else tuple(holder(host.roots, pid, size) for pid, size in extra.holders)
    sizes: dict[int, int] = {}
    for pid, by_gpu in processes.items():
        size = sum(value for gpu, value in by_gpu.items() if gpu in ids and isinstance(value, int) and value > 0)
        if size and pid.isdecimal():
            sizes[int(pid)] = size
    return tuple(holder(host.roots, pid, size) for pid, size in sorted(sizes.items(), key=lambda x: (-x[1], x[0])))


def _linked(gpus: list[Gpu], nodes: list[dict[str, Any]]) -> list[Gpu]:
    """Add KFD's links between cards; partitions of one card are not linked."""
    by_node: dict[int, Gpu] = {}
    for gpu in gpus:
        if gpu.kind == "gpu":
            by_node |= {
                n["node"]: gpu
                for n in nodes
                if isinstance(n.get("node"), int) and _at(n["properties"], str(gpu.pci_address))
            }
    linked: list[Gpu] = []
    for gpu in gpus:
        own = next((n for n in nodes if by_node.get(n.get("node", -1)) is gpu), None)
        links = []
        for link in own.get("links", ()) if own else ():
            peer = by_node.get(link.get("node_to", -1))
            if peer is not None and peer is not gpu and link.get("type") in {_XGMI, _PCIE}:
                rate = link.get("max_bandwidth", 0)
                links.append(
                    Link(
                        kind="xgmi" if link["type"] == _XGMI else "pcie",
                        peer=peer.uuid or str(peer.pci_address),
                        bytes_per_s=rate * 1e6 if 0 < rate < 10**8 else None,
                    )
                )
        linked.append(msgspec.structs.replace(gpu, links=tuple(links)) if links else gpu)
    return linked


def _permissions(host: Host, gpus: list[Gpu]) -> list[Finding]:
    """Check the device nodes that ROCm opens; sysfs is readable without them."""
    if not gpus:
        return []
    allowed = host.roots.accessible("/dev/kfd")
    if allowed is False:
        return [finding("render-permission", "/dev/kfd", "this user may not read and write it")]
    if allowed is None:
        reason = "it is not there, so ROCm cannot be used (Vulkan may)"
        return [finding("kfd-missing", "/dev/kfd", reason)]
    return []


def _lost(reply: Reply, host: Host) -> list[Finding]:
    devices = [device for device in host.devices if device.vendor == "amd"]
    found = []
    for index, reason in reply.lost.items():
        subject = devices[index].address if index < len(devices) else f"AMD GPU {index}"
        code = "gpu-hangs" if "time" in reason else "gpu-crashes"
        found.append(finding(code, subject, f"reading its files {reason}"))
    return found


def _part(value: int | None, count: int) -> int | None:
    return None if value is None else value // count


def _share(value: float | None, count: int) -> float | None:
    return None if value is None else value / count
