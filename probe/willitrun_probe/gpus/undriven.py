"""Devices on the bus that no vendor interface described: no driver, given away, or not answering."""

from __future__ import annotations

from willitrun_probe.findings import CODES, finding
from willitrun_probe.host.links import read_pcie
from willitrun_probe.host.pci import PciDevice, pci_name
from willitrun_probe.machine import Finding, Gpu
from willitrun_probe.roots import Roots

_DRIVERS = {"nvidia": {"nvidia"}, "amd": {"amdgpu"}, "intel": {"i915", "xe"}}
_PASS_THROUGH = {"vfio-pci", "pci-stub", "xen-pciback"}
_TITLES = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}


def describe(
    device: PciDevice, roots: Roots, *, asked: bool, findings: list[Finding]
) -> tuple[Gpu | None, Finding | None]:
    """Return the device as an unusable GPU, and what is wrong unless `findings` already tell why its driver is."""
    name = pci_name(roots, device.id) or f"{_TITLES[device.vendor]} GPU {device.id}"
    gpu = Gpu(
        vendor=device.vendor,
        name=name,
        pci_address=device.address,
        pci_id=device.id,
        kind="gpu",
        usable=False,
        numa_node=device.numa_node,
        pcie=read_pcie(roots, device.address),
        sources={"name": "sysfs", "pci_id": "sysfs"},
    )
    if device.driver in _PASS_THROUGH:
        return gpu, finding("passed-through", device.address, f"{name} is bound to {device.driver}")
    if device.driver is None:
        return gpu, finding("driver-missing", device.address, f"no kernel driver is bound to {name}")
    if device.driver not in _DRIVERS[device.vendor]:
        return gpu, finding("driver-missing", device.address, f"{name} is bound to {device.driver}")
    told = any(CODES[f.code].broken for f in findings if f.subject in {device.vendor, device.address})
    if asked and told:
        return gpu, None
    reason = f"{name} has its driver {device.driver}, and no interface describes it"
    return gpu, finding("gpu-half-removed", device.address, reason)
