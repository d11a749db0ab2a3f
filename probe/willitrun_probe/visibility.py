"""Which GPUs the environment lets engines see. Hidden ones stay in the inventory, marked.

CUDA: https://docs.nvidia.com/cuda/cuda-c-programming-guide, CUDA_VISIBLE_DEVICES. ROCm: "GPU isolation techniques",
https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html: ROCR_VISIBLE_DEVICES first, then
HIP_VISIBLE_DEVICES (or CUDA_VISIBLE_DEVICES, which HIP takes too) by index into what the first one left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from willitrun_probe.findings import finding
from willitrun_probe.gpus.floors import capability
from willitrun_probe.machine import Finding, Gpu


def apply(gpus: tuple[Gpu, ...], environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], list[Finding]]:
    """Return the GPUs as engines will see them: visible ones of each vendor in engine order, then hidden ones."""
    found: list[Finding] = []
    nvidia = [gpu for gpu in gpus if gpu.vendor == "nvidia"]
    amd = [gpu for gpu in gpus if gpu.vendor == "amd"]
    others = [gpu for gpu in gpus if gpu.vendor not in {"nvidia", "amd"}]
    shown_nvidia = _cuda(nvidia, environment, found)
    shown_amd = _rocm(amd, environment, found)
    ordered: list[Gpu] = []
    for name, everything, shown in (
        ("CUDA_VISIBLE_DEVICES", nvidia, shown_nvidia),
        ("ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES", amd, shown_amd),
    ):
        hidden = [gpu for gpu in everything if not any(gpu is one for one in shown)]
        ordered += shown
        for gpu in hidden:
            unusable = not gpu.usable
            ordered.append(gpu if unusable else msgspec.structs.replace(gpu, visible=False))
            if not unusable:
                found.append(finding("gpu-hidden", _label(gpu), f"{name} hides {gpu.name} from engines"))
    return (*ordered, *others), found


def _cuda(gpus: list[Gpu], environment: Mapping[str, str], found: list[Finding]) -> list[Gpu]:
    usable = [gpu for gpu in gpus if gpu.usable]
    if not usable:
        return []
    ordered, certain = _cuda_order(usable, environment)
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return ordered
    # an index names a physical GPU; of one in MIG mode it gives the first instance (NVIDIA MIG user guide)
    by_index = list({gpu.pci_address or gpu.uuid or id(gpu): gpu for gpu in reversed(ordered)}.values())[::-1]
    if not certain and any(token.strip().isdecimal() for token in text.split(",")):
        reason = f"CUDA_VISIBLE_DEVICES={text} counts in CUDA's order, which only CUDA knows exactly"
        found.append(finding("device-order-uncertain", "CUDA_VISIBLE_DEVICES", reason))
    return _select("CUDA_VISIBLE_DEVICES", text, by_index, partial(_by_uuid, gpus=ordered), found)


def _cuda_order(gpus: list[Gpu], environment: Mapping[str, str]) -> tuple[list[Gpu], bool]:
    """Return the GPUs in CUDA's order and whether that order is certain.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA puts the fastest first by a rule of its own; that changes nothing
    where all GPUs are alike. The guess is by compute capability, multiprocessors and memory.
    """
    by_bus = sorted(gpus, key=lambda gpu: (gpu.pci_address or "~", gpu.index or 0))
    alike = len({gpu.pci_id or gpu.name for gpu in gpus}) <= 1
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or alike:
        return by_bus, True
    return sorted(by_bus, key=_speed, reverse=True), False


def _speed(gpu: Gpu) -> tuple[tuple[int, int], int, int]:
    return capability(gpu), gpu.multiprocessors or 0, gpu.memory_total_bytes or 0


def _rocm(gpus: list[Gpu], environment: Mapping[str, str], found: list[Finding]) -> list[Gpu]:
    usable = [gpu for gpu in gpus if gpu.usable]
    if not usable:
        return []
    shown = usable
    text = environment.get("ROCR_VISIBLE_DEVICES")
    if text is not None:
        shown = _select("ROCR_VISIBLE_DEVICES", text, usable, partial(_by_uuid, gpus=usable), found)
    for name in ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_VISIBLE_DEVICES"):
        second = environment.get(name)
        if second is not None:
            return _select(name, second, shown, partial(_by_uuid, gpus=shown), found)
    return shown


def _select(
    name: str,
    text: str,
    by_index: Sequence[Gpu],
    by_uuid: Callable[[str], Gpu | None],
    found: list[Finding],
) -> list[Gpu]:
    """Read a list of indices and UUIDs as the vendors do: it ends at the first token that names nothing."""
    chosen: list[Gpu] = []
    for token in (part.strip() for part in text.split(",")):
        if token.isdecimal() and token.isascii():
            gpu = by_index[int(token)] if len(token) < 6 and int(token) < len(by_index) else None  # noqa: PLR2004
        else:
            gpu = by_uuid(token) if token else None
        if gpu is None:
            if token not in {"", "-1", "NoDevFiles", "none", "void"}:
                reason = f"{name}={text}: {token} names no GPU here, so the list ends before it"
                found.append(finding("visibility-invalid", name, reason))
            break
        if any(gpu is one for one in chosen):
            found.append(finding("visibility-invalid", name, f"{name}={text} names a GPU twice, which hides all"))
            return []
        chosen.append(gpu)
    return chosen


def _by_uuid(token: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """Find a GPU by UUID, by an unambiguous beginning of it, or by the old form `MIG-GPU-<uuid>/gi/ci`."""
    wanted = token.lower()
    if wanted.startswith("mig-gpu-"):
        wanted = wanted[4:].split("/")[0]
        matches = [gpu for gpu in gpus if gpu.kind == "mig" and (gpu.parent_uuid or "").lower() == wanted]
        return matches[0] if len(matches) == 1 else None
    if not wanted.startswith(("gpu-", "mig-")):
        return None
    matches = [gpu for gpu in gpus if (gpu.uuid or "").lower().startswith(wanted)]
    return matches[0] if len(matches) == 1 else None


def _label(gpu: Gpu) -> str:
    return gpu.uuid or gpu.pci_address or gpu.name
