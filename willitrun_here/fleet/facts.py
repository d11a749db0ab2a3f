"""What of a machine may leave it: facts by an allow-list, state apart, hashes instead of ids.

Never sent: machine ids, serial numbers, MAC and IP addresses, users, processes, environment, file paths, and free text
(reasons of findings may quote any of these). A field that is added to a Struct of the probe is withheld until it is
listed here; a test compares the lists with the Structs.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from willitrun_here.fleet.document import GpuState, State, digest
from willitrun_probe.machine import (
    Cpu,
    Disk,
    Engine,
    Finding,
    Gpu,
    Link,
    Machine,
    Memory,
    NumaNode,
    Pcie,
    ProductRate,
)  # fmt: skip

HostnamePolicy = Literal["clear", "hash", "off"]

WITHHELD = "not sent"

GPU_FACTS = (
    "vendor", "name", "pci_address", "pci_id", "kind", "index", "memory_total_bytes", "memory_reserved_bytes",
    "memory_bandwidth_bytes_per_s", "memory_bus_bits", "memory_clock_hz", "unified", "compute_capability",
    "gfx_target", "multiprocessors", "driver_version", "runtime_version", "visible", "usable", "display_active",
    "compute_mode", "virtualization", "numa_node", "power_limit_w", "power_default_w", "health", "sources",
)  # fmt: skip
CPU_FACTS = (
    "name", "architecture", "sockets", "physical_cores", "logical_cpus", "performance_cores", "quota_cpus",
    "usable_threads", "flags", "block_s", "side_s",
)  # fmt: skip
PRODUCT_FACTS = ("weight_type", "decode_bytes_per_s", "prefill_ops_per_s")
MEMORY_FACTS = ("total_bytes", "limit_bytes", "bandwidth_bytes_per_s", "sources")
PCIE_FACTS = ("width", "max_generation", "max_width", "bytes_per_s")
DISK_FACTS = ("purpose", "filesystem", "total_bytes", "network", "rotational", "read_bytes_per_s")
LINK_FACTS = ("kind", "bytes_per_s", "peer_to_peer", "topology")
NODE_FACTS = ("node", "cpus", "memory_total_bytes")

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_~-]{0,63}")
_PCI_ADDRESS = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")


def facts_of(machine: Machine, *, hostname: HostnamePolicy = "clear") -> Machine:
    """Return what may be sent of a machine and does not change from beat to beat.

    `observed_at` is kept for display and is no part of the hash.
    """
    subjects = {gpu.name for gpu in machine.gpus} | {gpu.pci_address for gpu in machine.gpus}
    subjects |= {source.name for source in machine.sources} | {"cpu", "memory"}
    return Machine(
        name=_hostname(machine.name, hostname),
        observed_at=machine.observed_at,
        shape_hash=machine.shape_hash,
        os=machine.os,
        kernel=_version(machine.kernel),
        virtualization=machine.virtualization,
        gpus=tuple(_gpu(gpu) for gpu in machine.gpus),
        cpu=Cpu(
            **_kept(machine.cpu, CPU_FACTS),
            numa_nodes=tuple(NumaNode(**_kept(node, NODE_FACTS)) for node in machine.cpu.numa_nodes),
            product_rates=tuple(ProductRate(**_kept(rate, PRODUCT_FACTS)) for rate in machine.cpu.product_rates),
        ),
        memory=Memory(**_kept(machine.memory, MEMORY_FACTS)),
        disks=tuple(Disk(path=disk.purpose, **_kept(disk, DISK_FACTS)) for disk in machine.disks),
        engines=tuple(
            Engine(name=engine.name, version=_version(engine.version), backends=engine.backends)
            for engine in machine.engines
        ),
        findings=tuple(
            Finding(
                code=finding.code,
                subject=finding.subject if finding.subject in subjects else WITHHELD,
                reason=WITHHELD,
            )
            for finding in machine.findings
        ),
    )


def state_of(machine: Machine) -> State:
    """Return what changes from beat to beat. `machine` may be whole or reduced to facts."""
    return State(
        ram_free_bytes=machine.memory.available_bytes,
        gpus=tuple(
            GpuState(key=key, memory_free_bytes=gpu.memory_free_bytes)
            for key, gpu in zip(gpu_keys(machine), machine.gpus, strict=True)
        ),
    )


def gpu_keys(machine: Machine) -> tuple[str, ...]:
    """Name each GPU the same way from the whole machine and from its facts: address, hashed UUID or position."""
    keys: list[str] = []
    for position, gpu in enumerate(machine.gpus):
        key = None if gpu.kind in {"mig", "partition"} else gpu.pci_address
        key = key or hashed(gpu.uuid) or f"#{position}"
        keys.append(key if key not in keys else f"{key}#{position}")
    return tuple(keys)


def with_state(facts: Machine, state: State, observed_at: str) -> Machine:
    """Put free memory back into facts: the machine as the planner wants it."""
    free = {gpu.key: gpu.memory_free_bytes for gpu in state.gpus}
    return replace(
        facts,
        observed_at=observed_at,
        memory=replace(facts.memory, available_bytes=state.ram_free_bytes),
        gpus=tuple(
            replace(gpu, memory_free_bytes=free.get(key)) for key, gpu in zip(gpu_keys(facts), facts.gpus, strict=True)
        ),
    )


def facts_document(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a raw `facts` member that is hashed and stored: everything but the moment of observation."""
    machine = {key: value for key, value in facts["machine"].items() if key != "observed_at"}
    return {**facts, "machine": machine}


def facts_hash(facts: Machine) -> str:
    """Hash facts as the server will."""
    return digest(facts_document({"machine": msgspec.to_builtins(facts)}))


def hashed(uuid: str | None) -> str | None:
    """Replace a device UUID by a hash that is equal wherever the UUID is; a hash stays as it is."""
    if uuid is None or uuid.startswith("h-"):
        return uuid
    return "h-" + hashlib.sha256(b"willitrun device " + uuid.encode()).hexdigest()[:24]


def _gpu(gpu: Gpu) -> Gpu:
    return Gpu(
        uuid=hashed(gpu.uuid),
        parent_uuid=hashed(gpu.parent_uuid),
        pcie=None if gpu.pcie is None else Pcie(**_kept(gpu.pcie, PCIE_FACTS)),
        links=tuple(Link(peer=_peer(link.peer), **_kept(link, LINK_FACTS)) for link in gpu.links),
        **_kept(gpu, GPU_FACTS),
    )


def _kept(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _peer(peer: str) -> str:
    return peer if peer == "host" or _PCI_ADDRESS.fullmatch(peer) else hashed(peer) or peer


def _version(text: str | None) -> str | None:
    return text if text is not None and _VERSION.fullmatch(text) else None


def _hostname(name: str, policy: HostnamePolicy) -> str:
    if policy == "clear":
        return name[:255]
    return "unnamed" if policy == "off" else "h-" + hashlib.sha256(b"willitrun host " + name.encode()).hexdigest()[:12]
