"""Which vendors to ask, how they are asked, and what comes of devices that no vendor interface described."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from willitrun_probe.gpus.spec import ABSENT, Libraries
from willitrun_probe.host.memory import numa_nodes
from willitrun_probe.host.pci import PciDevice
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply, ask
from willitrun_probe.machine import Finding, Gpu
from willitrun_probe.roots import Roots

_CHILD_ENVIRONMENT = {"RSMI_MUTEX_THREAD_ONLY": "1", "RSMI_MUTEX_TIMEOUT": "2"}
"""AMD's libraries keep a cross-process mutex in /dev/shm: a killed child must not leave it locked for every
later user (rocm_smi_lib #88, #89; amdsmi third_party/shared_mutex/shared_mutex.cc)."""
_HIDDEN_FROM_CHILD = ("NVML_MPS_DEVICE_ENUMERATION", "CUDA_VISIBLE_DEVICES")
_PASS_THROUGH = {"vfio-pci", "pci-stub", "xen-pciback"}


class Task(threading.Thread):
    """Work beside the main thread whose result is waited for; what it raises becomes its default."""

    def __init__(self, work: Callable[[], Any], default: Callable[[str], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._default = default
        self._value: Any = None
        self.start()

    def run(self) -> None:
        """Do the work."""
        try:
            self._value = self._work()
        except Exception as error:  # noqa: BLE001 - told by the caller as a failed source
            self._value = self._default(f"{type(error).__name__}: {error}"[:300])

    def result(self, deadline: float | None = None) -> Any:
        """Wait for the work, until a time on the monotonic clock, and return what came of it or its default."""
        self.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._default("gave no answer in time") if self.is_alive() else self._value


def start_readers(
    roots: Roots,
    libraries: Libraries,
    environment: Mapping[str, str],
    devices: tuple[PciDevice, ...],
    deadline: float,
    *,
    isolated: bool,
    record: bool = False,
) -> dict[str, Task]:
    """Start a reader per vendor that may have a device here, and none on a machine without."""
    child_environment = {k: v for k, v in environment.items() if k not in _HIDDEN_FROM_CHILD} | _CHILD_ENVIRONMENT
    tasks: dict[str, Task] = {}
    for vendor in _vendors(roots, libraries, devices):
        library = {"nvidia": libraries.nvml, "amd": libraries.amdsmi}.get(vendor)
        if isolated and roots.location is not None:
            arguments = {"vendor": vendor, "library": library, "root": roots.location, "record": record}
            work = partial(_in_child, arguments, deadline, child_environment)
        else:
            work = partial(_inline, vendor, library, roots)
        tasks[vendor] = Task(work, lambda reason: Reply([], "unstartable", reason, 0.0, "", {}, ()))
    return tasks


def _in_child(arguments: Mapping[str, Any], deadline: float, environment: Mapping[str, str]) -> Reply:
    return ask(arguments, timeout_s=max(0.05, deadline - time.monotonic()), environment=environment)


def _inline(vendor: str, library: str | None, roots: Roots) -> Reply:
    from willitrun_probe.child import read  # noqa: PLC0415 - only recordings are read in this process

    start = time.monotonic()
    lines: list[dict[str, Any]] = []
    read({"vendor": vendor, "library": library}, lines.append, roots=roots)
    return Reply(lines, "complete", "", round(time.monotonic() - start, 4), "", {}, ())


def _vendors(roots: Roots, libraries: Libraries, devices: tuple[PciDevice, ...]) -> tuple[str, ...]:
    """Name the vendors worth asking: on the bus, told by other evidence, or injected."""
    if roots.system == "Darwin":
        return ("apple",)
    on_bus = {device.vendor for device in devices if device.driver not in _PASS_THROUGH}
    nvidia = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/nvhost-ctrl", "/sys/devices/gpu.0")
    if (
        libraries.nvml not in {None, ABSENT}
        or "nvidia" in on_bus
        or is_wsl(roots)
        or any(roots.exists(path) for path in nvidia)
    ):
        on_bus.add("nvidia")
    if libraries.amdsmi not in {None, ABSENT} or "amd" in on_bus or roots.exists("/sys/class/kfd/kfd/topology/nodes/1"):
        on_bus.add("amd")
    return tuple(vendor for vendor in ("nvidia", "amd", "intel") if vendor in on_bus)


def is_wsl(roots: Roots) -> bool:
    """Say whether this is a WSL2 virtual machine with the GPU bridge (learn.microsoft.com, WSL GPU compute)."""
    return roots.exists("/dev/dxg")


def interpret(vendor: str, reply: Reply, host: Host) -> Interpretation:
    """Turn one vendor's answers into GPUs, findings and sources."""
    import importlib  # noqa: PLC0415 - each vendor's module is loaded only where there is a device of it

    module = importlib.import_module(f"willitrun_probe.gpus.{vendor}")
    told: Interpretation = module.interpret(reply, host)
    return told


def gpu_memory_nodes(roots: Roots, replies: Mapping[str, Reply]) -> frozenset[int]:
    """Return the NUMA nodes that are a GPU's own memory: without CPUs, on a machine with coherent NVIDIA GPUs.

    On Grace Hopper the kernel lists the GPU's HBM as nodes and counts it in MemTotal (nvml.h, addressing mode ATS;
    /proc/driver/nvidia/gpus/*/numa_status). Elsewhere a node without CPUs is CXL memory and is RAM.
    """
    reply = replies.get("nvidia")
    if reply is None:
        return frozenset()
    from willitrun_probe.gpus.nvidia import coherent  # noqa: PLC0415

    if not coherent(reply.lines) and not any(
        roots.exists(f"/proc/driver/nvidia/gpus/{name}/numa_status")
        for name in roots.listing("/proc/driver/nvidia/gpus")
    ):
        return frozenset()
    nodes = numa_nodes(roots)
    return frozenset(node.node for node in nodes if node.cpus == 0) if any(node.cpus for node in nodes) else frozenset()


def undriven(host: Host, gpus: list[Gpu], replies: Mapping[str, Reply], found: list[Finding]) -> list[Gpu]:
    """Return the devices on the bus that no interface described, with the reason."""
    from willitrun_probe.gpus.undriven import describe  # noqa: PLC0415 - only where there is one

    known = {gpu.pci_address for gpu in gpus}
    missing = [device for device in host.devices if device.address not in known]
    extra: list[Gpu] = []
    for device in missing:
        gpu, finding_ = describe(device, host.roots, asked=device.vendor in replies, findings=found)
        if gpu is not None:
            extra.append(gpu)
        if finding_ is not None:
            found.append(finding_)
    return extra
