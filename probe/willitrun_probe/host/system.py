"""The operating system around everything, and what the host's facts mean for the user."""

from __future__ import annotations

from typing import NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.gpus.processes import in_container
from willitrun_probe.machine import Cpu, Disk, Finding, Memory
from willitrun_probe.roots import Roots

_MANY_UNREADABLE = 8
_VIRTUAL_MACHINES = (
    # DMI strings as systemd-detect-virt knows them (systemd, src/basic/virt.c)
    ("KVM", "kvm"), ("QEMU", "kvm"), ("Amazon EC2", "amazon"), ("VMware", "vmware"), ("VirtualBox", "oracle"),
    ("Google Compute Engine", "google"), ("Hyper-V", "microsoft"), ("Virtual Machine", "microsoft"), ("Xen", "xen"),
)  # fmt: skip


class SystemFacts(NamedTuple):
    """Distribution, kernel release, and the kind of virtual machine or container."""

    name: str | None = None
    kernel: str | None = None
    virtualization: str | None = None


def host_findings(roots: Roots, cpu: Cpu, memory: Memory, disks: tuple[Disk, ...]) -> list[Finding]:
    """Say what is limited, missing or unreadable on the host."""
    found: list[Finding] = []
    if roots.system == "Linux" and not roots.exists("/sys/bus/pci/devices") and not roots.exists("/dev/dxg"):
        found.append(finding("no-pci-inventory", "/sys/bus/pci/devices", "the folder is not there"))
    if memory.total_bytes is None or memory.available_bytes is None:
        found.append(finding("host-memory-unknown", "/proc/meminfo", "it does not tell total and available memory"))
    elif memory.limit_bytes is not None and memory.limit_bytes < memory.total_bytes:
        reason = f"a control group allows {memory.limit_bytes} of {memory.total_bytes} bytes"
        found.append(finding("memory-limited", "memory", reason))
    if cpu.physical_cores is None:
        found.append(finding("cpu-unknown", "cpu", "neither /proc/cpuinfo nor /sys tells the cores"))
    elif cpu.quota_cpus is not None and cpu.quota_cpus < cpu.physical_cores:
        found.append(finding("cpu-limited", "cpu", f"a quota of {cpu.quota_cpus:g} of {cpu.physical_cores} cores"))
    found += [
        finding("model-folder-remote", disk.path, f"it is on {disk.filesystem}") for disk in disks if disk.network
    ]
    unreadable = sorted(roots.unreadable.items())
    found += [finding("unreadable", path, reason) for path, reason in unreadable[:_MANY_UNREADABLE]]
    if len(unreadable) > _MANY_UNREADABLE:
        found.append(finding("unreadable", "/", f"{len(unreadable) - _MANY_UNREADABLE} more files"))
    return found


def system_facts(roots: Roots) -> SystemFacts:
    """Return the distribution, the kernel release and the kind of virtual machine."""
    pretty = None
    for line in (roots.text("/etc/os-release") or "").splitlines():
        key, mark, value = line.partition("=")
        if mark and key == "PRETTY_NAME":
            pretty = value.strip().strip("\"'")[:200] or None
    kernel = roots.line("/proc/sys/kernel/osrelease")
    if roots.exists("/dev/dxg"):
        return SystemFacts(pretty, kernel, "wsl2")
    if in_container(roots):
        return SystemFacts(pretty, kernel, "container")
    product = f"{roots.line('/sys/class/dmi/id/sys_vendor') or ''} {roots.line('/sys/class/dmi/id/product_name') or ''}"
    for mark, kind in _VIRTUAL_MACHINES:
        if mark in product:
            return SystemFacts(pretty, kernel, kind)
    hypervisor = " hypervisor" in (roots.text("/proc/cpuinfo") or "")
    return SystemFacts(pretty, kernel, "vm" if hypervisor else None)
