"""The memory of an NVIDIA GPU: its own, the host's, or unknown; and who holds it."""

from __future__ import annotations

from typing import NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.gpus.answers import Answers
from willitrun_probe.gpus.processes import holder
from willitrun_probe.interpretation import Host
from willitrun_probe.machine import Finding, Holder

NOT_SUPPORTED = 3
_NOT_AVAILABLE = 2**64 - 1
_LARGEST_BYTES = 2**50
"""No GPU has a pebibyte; sentinels and garbage are far above."""
_ALL_OF_HOST = 0.9
_UNIFIED_PARTS = ("GB10", "Tegra", "Orin", "Thor", "Xavier", "nvgpu")
"""Names of NVIDIA parts without memory of their own (nvml.h on integrated GPUs; cosmos #180, nvtop #411, dcgm)."""
_HELD = 0.1
_UNTOLD_BYTES = 64 * 1024**2
"""More than this in use and nobody listed means that the list is not complete (containers hide processes)."""
_PROCESS_CALLS = ("Compute", "Graphics", "MPSCompute")


class Pool(NamedTuple):
    """Memory an engine can take from."""

    total: int | None
    free: int | None
    reserved: int | None
    unified: bool
    sources: dict[str, str]


def has_own(answers: Answers) -> bool:
    """Say whether a GPU shows memory hardware of its own: a memory bus, or a PCI Express link."""
    return bool(
        answers.positive("nvmlDeviceGetMemoryBusWidth")
        or answers.positive("nvmlDeviceGetMaxPcieLinkGeneration")
        or answers.positive("nvmlDeviceGetCurrPcieLinkGeneration")
    )


def read_pool(name: str, label: str, answers: Answers, host: Host, found: list[Finding]) -> Pool:
    """Decide where a GPU's memory is and read it.

    The driver answers "not supported" or 0 for a GPU that shares the host's memory, and on some firmware about the
    whole of the host's (nvml.h, nvmlDeviceGetMemoryInfo; cosmos #180, gpud #1170). The same answers from a card
    that has a memory bus or a PCI Express link mean that its memory is unknown.
    """
    sizes = _sizes(answers)
    host_total = host.memory.total_bytes
    integrated = any(part in name for part in _UNIFIED_PARTS)
    own = has_own(answers) and not integrated
    code = answers.code("nvmlDeviceGetMemoryInfo")
    absent = (sizes is None and code == NOT_SUPPORTED) or (sizes is not None and sizes[0] == 0)
    whole_host = bool(sizes and host_total and _ALL_OF_HOST <= sizes[0] / host_total <= 1 / _ALL_OF_HOST)
    if not own and (absent or whole_host or (integrated and sizes is None)):
        return _unified_pool(label, host, found)
    if sizes is None or sizes[0] == 0:
        reason = f"NVML answers {code}" if sizes is None else "NVML answers a total of 0 bytes"
        found.append(finding("memory-unknown", label, reason))
        return Pool(None, None, None, False, {})
    return _checked(label, sizes, found)


def read_slice_pool(label: str, answers: Answers, found: list[Finding]) -> Pool:
    """Read the memory of a MIG instance."""
    sizes = _sizes(answers)
    if sizes is None or sizes[0] == 0:
        attributes = answers.integers("nvmlDeviceGetAttributes_v2")
        mebibytes = attributes[8] if len(attributes) > 8 else 0  # noqa: PLR2004 - nvmlDeviceAttributes_t
        found.append(finding("free-memory-unknown", label, "NVML does not tell the memory of this instance"))
        if 0 < mebibytes < _LARGEST_BYTES // 1024**2:
            return Pool(mebibytes * 1024**2, None, None, False, {"memory_total_bytes": "nvml"})
        return Pool(None, None, None, False, {})
    return _checked(label, sizes, found)


def holders(
    label: str, answers: Answers, pool: Pool, host: Host, found: list[Finding], *, instance: int | None = None
) -> tuple[Holder, ...] | None:
    """Return the processes that hold memory of a GPU, largest first; None when they cannot be known."""
    records = _records(answers)
    if records is None:
        found.append(finding("holders-unknown", label, "NVML does not list processes here"))
        return None
    if instance is not None:
        records = [record for record in records if record[2] == instance]
    limit = pool.total if pool.total is not None else _LARGEST_BYTES
    for pid, used, _ in records:
        if not 0 < pid < 2**22 or not (used == _NOT_AVAILABLE or 0 <= used <= limit):
            reason = f"process {pid} with {used} bytes cannot be (driver and bindings disagree on the record)"
            found.append(finding("holders-unknown", label, reason))
            return None
    sizes: dict[int, int | None] = {}
    for pid, used, _ in records:
        known = None if used == _NOT_AVAILABLE else used
        sizes[pid] = max((size for size in (sizes.get(pid), known) if size is not None), default=None)
    in_use = None
    if pool.total is not None and pool.free is not None and not pool.unified:
        in_use = pool.total - pool.free - (pool.reserved or 0)
    if not sizes and in_use is not None and in_use > _UNTOLD_BYTES and pool.reserved is not None:
        reason = f"{in_use} bytes are in use and no process is listed (it may be outside this container)"
        found.append(finding("holders-unknown", label, reason))
        return None
    ordered = sorted(sizes.items(), key=lambda item: (-(item[1] or 0), item[0]))
    who = tuple(holder(host.roots, pid, size) for pid, size in ordered)
    if in_use is not None and pool.total and who and in_use > _HELD * pool.total:
        first = who[0]
        reason = f"{in_use} bytes are held, most by {first.name or 'a process'} ({first.pid})"
        found.append(finding("memory-held", label, reason))
    return who


def slice_holders(
    label: str, answers: Answers, parent: Answers, instance: int | None, pool: Pool, host: Host
) -> tuple[Holder, ...] | None:
    """Return the processes of one MIG instance: its own list, or the parent's records with its id."""
    unheeded: list[Finding] = []
    own = holders(label, answers, pool, host, unheeded)
    if own is not None or instance is None:
        return own
    return holders(label, parent, pool, host, unheeded, instance=instance)


def _sizes(answers: Answers) -> tuple[int, int, int | None] | None:
    """Return (total, free, reserved): the second version of the call where it works, the first one else."""
    second = answers.integers("nvmlDeviceGetMemoryInfo_v2")
    if len(second) == 4:  # noqa: PLR2004 - total, reserved, free, used
        return second[0], second[2], second[1]
    first = answers.integers("nvmlDeviceGetMemoryInfo")
    return (first[0], first[1], None) if len(first) == 3 else None  # noqa: PLR2004 - total, free, used


def _checked(label: str, sizes: tuple[int, int, int | None], found: list[Finding]) -> Pool:
    total, free, reserved = sizes
    if not 0 < total < _LARGEST_BYTES:
        found.append(finding("implausible-value", label, f"NVML answers a total of {total} bytes"))
        found.append(finding("memory-unknown", label, "the total cannot be true"))
        return Pool(None, None, None, False, {})
    sources = {"memory_total_bytes": "nvml", "memory_free_bytes": "nvml"}
    if not 0 <= free <= total:
        found.append(finding("implausible-value", label, f"NVML answers {free} of {total} bytes free"))
        found.append(finding("free-memory-unknown", label, "the free size cannot be true"))
        return Pool(total, None, None, False, {"memory_total_bytes": "nvml"})
    if reserved is not None and not 0 <= reserved <= total - free:
        found.append(finding("implausible-value", label, f"NVML answers {reserved} bytes reserved by the driver"))
        reserved = None
    return Pool(total, free, reserved, False, sources)


def _unified_pool(label: str, host: Host, found: list[Finding]) -> Pool:
    """Return the host's memory as the GPU's; preallocated huge pages are the pool where there are any.

    NVIDIA's guidance for DGX Spark: with huge pages configured only they can be allocated, and swap never counts
    (https://docs.nvidia.com/dgx/dgx-spark, known issues on reported memory).
    """
    total = host.memory.total_bytes
    huge = host.memory.huge_pages_free_bytes
    free = host.memory.available_bytes if huge is None else huge
    found.append(finding("memory-unified", label, "the driver shows no memory of its own, so the host's is used"))
    if total is None or free is None:
        found.append(finding("memory-unknown", label, "the host's memory is not known either"))
        return Pool(total, None, None, True, {})
    sources = {"memory_total_bytes": "procfs", "memory_free_bytes": "procfs"}
    return Pool(total, min(free, total), None, True, sources)


def _records(answers: Answers) -> list[tuple[int, int, int]] | None:
    """Return (pid, bytes, GPU instance) of every listed process; None when no list could be read."""
    found: list[tuple[int, int, int]] = []
    told = False
    for kind in _PROCESS_CALLS:
        for version in ("_v3", "_v2"):
            key = f"nvmlDeviceGet{kind}RunningProcesses{version}"
            if answers.code(key) is not None:
                continue
            values = answers.integers(key)
            if not values and answers.values(key):
                return None
            if kind != "MPSCompute" and key in answers:
                told = True
            found += [(values[i], values[i + 1], values[i + 2]) for i in range(0, len(values) - 3, 4)]
    return found if told else None
