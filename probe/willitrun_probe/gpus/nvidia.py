"""What NVML's answers mean: whole GPUs, MIG instances, unified parts, and devices that do not answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from willitrun_probe.findings import finding
from willitrun_probe.gpus import nvidia_memory as memory
from willitrun_probe.gpus.answers import Answers
from willitrun_probe.gpus.floors import below_floors
from willitrun_probe.gpus.nvidia_library import library_state
from willitrun_probe.gpus.nvidia_links import links_of
from willitrun_probe.host.links import pcie_bytes_per_s
from willitrun_probe.host.pci import normal_address, numa_node, pci_name
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Gpu, Pcie
from willitrun_probe.roots import clean

INVALID_INDEX, FORBIDDEN, NOT_FOUND, LOST = 2, 4, 6, 15
ATS = 2
_COMPUTE_MODES: dict[int | None, str] = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}
_VIRTUALIZATION = {1: "passthrough", 2: "vgpu", 3: "vgpu-host", 4: "vsga-host"}
_THROTTLES = {
    # nvml.h, nvmlClocksEventReasons; idle, application clocks and display clocks are no slow-down
    0x4: "software-power-cap",
    0x8: "hardware-slowdown",
    0x20: "software-thermal",
    0x40: "hardware-thermal",
    0x80: "power-brake",
}
_SERIOUS_THROTTLES = {"hardware-slowdown", "software-thermal", "hardware-thermal", "power-brake"}
_CORES_PER_MULTIPROCESSOR: dict[tuple[int, int | None], int] = {(3, None): 192, (6, 0): 64, (7, None): 64, (8, 0): 64}
"""By compute capability, where it is not 128."""
_POWER_CAPPED = 0.9
"""A limit below this share of the default is worth a finding."""


def coherent(lines: Iterable[Mapping[str, Any]]) -> bool:
    """Say whether a GPU's memory is addressed like the host's (Grace), so that it may be listed as RAM."""
    devices = (Answers(line.get("answers")) for line in lines if line.get("kind") == "device")
    return any(a.integer("nvmlDeviceGetAddressingMode") == ATS and memory.has_own(a) for a in devices)


def interpret(reply: Reply, host: Host) -> Interpretation:
    """Turn the child's lines into GPUs, findings and the source's record."""
    library: Mapping[str, Any] = next((x for x in reversed(reply.lines) if x.get("kind") == "library"), {})
    devices = {x["device"]: x for x in reply.lines if x.get("kind") == "device" and isinstance(x.get("device"), int)}
    pairs: Any = next((x.get("answers", {}) for x in reversed(reply.lines) if x.get("kind") == "pairs"), {})
    source, found, stand_ins = library_state(library, reply, host)
    system = Answers(library.get("answers"))
    gpus: list[Gpu] = list(stand_ins)
    by_target: dict[str, Gpu] = {}
    silent: list[tuple[int, str, str]] = []
    for index, line in sorted(devices.items()):
        if line.get("open") != 0:
            silent.append((index, *_open_failure(line.get("open"))))
            continue
        whole, slices, told = _device(index, line, system, host)
        found += told
        by_target[f"gpu{index}"] = whole
        gpus += slices or [whole]
    for index, reason in reply.lost.items():
        code = "gpu-crashes" if "crash" in reason or "ended" in reason else "gpu-hangs"
        silent.append((index, code, f"the library {reason} while this GPU was asked"))
    count = library.get("count")
    number = count[0] if isinstance(count, list) and count and isinstance(count[0], int) else 0
    silent += [
        (index, "gpu-hangs", "the time was over before this GPU was asked")
        for index in range(min(number, 256))
        if index not in devices and index not in reply.lost
    ]
    quiet, told = _silent_gpus(silent, gpus, host)
    found += told
    gpus += quiet
    linked, told = links_of(by_target, devices, pairs)
    found += told
    gpus = [_with_links(gpu, linked) for gpu in gpus]
    if system.integers("nvmlSystemGetConfComputeState")[1:2] == [1]:
        found.append(finding("confidential-computing", "nvidia", "the driver reports it as enabled"))
    found += below_floors(gpus, system.text("nvmlSystemGetDriverVersion"))
    return Interpretation(tuple(gpus), tuple(found), (source,))


def _device(index: int, line: Mapping[str, Any], system: Answers, host: Host) -> tuple[Gpu, list[Gpu], list[Finding]]:
    """Return a GPU, the MIG instances to plan on instead of it, and what is wrong with either."""
    answers = Answers(line.get("answers"))
    found: list[Finding] = []
    whole = _whole(index, answers, system, host, found)
    if answers.integers("nvmlDeviceGetMigMode")[:1] != [1]:
        return whole, [], found
    if answers.integers("nvmlDeviceGetMigMode")[1:2] == [0]:
        found.append(finding("mig-pending", whole.pci_address or whole.name, "MIG is on and will be off after a reset"))
    slices = [_slice(part, whole, answers, host, found) for part in line.get("slices") or () if isinstance(part, dict)]
    if not slices:
        found.append(
            finding(
                "mig-empty", whole.pci_address or whole.name, "MIG mode is on and no instance exists or is accessible"
            )
        )
        return msgspec.structs.replace(whole, usable=False), [], found
    subject = whole.pci_address or whole.name
    told = {"memory-unknown", "holders-unknown", "implausible-value"}
    found = [f for f in found if f.code not in told or f.subject != subject]
    return whole, slices, found


def _whole(index: int, answers: Answers, system: Answers, host: Host, found: list[Finding]) -> Gpu:
    pci = answers.values("nvmlDeviceGetPciInfo_v3")
    address = normal_address(str(pci[0])) if pci else None
    pci_id = _pci_id(pci)
    name = clean(answers.text("nvmlDeviceGetName")) or _fallback_name(pci_id, host)
    label = address or name
    cores = answers.positive("nvmlDeviceGetNumGpuCores")
    capability = answers.integers("nvmlDeviceGetCudaComputeCapability")
    major, minor = [*capability, 0, 0][:2]
    known = 0 < major < 100 and 0 <= minor < 100  # noqa: PLR2004 - what CUDA numbers look like
    compute_capability = f"{major}.{minor}" if known else None
    virtualization = _VIRTUALIZATION.get(answers.integer("nvmlDeviceGetVirtualizationMode") or 0)
    pool = memory.read_pool(name, label, answers, host, found)
    clock = answers.positive("nvmlDeviceGetMaxClockInfo:2")
    width = answers.positive("nvmlDeviceGetMemoryBusWidth")
    bandwidth = None
    if clock and width and not pool.unified and virtualization != "vgpu" and width <= 2**16 and clock < 10**6:
        bandwidth = 2.0 * clock * 1e6 * width / 8
    mode = _COMPUTE_MODES.get(answers.integer("nvmlDeviceGetComputeMode"))
    holders = memory.holders(label, answers, pool, host, found)
    usable = True
    if mode == "prohibited":
        usable = False
        found.append(finding("compute-prohibited", label, "nvidia-smi shows compute mode Prohibited"))
    elif mode == "exclusive-process" and holders:
        usable = False
        found.append(finding("compute-exclusive", label, f"process {holders[0].pid} has it"))
    limit, default = (answers.positive(f"nvmlDeviceGetPowerManagement{which}") for which in ("Limit", "DefaultLimit"))
    if limit and default and limit < _POWER_CAPPED * default:
        found.append(finding("power-capped", label, f"{limit / 1000:g} W of {default / 1000:g} W"))
    cuda = answers_cuda(system)
    sources = {"name": "nvml", **pool.sources}
    if bandwidth:
        sources["memory_bandwidth_bytes_per_s"] = "nvml"
    display = answers.integer("nvmlDeviceGetDisplayActive")
    return Gpu(
        vendor="nvidia",
        name=name,
        uuid=clean(answers.text("nvmlDeviceGetUUID")) or None,
        pci_address=address,
        pci_id=pci_id,
        kind="integrated" if pool.unified else "gpu",
        index=index,
        memory_total_bytes=pool.total,
        memory_free_bytes=pool.free,
        memory_reserved_bytes=pool.reserved,
        memory_bandwidth_bytes_per_s=bandwidth,
        memory_bus_bits=width if width and width <= 2**16 else None,
        memory_clock_hz=clock * 1e6 if clock and clock < 10**6 else None,
        unified=pool.unified,
        compute_capability=compute_capability,
        multiprocessors=multiprocessors(cores, major, minor) if known else None,
        driver_version=system.text("nvmlSystemGetDriverVersion"),
        runtime_version=cuda,
        usable=usable,
        display_active=None if display is None else display == 1,
        compute_mode=mode,
        virtualization=virtualization,
        numa_node=numa_node(host.roots, address) if address else None,
        pcie=_pcie(label, answers, found),
        power_limit_w=limit / 1000 if limit else None,
        power_default_w=default / 1000 if default else None,
        throttle_reasons=_throttles(label, answers, found),
        health=_health(label, answers, found),
        holders=holders,
        sources=sources,
    )


def _slice(part: Mapping[str, Any], whole: Gpu, parent: Answers, host: Host, found: list[Finding]) -> Gpu:
    """Describe a MIG instance: its own memory, the parent's identity, a share of the parent's bandwidth.

    A GPU has eight memory slices; an instance has as many as its memory is eighths of the whole, rounded
    (NVIDIA MIG user guide, profile tables: 1g.10gb of an H100 80GB has 1/8, 3g.40gb 4/8, 7g.80gb 8/8).
    """
    answers = Answers(part.get("answers"))
    name = clean(answers.text("nvmlDeviceGetName"))
    if not name or name == whole.name:
        name = f"{whole.name} MIG {part.get('slot')}"
    label = clean(answers.text("nvmlDeviceGetUUID")) or name
    pool = memory.read_slice_pool(label, answers, found)
    bandwidth = None
    if whole.memory_bandwidth_bytes_per_s and pool.total and whole.memory_total_bytes:
        eighths = min(8, max(1, round(8 * pool.total / whole.memory_total_bytes)))
        bandwidth = whole.memory_bandwidth_bytes_per_s * eighths / 8
    instance = answers.integer("nvmlDeviceGetGpuInstanceId")
    own = memory.slice_holders(label, answers, parent, instance, pool, host)
    attributes = answers.integers("nvmlDeviceGetAttributes_v2")
    return msgspec.structs.replace(
        whole,
        name=name,
        uuid=clean(answers.text("nvmlDeviceGetUUID")) or None,
        kind="mig",
        memory_total_bytes=pool.total,
        memory_free_bytes=pool.free,
        memory_reserved_bytes=pool.reserved,
        memory_bandwidth_bytes_per_s=bandwidth,
        multiprocessors=attributes[0] if attributes and 0 < attributes[0] < 2**16 else None,
        parent_uuid=whole.uuid,
        holders=own,
        display_active=None,
        sources={**whole.sources, **pool.sources},
    )


def multiprocessors(cores: int | None, major: int, minor: int) -> int | None:
    """Return the streaming multiprocessors of a GPU from its CUDA cores.

    Cores per multiprocessor by compute capability: CUDA C++ programming guide, compute capabilities (64 for 6.0,
    7.x and 8.0; 192 for 3.x; 128 for all others since 5.0).
    """
    if not cores:
        return None
    per = _CORES_PER_MULTIPROCESSOR.get((major, minor)) or _CORES_PER_MULTIPROCESSOR.get((major, None), 128)
    return cores // per if cores % per == 0 and cores // per < 2**16 else None


def answers_cuda(system: Answers) -> str | None:
    """Return the highest CUDA version the driver supports, `13.0` for 13000."""
    number = system.positive("nvmlSystemGetCudaDriverVersion_v2")
    return f"{number // 1000}.{number % 1000 // 10}" if number and number < 10**6 else None


def _pcie(label: str, answers: Answers, found: list[Finding]) -> Pcie | None:
    current, best, possible = (
        answers.positive(f"nvmlDeviceGet{which}PcieLinkGeneration") for which in ("Curr", "Max", "GpuMax")
    )
    width, widest = (answers.positive(f"nvmlDeviceGet{which}PcieLinkWidth") for which in ("Curr", "Max"))
    if not (current or best):
        return None
    if best and possible and best < possible < 16:  # noqa: PLR2004 - a sentinel is no generation
        reason = f"the slot reaches generation {best}, the GPU could use {possible}"
        found.append(finding("pcie-narrow", label, reason))
    elif width and widest and width < widest <= 32:  # noqa: PLR2004 - widest link there is
        found.append(finding("pcie-narrow", label, f"{width} of {widest} lanes are in use"))
    return Pcie(
        generation=current,
        width=width,
        max_generation=best,
        max_width=widest,
        bytes_per_s=pcie_bytes_per_s(best or current, width or widest),
    )


def _throttles(label: str, answers: Answers, found: list[Finding]) -> tuple[str, ...]:
    mask = answers.integer("nvmlDeviceGetCurrentClocksThrottleReasons")
    if mask is None or not 0 <= mask < 2**32:
        return ()
    reasons = tuple(word for bit, word in _THROTTLES.items() if mask & bit)
    serious = [reason for reason in reasons if reason in _SERIOUS_THROTTLES]
    if serious:
        found.append(finding("gpu-throttled", label, ", ".join(serious)))
    return reasons


def _health(label: str, answers: Answers, found: list[Finding]) -> tuple[str, ...]:
    problems: list[str] = []
    errors = answers.positive("nvmlDeviceGetTotalEccErrors:1:0")
    if errors and errors < 2**62:
        problems.append("ecc-uncorrected")
    rows = answers.integers("nvmlDeviceGetRemappedRows")
    if rows[2:3] == [1]:
        problems.append("row-remap-pending")
    if rows[3:4] == [1]:
        problems.append("row-remap-failed")
    if answers.integer("nvmlDeviceGetRetiredPagesPendingStatus") == 1:
        problems.append("page-retirement-pending")
    if problems:
        found.append(finding("gpu-unhealthy", label, ", ".join(problems)))
    return tuple(problems)


def _open_failure(code: Any) -> tuple[str, str]:
    if code == LOST:
        return "gpu-lost", "NVML says that this GPU is lost (15)"
    if code == FORBIDDEN:
        return "gpu-forbidden", "NVML counts this GPU and denies access to it (4)"
    if code in {INVALID_INDEX, NOT_FOUND}:
        return "not-there", f"NVML counts this GPU and knows nothing of it ({code})"
    return "gpu-failed", f"NVML gives no handle for this GPU ({code})"


def _silent_gpus(silent: list[tuple[int, str, str]], gpus: list[Gpu], host: Host) -> tuple[list[Gpu], list[Finding]]:
    """Describe devices that NVML counts and cannot open, by what the bus still knows of them."""
    known = {gpu.pci_address for gpu in gpus}
    rest = [device for device in host.devices if device.vendor == "nvidia" and device.address not in known]
    shown: list[Gpu] = []
    found: list[Finding] = []
    for index, code, reason in sorted(silent):
        device = rest.pop(0) if rest else None
        if device is None and code == "not-there":
            found.append(finding("implausible-value", "nvidia", f"NVML counts GPUs that are not there ({index})"))
            continue
        code = "gpu-failed" if code == "not-there" else code  # noqa: PLW2901 - it is there after all
        name = (pci_name(host.roots, device.id) if device else None) or f"NVIDIA GPU {index}"
        found.append(finding(code, device.address if device else name, reason))
        shown.append(
            Gpu(
                vendor="nvidia",
                name=name,
                index=index,
                usable=False,
                pci_address=device.address if device else None,
                pci_id=device.id if device else None,
                numa_node=device.numa_node if device else None,
            )
        )
    return shown, found


def _with_links(gpu: Gpu, linked: Mapping[str, tuple[Any, ...]]) -> Gpu:
    links = linked.get(gpu.uuid or gpu.pci_address or "")
    return msgspec.structs.replace(gpu, links=links) if links and gpu.kind != "mig" else gpu


def _pci_id(pci: list[Any]) -> str | None:
    if len(pci) < 2 or not isinstance(pci[1], int) or not 0 < pci[1] < 2**32:  # noqa: PLR2004 - address, ids
        return None
    return f"{pci[1] & 0xFFFF:04x}:{pci[1] >> 16:04x}"


def _fallback_name(pci_id: str | None, host: Host) -> str:
    return (pci_name(host.roots, pci_id) if pci_id else None) or f"NVIDIA GPU {pci_id or 'without a name'}"
