"""Apple Silicon: one GPU that shares the host's memory up to a budget."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from willitrun_probe.findings import finding
from willitrun_probe.interpretation import Host, Interpretation
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Gpu, Source

GIB = 1024**3
_LARGEST_BYTES = 2**50
_MEASURED_BUDGETS_GIB = ((16, 11.84), (24, 17.76), (64, 48.0), (128, 107.5))
"""Default GPU budgets by memory size as users measured them (llmfit #754 and #570, sglang #29949, ds4 #893)."""


def interpret(reply: Reply, host: Host) -> Interpretation:
    """Turn the child's line into the GPU; its free part is also bounded by what the host has available."""
    line = next((line for line in reply.lines if line.get("kind") == "device"), None)
    if line is None:
        reason = f"sysctl {reply.reason or 'did not answer'}"
        failed = Source(name="sysctl", outcome="failed", seconds=reply.seconds, reason=reason)
        told = () if reply.ending == "unstartable" else (finding("driver-failed", "apple", reason),)
        return Interpretation((), told, (failed,))
    found: list[Finding] = []
    total = _size(line.get("hw.memsize"))
    wired = _size(line.get("iogpu.wired_limit_mb"))
    budget, source = _size(line.get("budget")), "metal"
    if not budget and wired:
        budget, source = wired * 1024**2, "sysctl"
    if not budget and total:
        budget, source = default_budget(total), "table"
    if total and budget:
        budget = min(budget, total)
    else:
        budget = None
        found.append(finding("memory-unknown", "apple", "neither Metal nor sysctl tells the GPU's budget"))
    available = host.memory.available_bytes
    free = min(budget, available) if budget is not None and available is not None else None
    gpu = Gpu(
        vendor="apple",
        name=line.get("machdep.cpu.brand_string") or line.get("hw.model") or "Apple GPU",
        kind="integrated",
        memory_total_bytes=budget,
        memory_free_bytes=free,
        unified=True,
        driver_version=line.get("kern.osproductversion"),
        sources={"name": "sysctl"} | ({"memory_total_bytes": source} if budget else {}),
    )
    answered = Source(name="sysctl", outcome="answered", seconds=reply.seconds)
    return Interpretation((gpu,), tuple(found), (answered,))


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < _LARGEST_BYTES else None


def default_budget(total_bytes: int) -> int:
    """Return the GPU budget macOS gives by default, between the measured sizes by straight lines."""
    size = total_bytes / GIB
    table = _MEASURED_BUDGETS_GIB
    if size <= table[0][0]:
        return round(total_bytes * table[0][1] / table[0][0])
    for (low, low_budget), (high, high_budget) in pairwise(table):
        if size <= high:
            return round((low_budget + (high_budget - low_budget) * (size - low) / (high - low)) * GIB)
    return round(total_bytes * table[-1][1] / table[-1][0])
