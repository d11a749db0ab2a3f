"""How far the engine's log may be from the plan."""

from __future__ import annotations

from collections.abc import Sequence

from willitrun_here.launch.log import Compared

MIB = 1 << 20


def hold(rows: Sequence[Compared], copied_bytes: int = 0) -> None:
    """Assert the bars: cache, state and output exact (the log rounds to 10 kB), the rest within a few percent.

    An RPC device computes no batches of weights that stay on the host, so it lacks the copies of them that a GPU's
    compute buffer holds: at most `copied_bytes`, one such tensor.
    """
    assert rows
    for row in rows:
        off = abs(row.actual_bytes - row.planned_bytes)
        if row.kind in {"kv_cache", "recurrent", "output"}:
            assert off <= 0.02 * MIB, row
        elif row.kind == "compute" and row.device.startswith("RPC"):
            assert -8 * MIB <= row.planned_bytes - row.actual_bytes <= copied_bytes + 8 * MIB, row
        elif row.kind == "compute":
            assert off <= max(8 * MIB, 0.1 * row.planned_bytes), row
        elif row.device.startswith("RPC"):
            assert off <= 0.005 * row.planned_bytes, row
        else:
            # The host's line is the mapped range of the file, alignment and pages included.
            assert off <= max(2 * MIB, 0.07 * row.planned_bytes), row
