"""Keeping what a launch measured: for this machine's next answers, and for its next report to a fleet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from willitrun_here.fleet.document import MeasuredRun
    from willitrun_here.launch.run import Comparison
    from willitrun_here.launch.target import Target

MOST_TEXT = 256
"""Longest name that a report takes."""


def keep(target: Target, comparison: Comparison, environment: Mapping[str, str] = os.environ) -> None:
    """Keep a comparison in both places; one that cannot be written loses the figures and nothing else."""
    from willitrun_here.calibrate.runs import keep_measured  # noqa: PLC0415 - only when something was measured
    from willitrun_here.fleet.agent import record_run  # noqa: PLC0415
    from willitrun_here.fleet.identity import state_directory  # noqa: PLC0415
    from willitrun_here.launch.run import crowded  # noqa: PLC0415

    if comparison.probe is None:
        return
    if not crowded(comparison, target.plan):
        keep_measured(target, comparison)
    try:
        record_run(state_directory(environment), measured_run(target, comparison))
    except OSError:
        return


def measured_run(target: Target, comparison: Comparison) -> MeasuredRun:
    """Return a comparison as a fleet's report carries it; memory is that of the buffers both sides name.

    Speeds of a machine that others kept busy are left out.
    """
    from willitrun_here.fleet.document import MeasuredRun  # noqa: PLC0415 - only when something was measured
    from willitrun_here.launch.run import crowded  # noqa: PLC0415

    plan, rows = target.plan, comparison.buffers
    probe = None if crowded(comparison, plan) else comparison.probe
    return MeasuredRun(
        run_id=uuid4(),
        model=target.spec.name[:MOST_TEXT],
        engine=plan.engine,
        measured_at=datetime.now(UTC),
        quant=plan.quant[:MOST_TEXT],
        context_tokens=plan.context_tokens,
        decode_tokens_per_s=None if probe is None else probe.decode_tokens_per_s,
        prefill_tokens_per_s=None if probe is None else probe.prefill_tokens_per_s,
        memory_bytes=sum(row.actual_bytes for row in rows) or None,
        expected_decode_tokens_per_s=comparison.planned_decode_tokens_per_s,
        expected_memory_bytes=sum(row.planned_bytes for row in rows) or None,
    )
