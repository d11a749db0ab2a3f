"""From a probed machine to what the planner sees: usable GPUs of one back end, merged with their data sheets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from msgspec import structs

from willitrun_catalog.datasheet import Datasheet
from willitrun_estimator.device import Backend, Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.families import family
from willitrun_estimator.request import Request
from willitrun_probe.machine import Gpu, Machine

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "nvidia": ("cuda", "vulkan"),
    "amd": ("rocm", "vulkan"),
    "intel": ("vulkan",),
    "apple": ("metal",),
}
"""Back ends that reach a vendor's GPUs, the preferred one first."""

PCIE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Per lane and direction after line coding (PCI Express base specification)."""
LINK_EFFICIENCY = 0.8
"""Share of the link that pinned copies reach: 12.2 of 15.8 GB/s on a P100 with PCIe 3.0 x16
(github.com/mpicbg-scicomp/gearshifft, pull request 82), 23.9 to 26.4 of 31.5 GB/s on RTX 4090 with PCIe 4.0 x16
(github.com/NVIDIA/nvbandwidth, issue 15)."""


ASSUMED_DISK_BYTES_PER_S = 0.5e9
"""What a SATA SSD reads in sequence: 6 Gbit/s less 8b/10b coding and protocol (Serial ATA specification 3.0)."""


FindDatasheet = Callable[[Gpu], Datasheet | None]
"""Looks a probed GPU up by PCI id, then by name and memory."""


def devices(machine: Machine, request: Request, find: FindDatasheet) -> Devices:
    """Merge a machine with the data sheets into what the planner may use.

    Hidden and unusable GPUs are left out, and so are those the chosen back end does not reach: an engine runs one
    back end. Raises EstimatorError when the asked back end reaches nothing here.
    """
    usable = [gpu for gpu in machine.gpus if gpu.visible and gpu.usable]
    backend = chosen_backend(usable, request.backend)
    gpus = [] if backend == "cpu" else [gpu for gpu in usable if backend in BACKENDS[gpu.vendor]]
    discrete = [gpu for gpu in gpus if gpu.kind != "integrated"]
    merged = (device(gpu, backend, find(gpu), request) for gpu in (discrete or gpus))
    kept = [one for one in merged if one is not None]
    if any(gpu.kind == "mig" for gpu in discrete or gpus):
        kept = largest_free(kept)
    vllm = next((engine.version for engine in machine.engines if engine.name == "vllm"), None)
    return Devices(name=machine.name, gpus=tuple(kept), host=host(machine), vllm_version=vllm)


def largest_free(planned: Iterable[Device]) -> list[Device]:
    """Keep the device with most free memory: a CUDA process gets one MIG instance (NVIDIA MIG user guide, CUDA)."""
    return sorted(planned, key=lambda one: -one.memory_free_bytes)[:1]


def chosen_backend(usable: list[Gpu], asked: str | None) -> Backend:
    """Return the back end to plan for: the one asked for, else the native one with the most memory."""
    if asked == "cpu" or (asked is None and not usable):
        return "cpu"
    if asked is None:
        memory: dict[Backend, int] = {}
        for gpu in usable:
            native = BACKENDS[gpu.vendor][0]
            memory[native] = memory.get(native, 0) + (gpu.memory_free_bytes or 0)
        return max(memory, key=lambda name: memory[name])
    for gpu in usable:
        for name in BACKENDS[gpu.vendor]:
            if name == asked:
                return name
    raise EstimatorError(
        f"the {asked} back end reaches no GPU of this machine",
        f"here: {', '.join(sorted({gpu.name for gpu in usable})) or 'no usable GPU'}",
    )


def device(gpu: Gpu, backend: Backend, sheet: Datasheet | None, request: Request) -> Device | None:
    """Merge one GPU with its data sheet; None when even its memory is unknown (the probe's findings say why)."""
    total = gpu.memory_total_bytes
    if total is None and sheet is not None:
        whole = sheet.memory_usable_bytes or sheet.memory_bytes
        total = None if whole is None else whole // sheet.dies
    free = gpu.memory_free_bytes
    if request.assume_idle and total is not None:
        free = total - (gpu.memory_reserved_bytes or 0)
    if total is None or free is None:
        return None
    share = compute_share(gpu, sheet)
    peers = [link.bytes_per_s for link in gpu.links if link.peer != "host" and link.bytes_per_s]
    return Device(
        name=gpu.name,
        backend=backend,
        family=family(
            vendor=gpu.vendor,
            compute_capability=gpu.compute_capability or (sheet.compute_capability if sheet else None),
            gfx_target=gpu.gfx_target or (sheet.gfx_target if sheet else None),
            name=gpu.name,
        ),
        memory_total_bytes=total,
        memory_free_bytes=free,
        bandwidth_bytes_per_s=bandwidth(gpu, sheet),
        flops_per_s=scaled(sheet.fp16_flops_per_s, share) if sheet else None,
        fp32_flops_per_s=scaled(sheet.fp32_flops_per_s, share) if sheet else None,
        int8_ops_per_s=scaled(sheet.int8_ops_per_s, share) if sheet else None,
        power_watts=scaled(gpu.power_limit_w or (sheet.power_watts if sheet else None), share),
        inline_ecc=inline_ecc(sheet),
        multiprocessors=gpu.multiprocessors if gpu.multiprocessors is not None else multiprocessors(sheet),
        link_bytes_per_s=link(gpu, sheet),
        unified=gpu.unified,
        uuid=gpu.uuid,
        index=gpu.index,
        pci_address=gpu.pci_address,
        numa_node=gpu.numa_node,
        compute_capability=gpu.compute_capability or (sheet.compute_capability if sheet else None),
        gfx_target=gpu.gfx_target or (sheet.gfx_target if sheet else None),
        display_active=bool(gpu.display_active),
        sheet=sheet.name if sheet else None,
        peer_bytes_per_s=max(peers, default=None),
        driver_version=gpu.driver_version,
    )


_INLINE_ECC = re.compile(r"NVIDIA (Tesla|[AL]\d)")


def inline_ecc(sheet: Datasheet | None) -> bool:
    """Tell whether error correction shares the memory: NVIDIA's data-centre cards with GDDR have it on by default.

    HBM keeps the check bits apart; cards for workstations and games come with it off (NVIDIA, `nvidia-smi` manual,
    ECC mode; product briefs of A40, L40 and T4).
    """
    return sheet is not None and (sheet.memory_type or "").startswith("GDDR") and bool(_INLINE_ECC.match(sheet.name))


FP32_PER_MULTIPROCESSOR = {
    "kepler": 316e9, "maxwell": 293e9, "gp100": 177e9, "pascal": 415e9, "volta": 191e9, "turing": 204e9,
    "turing16": 213e9, "a100": 180e9, "ampere": 426e9, "ada": 634e9, "hopper": 457e9, "blackwell-dc": 594e9,
    "blackwell": 616e9, "gcn": 180e9, "gcn5": 224e9, "cdna": 218e9, "cdna3": 282e9, "rdna1": 229e9, "rdna2": 306e9,
    "rdna3": 639e9, "rdna35": 371e9, "rdna4": 748e9,
}  # fmt: skip
"""FP32 rate of one multiprocessor or compute unit at its boost clock: medians of the sheets that give both."""


def family_of(sheet: Datasheet) -> str:
    """Return the family of the speed constants that a sheet's accelerator belongs to."""
    return family(
        vendor=sheet.vendor,
        compute_capability=sheet.compute_capability,
        gfx_target=sheet.gfx_target,
        name=sheet.name,
    )


def multiprocessors(sheet: Datasheet | None) -> int | None:
    """Return the number of SMs or CUs: the sheet's, else what its FP32 rate tells with its family's usual clock."""
    if sheet is not None and sheet.multiprocessors is not None:
        return sheet.multiprocessors // sheet.dies
    if sheet is None or sheet.fp32_flops_per_s is None:
        return None
    each = FP32_PER_MULTIPROCESSOR.get(family_of(sheet))
    return None if each is None else max(1, round(sheet.fp32_flops_per_s / sheet.dies / each))


def compute_share(gpu: Gpu, sheet: Datasheet | None) -> float:
    """Return the share of the sheet's compute units that a slice has, 1 for a whole GPU.

    By multiprocessors where the driver counts the slice's, else by memory (NVIDIA MIG user guide, profile tables). A
    card of several dies shows each of them as a GPU.
    """
    if sheet is None:
        return 1.0
    if gpu.kind not in {"mig", "partition"}:
        return 1.0 / sheet.dies
    if gpu.multiprocessors and sheet.multiprocessors:
        return min(1.0, gpu.multiprocessors / sheet.multiprocessors)
    if gpu.memory_total_bytes and sheet.memory_bytes:
        return min(1.0, gpu.memory_total_bytes / sheet.memory_bytes)
    return 1.0


def scaled(rate: float | None, share: float) -> float | None:
    """Return a share of a rate, None where the rate is unknown."""
    return None if rate is None else rate * share


def bandwidth(gpu: Gpu, sheet: Datasheet | None) -> float | None:
    """Return the memory bandwidth: the driver's figure where there is one, else the data sheet's share of the slice."""
    if gpu.memory_bandwidth_bytes_per_s is not None:
        return gpu.memory_bandwidth_bytes_per_s
    if sheet is None or sheet.bandwidth_bytes_per_s is None:
        return None
    if gpu.kind in {"mig", "partition"} and gpu.memory_total_bytes and sheet.memory_bytes:
        # MIG slices come in eighths of the memory system (NVIDIA MIG user guide, profile tables).
        return sheet.bandwidth_bytes_per_s * max(1, round(8 * gpu.memory_total_bytes / sheet.memory_bytes)) / 8
    return sheet.bandwidth_bytes_per_s / sheet.dies


def link(gpu: Gpu, sheet: Datasheet | None) -> float | None:
    """Return the host-to-device rate that copies reach, from the probed link or the data sheet's."""
    if gpu.unified:
        return None
    if gpu.pcie is not None and gpu.pcie.bytes_per_s is not None:
        return gpu.pcie.bytes_per_s * LINK_EFFICIENCY
    if sheet is not None and sheet.pcie_generation and sheet.pcie_lanes:
        return PCIE_BYTES_PER_S[sheet.pcie_generation] * sheet.pcie_lanes * LINK_EFFICIENCY
    return None


def host(machine: Machine) -> Host:
    """Return the host side; unknown RAM counts as none, and the probe's findings say so."""
    memory, cpu = machine.memory, machine.cpu
    reads = [disk.read_bytes_per_s for disk in machine.disks if disk.read_bytes_per_s]
    rate, basis = memory.bandwidth_bytes_per_s, memory.sources.get("bandwidth_bytes_per_s", "given")
    if rate is None:
        rate, basis = assumed_bandwidth(cpu.usable_threads or 1), "assumed"
    return Host(
        ram_total_bytes=memory.total_bytes or 0,
        ram_available_bytes=memory.available_bytes or 0,
        bandwidth_bytes_per_s=rate,
        bandwidth_basis=basis,
        threads=cpu.usable_threads or 1,
        cpu_name=cpu.name,
        flags=cpu.flags,
        product_rates=cpu.product_rates,
        block_s=cpu.block_s,
        side_s=cpu.side_s,
        disk_read_bytes_per_s=max(reads, default=ASSUMED_DISK_BYTES_PER_S),
        disk_basis="measured" if reads else "assumed",
    )


def assumed_bandwidth(threads: int) -> float:
    """Return the memory bandwidth to assume until `calibrate` has measured it.

    Two channels of DDR4-3200 (51.2 GB/s) at the 0.7 that desktops reach, and no more than 15 GB/s a core, which is
    what one thread reads.
    """
    return min(0.7 * 51.2e9, 15e9 * threads)


def idle(plan_on: Devices) -> Devices:
    """Return the same devices with all their memory free, for asking what closing other programs would bring."""
    gpus = tuple(structs.replace(gpu, memory_free_bytes=gpu.memory_total_bytes) for gpu in plan_on.gpus)
    return structs.replace(plan_on, gpus=gpus)
