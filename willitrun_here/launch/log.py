"""What llama-server says while it loads: buffer sizes per device, progress, and why it failed."""

from __future__ import annotations

import re

from msgspec import Struct

from willitrun_estimator.plan import Plan

MIB = 1024**2
KINDS = ("weights", "kv_cache", "recurrent", "compute", "output")

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_KIND = {"model": "weights", "KV": "kv_cache", "RS": "recurrent", "compute": "compute", "output": "output"}
_GPU = re.compile(r"(?:CUDA|ROCm|HIP|Vulkan|MTL|Metal|SYCL|RPC)(\d*)(?!.*_Host)")
_NO_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|cudaMalloc failed|ErrorOutOfDeviceMemory|"
    r"failed to create context|alloc_buffer.*failed|insufficient memory|std::bad_alloc",
    re.IGNORECASE,
)
_NOISE = re.compile(r"^\s*(?:\d+(?:[.:]\d+)+\s+)?(?:[IDWE]\s+)?")
"""A time and a level letter before the words: `0.00.123.456 E `."""
_FAILURE = re.compile(r"error|failed|fatal|unknown argument|invalid|abort|exception|unable", re.IGNORECASE)


class Buffer(Struct, frozen=True, kw_only=True):
    """One buffer the engine reported."""

    device: str
    """As the engine calls it: `CUDA0`, `CPU_Mapped`, `RPC0[127.0.0.1:50052]`."""
    kind: str
    """`weights`, `kv_cache`, `recurrent`, `compute` or `output`."""
    bytes: int


class Compared(Struct, frozen=True, kw_only=True):
    """One term of one device: planned against reported."""

    device: str
    kind: str
    planned_bytes: int
    actual_bytes: int

    @property
    def difference(self) -> float:
        """The relative difference; 0 when both are nothing."""
        if not self.planned_bytes:
            return 0.0 if not self.actual_bytes else float("inf")
        return self.actual_bytes / self.planned_bytes - 1


def buffers(lines: list[str]) -> list[Buffer]:
    """Return the buffers named in a log, in order."""
    found = []
    for line in lines:
        match = _BUFFER.search(line)
        if match:
            found.append(Buffer(device=match[1], kind=_KIND[match[2]], bytes=round(float(match[3]) * MIB)))
    return found


def gpu_number(device: str) -> int | None:
    """Return which GPU a buffer's device is, counting as the engine does; None for host memory."""
    match = _GPU.match(device)
    if match is None:
        return None
    return int(match[1] or 0)


def compare(plan: Plan, reported: list[Buffer], remote: tuple[str, ...] = ()) -> list[Compared]:
    """Hold the plan's buffers against the log's, per device and kind; host buffers of all names are one device.

    `remote` are the addresses given to `--rpc`, in order.

    `CPU_Mapped` is the mapped range of the file and `CPU_REPACK` a second copy of part of it, so for host weights
    the mapped range alone is compared where there is one.
    """
    actual: dict[tuple[int | None, str], int] = {}
    mapped = any(buffer.device == "CPU_Mapped" for buffer in reported)
    for buffer in reported:
        if mapped and buffer.device == "CPU_REPACK":
            continue
        # Remote devices count from 0 on every server, so it is the server's address that tells them apart.
        servers = [number for number, address in enumerate(remote) if f"[{address}]" in buffer.device]
        key = (servers[0] if servers else gpu_number(buffer.device), buffer.kind)
        actual[key] = actual.get(key, 0) + buffer.bytes
    rows = []
    for number, use in enumerate(plan.devices):
        where = None if use.kind == "host" else number
        planned = {
            "weights": use.weights_bytes,
            "kv_cache": use.kv_cache_bytes,
            "recurrent": use.recurrent_bytes,
            "compute": use.compute_bytes,
            "output": use.output_bytes,
        }
        for kind in KINDS:
            seen = actual.get((where, kind), 0)
            if planned[kind] or seen:
                rows.append(Compared(device=use.name, kind=kind, planned_bytes=planned[kind], actual_bytes=seen))
    return rows


def ran_out_of_memory(lines: list[str]) -> bool:
    """Tell whether loading failed because memory could not be had."""
    return any(_NO_MEMORY.search(line) for line in lines)


def own_words(lines: list[str], most: int = 6) -> str:
    """Return the last lines in which the engine itself says what went wrong, else simply its last lines."""
    spoken = [_NOISE.sub("", line).strip() for line in lines]
    failures = [line for line in spoken if _FAILURE.search(line)]
    return "\n".join((failures or [line for line in spoken if line])[-most:])
