"""Put one machine together: bus first, vendor children in parallel with the host's files, then what follows from both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from willitrun_probe.findings import finding
from willitrun_probe.host.cpu import read_cpu
from willitrun_probe.host.memory import numa_nodes, read_memory
from willitrun_probe.host.pci import PciDevice, read_pci
from willitrun_probe.host.storage import read_disks
from willitrun_probe.identity import machine_name, shape_hash
from willitrun_probe.isolate import Reply, ask
from willitrun_probe.machine import Cpu, Engine, Finding, Gpu, Machine, Memory, Source
from willitrun_probe.roots import Roots

TIMEOUT_S = 20.0
"""Without persistence mode a driver needs one to three seconds per GPU at the first access
(NVIDIA driver-persistence documentation)."""
_CHILD_ENVIRONMENT = {"RSMI_MUTEX_THREAD_ONLY": "1", "RSMI_MUTEX_TIMEOUT": "2"}
"""AMD's libraries keep a cross-process mutex in /dev/shm: a killed child must not leave it locked for every
later user (rocm_smi_lib #88, #89; amdsmi third_party/shared_mutex/shared_mutex.cc)."""
_HIDDEN_FROM_CHILD = ("NVML_MPS_DEVICE_ENUMERATION", "CUDA_VISIBLE_DEVICES")
_PASS_THROUGH = {"vfio-pci", "pci-stub", "xen-pciback"}
_MANY_UNREADABLE = 8
_T = TypeVar("_T")


class Libraries(NamedTuple):
    """Vendor libraries to load instead of the system's; a `.spec` file is replayed. None: the system's own."""

    nvml: str | None = None
    amdsmi: str | None = None


class Interpretation(NamedTuple):
    """What a vendor's answers mean."""

    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]
    sources: tuple[Source, ...]


class Host(NamedTuple):
    """What interpreting a GPU needs to know of the machine around it."""

    roots: Roots
    environment: Mapping[str, str]
    memory: Memory
    devices: tuple[PciDevice, ...]


def here(*, timeout_s: float = TIMEOUT_S, engines: bool = False) -> Machine:
    """Collect the running machine with the process's own environment and clock."""
    import os  # noqa: PLC0415 - the only place that looks at the process itself

    libraries = Libraries(os.environ.get("WILLITRUN_NVML") or None, os.environ.get("WILLITRUN_AMDSMI") or None)
    return collect(
        roots=Roots(),
        libraries=libraries,
        environment=os.environ,
        timeout_s=timeout_s,
        now=time.time(),
        engines=engines,
    )


def collect(
    *,
    roots: Roots,
    libraries: Libraries = Libraries(),
    environment: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
    now: float,
    engines: bool = False,
    engine_cache: str | None = None,
    isolated: bool = True,
) -> Machine:
    """Describe a machine; whatever is sick on it ends in findings and never in an exception.

    `now` is seconds since the epoch. `engines` also asks the installed engines for their versions, which starts
    them (answers are kept in the file `engine_cache`). `isolated=False` runs the vendor readers in this process,
    for recordings whose answers are files.
    """
    found: list[Finding] = []
    sources: list[Source] = []
    deadline = time.monotonic() + timeout_s
    guard = _Guard(found, sources)
    devices = guard("pci", lambda: read_pci(roots), ())
    children = _start(roots, libraries, environment, devices, deadline, isolated=isolated)
    installed = _start_engines(roots, environment, engine_cache, deadline) if engines else None
    cpu = guard("cpu", lambda: read_cpu(roots), Cpu())
    memory = guard("memory", lambda: read_memory(roots), Memory())
    disks = guard("storage", lambda: read_disks(roots, environment), ())
    replies = {vendor: child.result() for vendor, child in children.items()}
    coherent = guard("numa", lambda: _gpu_memory_nodes(roots, replies), frozenset(), count=False)
    if coherent:
        memory = guard("memory-nodes", lambda: read_memory(roots, coherent), memory)
    host = Host(roots, environment, memory, devices)
    gpus: list[Gpu] = []
    for vendor, reply in replies.items():
        empty = Interpretation((), (), ())
        told = guard(vendor, lambda v=vendor, r=reply: _interpret(v, r, host), empty, count=False)  # type: ignore[misc]
        gpus += told.gpus
        found += told.findings
        sources += told.sources
    gpus += guard("undriven", lambda: _undriven(host, gpus, replies, found), [], count=False)
    shown = guard("visibility", lambda: _visible(gpus, environment, found), tuple(gpus), count=False)
    if installed is not None:
        engine_list, engine_findings = installed.result()
        found += engine_findings
    else:
        engine_list = ()
    found += guard("host-findings", lambda: _host_findings(roots, cpu, memory, disks), [], count=False)
    release = guard("os", lambda: _os_facts(roots), (None, None, None), count=False)
    machine = Machine(
        name=guard("name", lambda: machine_name(roots, environment), "unnamed", count=False),
        observed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        os=release[0],
        kernel=release[1],
        virtualization=release[2],
        gpus=shown,
        cpu=cpu,
        memory=memory,
        disks=disks,
        engines=engine_list,
        sources=tuple(sources),
        findings=_unique(found),
    )
    return _with_hash(machine)


class _Guard:
    """Runs one reader; its unexpected failure becomes a finding, so that the rest of the machine is told."""

    def __init__(self, findings: list[Finding], sources: list[Source]) -> None:
        self.findings = findings
        self.sources = sources

    def __call__(self, name: str, reader: Callable[[], _T], default: _T, *, count: bool = True) -> _T:
        start = time.monotonic()
        try:
            value = reader()
        except Exception as error:  # noqa: BLE001 - a sick machine must still be described
            reason = f"{type(error).__name__}: {error}"[:300]
            self.findings.append(finding("reader-failed", name, reason))
            self.sources.append(_source(name, "failed", start, reason))
            return default
        if count:
            self.sources.append(_source(name, "answered" if value else "absent", start))
        return value


def _source(name: str, outcome: Any, start: float, reason: str = "") -> Source:
    return Source(name=name, outcome=outcome, seconds=round(time.monotonic() - start, 4), reason=reason)


class _Task(threading.Thread):
    """Work beside the main thread whose result is waited for; what it raises becomes its default."""

    def __init__(self, work: Callable[[], Any], default: Callable[[str], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._default = default
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except Exception as error:  # noqa: BLE001 - told by the caller as a failed source
            self._value = self._default(f"{type(error).__name__}: {error}"[:300])

    def result(self) -> Any:
        self.join()
        return self._value


def _start(
    roots: Roots,
    libraries: Libraries,
    environment: Mapping[str, str],
    devices: tuple[PciDevice, ...],
    deadline: float,
    *,
    isolated: bool,
) -> dict[str, _Task]:
    """Start a reader per vendor that may have a device here, and none on a machine without."""
    child_environment = {k: v for k, v in environment.items() if k not in _HIDDEN_FROM_CHILD} | _CHILD_ENVIRONMENT
    tasks: dict[str, _Task] = {}
    for vendor in _vendors(roots, libraries, devices):
        library = {"nvidia": libraries.nvml, "amd": libraries.amdsmi}.get(vendor)
        if isolated and roots.location is not None:
            arguments = {"vendor": vendor, "library": library, "root": roots.location}

            def work(arguments: dict[str, Any] = arguments) -> Reply:
                left = max(0.05, deadline - time.monotonic())
                return ask(arguments, timeout_s=left, environment=child_environment)
        else:

            def work(vendor: str = vendor, library: str | None = library) -> Reply:
                return _inline(vendor, library, roots)

        tasks[vendor] = _Task(work, lambda reason: Reply([], "unstartable", reason, 0.0, "", {}, ()))
    return tasks


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
    if libraries.nvml or "nvidia" in on_bus or is_wsl(roots) or any(roots.exists(path) for path in nvidia):
        on_bus.add("nvidia")
    if libraries.amdsmi or "amd" in on_bus or roots.exists("/sys/class/kfd/kfd/topology/nodes/1"):
        on_bus.add("amd")
    return tuple(vendor for vendor in ("nvidia", "amd", "intel") if vendor in on_bus)


def is_wsl(roots: Roots) -> bool:
    """Say whether this is a WSL2 virtual machine with the GPU bridge (learn.microsoft.com, WSL GPU compute)."""
    return roots.exists("/dev/dxg")


def _interpret(vendor: str, reply: Reply, host: Host) -> Interpretation:
    if vendor == "nvidia":
        from willitrun_probe.gpus.nvidia import interpret  # noqa: PLC0415 - only where there is one
    elif vendor == "amd":
        from willitrun_probe.gpus.amd import interpret  # noqa: PLC0415
    elif vendor == "intel":
        from willitrun_probe.gpus.intel import interpret  # noqa: PLC0415
    else:
        from willitrun_probe.gpus.apple import interpret  # noqa: PLC0415
    return interpret(reply, host)


def _gpu_memory_nodes(roots: Roots, replies: Mapping[str, Reply]) -> frozenset[int]:
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


def _undriven(host: Host, gpus: list[Gpu], replies: Mapping[str, Reply], found: list[Finding]) -> list[Gpu]:
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


def _visible(gpus: list[Gpu], environment: Mapping[str, str], found: list[Finding]) -> tuple[Gpu, ...]:
    if not gpus:
        return ()
    from willitrun_probe.visibility import apply  # noqa: PLC0415 - only where there is a GPU

    shown, findings = apply(tuple(gpus), environment)
    found += findings
    return shown


def _start_engines(roots: Roots, environment: Mapping[str, str], cache: str | None, deadline: float) -> _Task:
    from willitrun_probe.runtimes import read_engines  # noqa: PLC0415 - only when asked

    def failed(reason: str) -> tuple[tuple[Engine, ...], list[Finding]]:
        return (), [finding("reader-failed", "engines", reason)]

    return _Task(lambda: read_engines(roots, environment, cache=cache, deadline=deadline), failed)


def _host_findings(roots: Roots, cpu: Cpu, memory: Memory, disks: tuple[Any, ...]) -> list[Finding]:
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


def _os_facts(roots: Roots) -> tuple[str | None, str | None, str | None]:
    """Return the distribution, the kernel release and the kind of virtual machine."""
    pretty = None
    for line in (roots.text("/etc/os-release") or "").splitlines():
        key, mark, value = line.partition("=")
        if mark and key == "PRETTY_NAME":
            pretty = value.strip().strip("\"'")[:200] or None
    kernel = roots.line("/proc/sys/kernel/osrelease")
    if roots.exists("/dev/dxg"):
        return pretty, kernel, "wsl2"
    if roots.exists("/.dockerenv") or roots.exists("/run/.containerenv"):
        return pretty, kernel, "container"
    product = f"{roots.line('/sys/class/dmi/id/sys_vendor') or ''} {roots.line('/sys/class/dmi/id/product_name') or ''}"
    for mark, kind in _VIRTUAL_MACHINES:
        if mark in product:
            return pretty, kernel, kind
    hypervisor = " hypervisor" in (roots.text("/proc/cpuinfo") or "")
    return pretty, kernel, "vm" if hypervisor else None


_VIRTUAL_MACHINES = (
    # DMI strings as systemd-detect-virt knows them (systemd, src/basic/virt.c)
    ("KVM", "kvm"), ("QEMU", "kvm"), ("Amazon EC2", "amazon"), ("VMware", "vmware"), ("VirtualBox", "oracle"),
    ("Google Compute Engine", "google"), ("Hyper-V", "microsoft"), ("Virtual Machine", "microsoft"), ("Xen", "xen"),
)  # fmt: skip


def _unique(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple({(f.code, f.subject): f for f in reversed(found)}.values())[::-1]


def _with_hash(machine: Machine) -> Machine:
    import msgspec  # noqa: PLC0415 - already loaded by `machine`

    return msgspec.structs.replace(machine, shape_hash=shape_hash(machine))
