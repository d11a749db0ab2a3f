"""Put one machine together: the bus, vendor children beside the host's files, then what follows from both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from willitrun_probe.findings import finding
from willitrun_probe.gpus.spec import ABSENT, Libraries
from willitrun_probe.host.cpu import read_cpu
from willitrun_probe.host.memory import read_memory
from willitrun_probe.host.pci import PciDevice, read_pci
from willitrun_probe.host.storage import read_disks
from willitrun_probe.host.system import SystemFacts, host_findings, system_facts
from willitrun_probe.identity import machine_name, shape_hash
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Cpu, Disk, Engine, Finding, Gpu, Machine, Memory, Source
from willitrun_probe.roots import Roots
from willitrun_probe.vendors import Task, gpu_memory_nodes, interpret, start_readers, undriven

TIMEOUT_S = 20.0
"""Without persistence mode a driver needs one to three seconds per GPU at the first access
(NVIDIA driver-persistence documentation)."""
STORAGE_S = 2.0
"""A local file system answers in microseconds, a network one in milliseconds."""
_T = TypeVar("_T")


SYSTEM_LIBRARIES = Libraries()


def here(*, timeout_s: float = TIMEOUT_S, engines: bool = True, root: str = "/") -> Machine:
    """Collect this machine, or the tree below `root`, with the process's environment, clock and cache folder."""
    import os  # noqa: PLC0415 - the only place that looks at the process itself

    libraries = libraries_from(os.environ)
    if root.rstrip("/"):  # the libraries of this system say nothing about another one's files
        libraries = Libraries(libraries.nvml or ABSENT, libraries.amdsmi or ABSENT)
    return collect(
        roots=Roots(root),
        libraries=libraries,
        environment=os.environ,
        timeout_s=timeout_s,
        now=time.time(),
        engines=engines,
        engine_cache=engine_cache_file(os.environ),
    )


def libraries_from(environment: Mapping[str, str]) -> Libraries:
    """Return the libraries that WILLITRUN_NVML and WILLITRUN_AMDSMI name."""
    return Libraries(environment.get("WILLITRUN_NVML") or None, environment.get("WILLITRUN_AMDSMI") or None)


def engine_cache_file(environment: Mapping[str, str]) -> str | None:
    """Return where versions of engines are kept: the folder platformdirs names, without its import (40 ms)."""
    cache, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if not cache.startswith("/"):
        cache = f"{home}/.cache" if home.startswith("/") else ""
    return f"{cache}/willitrun-here/engines.json" if cache else None


def collect(
    *,
    roots: Roots,
    libraries: Libraries = SYSTEM_LIBRARIES,
    environment: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
    now: float,
    engines: bool = False,
    engine_cache: str | None = None,
    isolated: bool = True,
    transcript: dict[str, Reply] | None = None,
) -> Machine:
    """Describe a machine; whatever is sick on it ends in findings and never in an exception.

    `now` is seconds since the epoch. `engines` also asks the installed engines for their versions, which starts
    them (answers are kept in the file `engine_cache`). `isolated=False` runs the vendor readers in this process,
    for recordings whose answers are files. A recorder passes an empty `transcript` and finds the replies in it.
    """
    found: list[Finding] = []
    sources: list[Source] = []
    deadline = time.monotonic() + timeout_s
    guard = _Guard(found, sources)
    devices: tuple[PciDevice, ...] = guard("pci", lambda: read_pci(roots), ())
    children = start_readers(
        roots, libraries, environment, devices, deadline, isolated=isolated, record=transcript is not None
    )
    installed = _start_engines(roots, environment, engine_cache, deadline) if engines else None
    storage = Task(partial(_timed_disks, roots, environment), _no_disks)
    cpu = guard("cpu", lambda: read_cpu(roots), Cpu())
    memory = guard("memory", lambda: read_memory(roots), Memory())
    disks, source, stuck = storage.result(min(deadline, time.monotonic() + STORAGE_S))
    sources.append(source)
    found += stuck
    replies = {vendor: child.result() for vendor, child in children.items()}
    if transcript is not None:
        transcript.update(replies)
    coherent: frozenset[int] = guard("numa", lambda: gpu_memory_nodes(roots, replies), frozenset(), count=False)
    if coherent:
        memory = guard("memory-nodes", lambda: read_memory(roots, coherent), memory)
    host = Host(roots, environment, memory, devices)
    gpus: list[Gpu] = []
    for vendor, reply in replies.items():
        if reply.ending == "unstartable":
            found.append(finding("reader-failed", vendor, reply.reason, "Try again when the machine has more room."))
        told = guard(vendor, partial(interpret, vendor, reply, host), Interpretation(), count=False)
        gpus += told.gpus
        found += told.findings
        sources += told.sources
    gpus += guard("undriven", lambda: undriven(host, gpus, replies, found), [], count=False)
    shown = guard("visibility", lambda: _visible(gpus, environment, found), tuple(gpus), count=False)
    if installed is not None:
        engine_list, engine_findings = installed.result()
        found += engine_findings
    else:
        engine_list = ()
    found += [
        finding("gpu-suspended", device.address, "runtime power management had it asleep")
        for device in devices
        if device.suspended
    ]
    found += guard("host-findings", lambda: host_findings(roots, cpu, memory, disks), [], count=False)
    release = guard("os", lambda: system_facts(roots), SystemFacts(), count=False)
    machine = Machine(
        name=guard("name", lambda: machine_name(roots, environment), "unnamed", count=False),
        observed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        os=release.name,
        kernel=release.kernel,
        virtualization=release.virtualization,
        gpus=shown,
        cpu=cpu,
        memory=memory,
        disks=disks,
        engines=engine_list,
        sources=tuple(sources),
        findings=_unique(found),
    )
    return _with_hash(machine)


def _timed_disks(roots: Roots, environment: Mapping[str, str]) -> tuple[tuple[Disk, ...], Source, list[Finding]]:
    start = time.monotonic()
    disks = read_disks(roots, environment)
    return disks, _source("storage", "answered" if disks else "absent", start), []


def _no_disks(reason: str) -> tuple[tuple[Disk, ...], Source, list[Finding]]:
    """Describe folders whose file system does not answer: statvfs of a dead network mount blocks for ever."""
    late = "in time" in reason
    told = finding("model-folder-hangs" if late else "reader-failed", "storage", f"reading the model folders: {reason}")
    return (), Source(name="storage", outcome="failed", seconds=STORAGE_S if late else 0.0, reason=reason), [told]


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


def _visible(gpus: list[Gpu], environment: Mapping[str, str], found: list[Finding]) -> tuple[Gpu, ...]:
    if not gpus:
        return ()
    from willitrun_probe.visibility import apply  # noqa: PLC0415 - only where there is a GPU

    shown, findings = apply(tuple(gpus), environment)
    found += findings
    return shown


def _start_engines(roots: Roots, environment: Mapping[str, str], cache: str | None, deadline: float) -> Task:
    from willitrun_probe.runtimes import read_engines  # noqa: PLC0415 - only when asked

    def failed(reason: str) -> tuple[tuple[Engine, ...], list[Finding]]:
        return (), [finding("reader-failed", "engines", reason)]

    return Task(lambda: read_engines(roots, environment, cache=cache, deadline=deadline), failed)


def _unique(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple({(f.code, f.subject): f for f in reversed(found)}.values())[::-1]


def _with_hash(machine: Machine) -> Machine:
    import msgspec  # noqa: PLC0415 - already loaded by `machine`

    return msgspec.structs.replace(machine, shape_hash=shape_hash(machine))
