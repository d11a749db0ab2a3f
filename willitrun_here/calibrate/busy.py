"""How much of the processor other programs take while something is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

MOST_BUSY = 0.1
"""Share of the processor that others may take: threads wait for each other, so a tenth taken costs more than that."""


class Processor(NamedTuple):
    """Seconds of the processor since boot."""

    busy_s: float
    total_s: float
    own_s: float
    """Of this process, its ended children and an engine that runs for it."""


def processor(engine: int | None = None) -> Processor | None:
    """Read the counters; those of a running process `engine` count as our own. None without /proc."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, *rest = (int(one) / tick for one in first)
    busy = user + nice + system + sum(rest)
    own = os.times()
    spent = own.user + own.system + own.children_user + own.children_system
    if engine is not None:
        try:
            # The name in brackets may hold anything, brackets too.
            fields = (
                Path(f"/proc/{engine}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
        except OSError:
            return None
        spent += (int(fields[11]) + int(fields[12])) / tick  # utime and stime (proc_pid_stat(5))
    return Processor(busy, busy + idle + waiting, spent)


def others_share(since: Processor | None, now: Processor | None) -> float | None:
    """Return the share of the processor that other programs took between two readings, None where it is unknown."""
    if since is None or now is None or now.total_s <= since.total_s:
        return None
    return max(0.0, (now.busy_s - since.busy_s - (now.own_s - since.own_s)) / (now.total_s - since.total_s))
