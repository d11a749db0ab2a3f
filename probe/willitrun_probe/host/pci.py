"""What should be there: display and accelerator devices on the PCI bus, with or without a driver."""

from __future__ import annotations

from typing import NamedTuple

from willitrun_probe.machine import Vendor
from willitrun_probe.roots import Roots, to_integer

VENDORS: dict[int, Vendor] = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_DISPLAY = 0x03
_ACCELERATOR = 0x12
_BASE = "/sys/bus/pci/devices"
_NAME_FILES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


class PciDevice(NamedTuple):
    """One GPU or accelerator as the bus shows it."""

    address: str
    """`domain:bus:device.function`, lower case."""
    vendor: Vendor
    id: str
    """`vendor:device` in hexadecimal."""
    driver: str | None
    numa_node: int | None
    suspended: bool
    """Runtime power management has it asleep; some reads wake it, which takes seconds."""


def read_pci(roots: Roots) -> tuple[PciDevice, ...]:
    """Return the GPUs and accelerators of the known vendors, by address. Class codes: PCI code and ID assignment."""
    found: list[PciDevice] = []
    for address in roots.listing(_BASE):
        folder = f"{_BASE}/{address}"
        kind = roots.integer(f"{folder}/class")
        if kind is None or kind >> 16 not in {_DISPLAY, _ACCELERATOR}:
            continue
        vendor, device = roots.integer(f"{folder}/vendor"), roots.integer(f"{folder}/device")
        if vendor not in VENDORS or device is None:
            continue
        driver = roots.link(f"{folder}/driver")
        found.append(
            PciDevice(
                address=address.lower(),
                vendor=VENDORS[vendor],
                id=f"{vendor:04x}:{device & 0xFFFF:04x}",
                driver=driver.rpartition("/")[2] if driver else None,
                numa_node=numa_node(roots, address),
                suspended=roots.line(f"{folder}/power/runtime_status") == "suspended",
            )
        )
    return tuple(found)


def numa_node(roots: Roots, address: str) -> int | None:
    """Return the memory node a PCI device hangs on; None when the firmware does not say (-1)."""
    node = roots.integer(f"{_BASE}/{address}/numa_node")
    return node if node is not None and 0 <= node < 2**16 else None


def normal_address(text: str | None) -> str | None:
    """Spell a PCI address as sysfs does: `00000000:3B:00.0` is `0000:3b:00.0`; None when it is not one."""
    parts = (text or "").strip().lower().replace(".", ":").split(":")
    if len(parts) == 3:  # noqa: PLR2004 - the domain is optional
        parts = ["0", *parts]
    numbers = [to_integer(f"0x{part}") if part else None for part in parts]
    if len(numbers) != 4 or any(number is None or number < 0 for number in numbers):  # noqa: PLR2004
        return None
    domain, bus, device, function = (number or 0 for number in numbers)
    if domain >= 2**32 or bus > 0xFF or device > 0x1F or function > 7:  # noqa: PLR2004 - PCI's own limits
        return None
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def pci_name(roots: Roots, pci_id: str) -> str | None:
    """Look a device's name up in the system's pci.ids; None when there is no such file or entry."""
    vendor, _, device = pci_id.partition(":")
    for path in _NAME_FILES:
        text = roots.text(path)
        start = text.find(f"\n{vendor}  ") if text else -1
        if text is None or start < 0:
            continue
        for line in text[start + 1 :].splitlines()[1:]:
            if line.startswith(f"\t{device}  "):
                return line[7:].strip() or None
            if line and not line.startswith(("\t", "#")):
                break
    return None
