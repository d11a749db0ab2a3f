"""Devices on the bus that no vendor interface described: no driver, given away, or not answering."""

from __future__ import annotations

from willitrun_probe.findings import CODES, finding
from willitrun_probe.gpus.processes import in_container
from willitrun_probe.host.links import read_pcie
from willitrun_probe.host.pci import PciDevice, pci_name
from willitrun_probe.machine import Finding, Gpu
from willitrun_probe.roots import Roots

_DRIVERS = {"nvidia": {"nvidia"}, "amd": {"amdgpu"}, "intel": {"i915", "xe"}}
_PASS_THROUGH = {"vfio-pci", "pci-stub", "xen-pciback"}
_WITHOUT_COMPUTE = {"radeon", "gma500", "simple-framebuffer"}
INTEL_INTEGRATED = "0000:00:02.0"
"""Integrated graphics are device 2 of the root bus on every Intel processor (Intel processor data sheets). Servers
leave them without a driver."""
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
    code, reason = _state(device, roots, name)
    mine = [f.code for f in findings if f.subject in {device.vendor, device.address}]
    told = any(CODES[told].broken or told == "reader-failed" for told in mine)
    if asked and told and code in {"gpu-forbidden", "gpu-half-removed"}:
        return gpu, None
    return gpu, finding(code, device.address, reason)


def _state(device: PciDevice, roots: Roots, name: str) -> tuple[str, str]:
    """Return the code for a device that nobody described, and the reason."""
    driver = device.driver
    if driver in _PASS_THROUGH:
        return "passed-through", f"{name} is bound to {driver}"
    if driver in _WITHOUT_COMPUTE or (driver is None and device.address == INTEL_INTEGRATED):
        return "driver-without-compute", f"{name} is bound to {driver or 'no driver'}, which has no compute support"
    if driver is None:
        return "driver-missing", f"no kernel driver is bound to {name}"
    if driver not in _DRIVERS[device.vendor]:
        return "driver-missing", f"{name} is bound to {driver}"
    if in_container(roots):
        return "gpu-forbidden", f"{name} is on the bus and was not given to this container"
    return "gpu-half-removed", f"{name} has its driver {driver}, and no interface describes it"
