"""Which GPUs an engine is shown: exactly the planned ones, by UUID wherever the driver takes UUIDs."""

from __future__ import annotations

from willitrun_here.launch.target import Target, everything_planned
from willitrun_probe.machine import Gpu

HIDDEN = "-1"
"""An index no GPU has hides them all; HIP takes an empty list for an unset one (ollama `docs/gpu.mdx`, GPU selection;
ROCm `rocclr/device/rocm/rocdevice.cpp`)."""
BUFFERS = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "metal": "MTL"}
CUDA_PREFIXES = ("GPU-", "MIG-")
"""Forms of a UUID that CUDA_VISIBLE_DEVICES takes (CUDA programming guide, environment variables); Jetson's driver
reports bare ones."""


def environment(target: Target) -> dict[str, str]:
    """Return the environment that gives the engine exactly the planned GPUs.

    Indexes are only used together with CUDA_DEVICE_ORDER=PCI_BUS_ID, because CUDA's own order is fastest first and
    NVML's is by bus (CUDA programming guide, environment variables).
    """
    match target.plan.backend:
        case "cpu":
            return hidden(target)
        case "cuda":
            return cuda(target)
        case "rocm":
            return rocm(target)
        case "vulkan" if "-dev" not in target.flags or target.plan.engine == "ollama":
            numbers = vulkan_numbers(target)
            return {} if numbers is None else {"GGML_VK_VISIBLE_DEVICES": ",".join(map(str, numbers))}
        case _:
            return {}


def hidden(target: Target) -> dict[str, str]:
    """Return the environment that hides all GPUs from a plan without any."""
    vendors = {gpu.vendor for gpu in target.machine.gpus}
    names = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES"}
    return {name: HIDDEN for vendor, name in names.items() if vendor in vendors}


def cuda(target: Target) -> dict[str, str]:
    """Return the environment of the CUDA back end."""
    uuids = [uuid for uuid in target.plan.gpu_uuids if uuid and uuid.startswith(CUDA_PREFIXES)]
    if len(uuids) == len(target.plan.gpu_uuids):
        return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    if everything_planned(target):
        return {}
    return cuda_by_number(target)


def cuda_by_number(target: Target) -> dict[str, str]:
    """Return the environment that names CUDA's GPUs by their place on the bus, for want of UUIDs."""
    indexes = target.plan.gpu_indexes
    places = ranks(target, [gpu for gpu in target.machine.gpus if gpu.vendor == "nvidia"])
    numbers = [place if index is None else index for index, place in zip(indexes, places, strict=True)]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}


def rocm(target: Target) -> dict[str, str]:
    """Return the environment of the ROCm back end; some consumer cards and APUs have no UUID there.

    ROCm numbers GPUs in the order of the kernel's topology, which follows the bus (ROCm documentation, GPU isolation).
    """
    uuids = [uuid for uuid in target.plan.gpu_uuids if uuid and uuid.startswith("GPU-")]
    if len(uuids) == len(target.plan.gpu_uuids):
        env = {"ROCR_VISIBLE_DEVICES": ",".join(uuids)}
        if any(gpu.vendor == "amd" and not gpu.visible for gpu in target.machine.gpus):
            # HIP counts within what ROCr shows, so a variable that hides GPUs here would hide these once more.
            env["HIP_VISIBLE_DEVICES"] = ",".join(map(str, range(len(uuids))))
        return env
    if everything_planned(target):
        return {}
    return rocm_by_number(target)


def rocm_by_number(target: Target) -> dict[str, str]:
    """Return the environment that names ROCm's GPUs by their place in the topology."""
    places = ranks(target, [gpu for gpu in target.machine.gpus if gpu.vendor == "amd" and gpu.usable])
    return {"HIP_VISIBLE_DEVICES": ",".join(map(str, places))}


def device_arguments(target: Target, *, container: bool = False) -> list[str]:
    """Return llama-server's own choice of devices: none for a plan without GPUs, some of the Vulkan devices."""
    plan = target.plan
    if "-dev" not in target.flags:
        return []
    if plan.backend == "cpu":
        return ["-dev", "none"] if any(gpu.visible and gpu.usable for gpu in target.machine.gpus) else []
    numbers = vulkan_numbers(target, container=container) if plan.backend == "vulkan" else None
    return [] if numbers is None else ["-dev", ",".join(f"Vulkan{number}" for number in numbers)]


def vulkan_numbers(target: Target, *, container: bool = False) -> list[int] | None:
    """Return the planned GPUs' numbers among the Vulkan devices; None when there are no others.

    The Vulkan loader sorts discrete devices before integrated ones and then by bus (`loader/loader_linux.c`), and
    ggml keeps that order. A container is given /dev/dri, through which NVIDIA's driver does not reach its cards.
    """
    chosen = planned_gpus(target)
    reached = {"amd", "intel"} if container else {"nvidia", "amd", "intel"}
    if container and any(gpu is not None and gpu.vendor == "nvidia" for gpu in chosen):
        return None
    seen = [gpu for gpu in target.machine.gpus if gpu.usable and gpu.vendor in reached]
    return None if len(chosen) == len(seen) else ranks(target, seen)


def buffer_names(target: Target) -> list[str]:
    """Return what the engine calls the memory of each planned GPU (ggml, `ggml_backend_buft_name`).

    CUDA and ROCm count what they are shown, Vulkan what there is.
    """
    remote = remote_addresses(target)
    if remote:
        return [f"RPC0[{address}]" for address in remote]
    count = len(target.plan.gpu_uuids)
    numbers = vulkan_numbers(target) if target.plan.backend == "vulkan" and "-dev" in target.flags else None
    prefix = BUFFERS.get(target.plan.backend, "")
    return [f"{prefix}{number}" for number in numbers or range(count)]


def remote_addresses(target: Target) -> tuple[str, ...]:
    """Return the servers of remote devices among the engine's own arguments."""
    if "--rpc" not in target.extra:
        return ()
    return tuple(target.extra[target.extra.index("--rpc") + 1].split(","))


def note(target: Target) -> str | None:
    """Say where the numbers of devices cannot be certain."""
    if target.plan.backend != "vulkan" or vulkan_numbers(target) is None:
        return None
    return "Vulkan numbers its devices itself (discrete ones first, by bus): compare with llama-server --list-devices."


def ranks(target: Target, among: list[Gpu]) -> list[int]:
    """Return the place of each planned GPU among some of the machine's, discrete ones first, by bus."""
    order = sorted(among, key=lambda gpu: (gpu.kind == "integrated", gpu.pci_address or ""))
    places = []
    for position, gpu in enumerate(planned_gpus(target)):
        places.append(next((place for place, other in enumerate(order) if other is gpu), position))
    return places


def planned_gpus(target: Target) -> list[Gpu | None]:
    """Return the machine's GPUs that are planned, in the plan's order: by UUID, else by name, index and free memory."""
    left = [gpu for gpu in target.machine.gpus if gpu.visible and gpu.usable]
    found: list[Gpu | None] = []
    plan = target.plan
    for use, uuid, index in zip(plan.devices, plan.gpu_uuids, plan.gpu_indexes, strict=False):
        alike = [gpu for gpu in left if gpu.uuid == uuid and gpu.index == index and gpu.name == use.name]
        alike.sort(key=lambda gpu: gpu.memory_free_bytes != use.free_bytes)
        found.append(alike[0] if alike else None)
        left = [gpu for gpu in left if gpu is not found[-1]]
    return found
