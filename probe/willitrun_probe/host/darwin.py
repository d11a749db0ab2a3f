"""macOS: processor and memory from sysctl. A recording holds each value as a file `/sysctl/NAME`."""

from __future__ import annotations

from willitrun_probe.machine import Cpu, Memory
from willitrun_probe.roots import Roots, clean

NUMBERS = frozenset(
    {"hw.memsize", "iogpu.wired_limit_mb", "hw.physicalcpu", "hw.logicalcpu", "hw.perflevel0.physicalcpu",
     "vm.page_free_count", "vm.page_speculative_count", "vm.page_purgeable_count", "hw.pagesize",
     "hw.optional.arm.FEAT_BF16", "hw.optional.arm.FEAT_I8MM", "hw.optional.arm.FEAT_DotProd", "hw.optional.AdvSIMD"}
)  # fmt: skip
_LARGEST = 2**50
"""Above every size, page and core count there is; larger values are garbage."""
_MOST_CORES = 2**16
_LARGEST_PAGE = 2**20
_FLAGS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


def number(roots: Roots, name: str) -> int | None:
    """Return a numeric sysctl (sysctl(3)); None when the system does not know it."""
    if not roots.live:
        value = roots.integer(f"/sysctl/{name}")
    else:
        raw = _ask(name)
        value = int.from_bytes(raw, "little") if raw else None
    return value if value is not None and 0 <= value < _LARGEST else None


def text(roots: Roots, name: str) -> str | None:
    """Return a textual sysctl; None when the system does not know it."""
    if not roots.live:
        return roots.line(f"/sysctl/{name}")
    return clean(_ask(name).rstrip(b"\0").decode("utf-8", "replace")) or None


def read_cpu(roots: Roots) -> Cpu:
    """Read the processor; engines are given the performance cores."""
    cores, logical, fast = (
        count if (count := number(roots, name)) is not None and count < _MOST_CORES else None
        for name in ("hw.physicalcpu", "hw.logicalcpu", "hw.perflevel0.physicalcpu")
    )
    return Cpu(
        name=text(roots, "machdep.cpu.brand_string"),
        architecture=roots.architecture,
        sockets=1,
        physical_cores=cores or None,
        logical_cpus=logical or None,
        performance_cores=fast if fast and cores and fast < cores else None,
        usable_threads=fast or cores or None,
        flags=tuple(flag for name, flag in _FLAGS.items() if number(roots, name) == 1),
    )


def read_memory(roots: Roots) -> Memory:
    """Read the memory; free, speculative and purgeable pages can be had at once."""
    total, page = number(roots, "hw.memsize"), number(roots, "hw.pagesize")
    names = ("vm.page_free_count", "vm.page_speculative_count", "vm.page_purgeable_count")
    pages = [number(roots, name) for name in names]
    free = pages[0]
    available = None if free is None or not page or page > _LARGEST_PAGE else page * sum(count or 0 for count in pages)
    if available is not None:
        available = None if total is None else min(available, total)
    names_read = {"total_bytes": total, "available_bytes": available}
    return Memory(
        total_bytes=total,
        available_bytes=available,
        sources={name: "sysctl" for name, value in names_read.items() if value is not None},
    )


def _ask(name: str) -> bytes:
    import ctypes  # noqa: PLC0415 - only on macOS

    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return b"" if failed else buffer.raw[: size.value]
