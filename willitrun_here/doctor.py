"""From a machine's sources and findings to a diagnosis: what was tried, what is wrong, what to type."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from willitrun_here.fleet.reporting import Reporting
from willitrun_probe.findings import CODES
from willitrun_probe.machine import Finding, Gpu, Machine, Outcome

Severity = Literal["broken", "warning", "note"]
_NOTES = frozenset(
    {"memory-unified", "gpu-hidden", "gfx-override", "library-chatter", "passed-through", "confidential-computing",
     "free-memory-unknown", "memory-shared-by-partitions", "gpu-suspended", "bindings-missing", "holders-unknown"}
)  # fmt: skip
"""Facts worth knowing that need nothing done."""


class Trial(Struct, frozen=True, kw_only=True):
    """One interface that was asked."""

    source: str
    outcome: Outcome
    seconds: float
    reason: str


class Problem(Struct, frozen=True, kw_only=True):
    """One thing that is wrong or surprising."""

    severity: Severity
    code: str
    subject: str
    device: str
    """The name of the GPU it is about, empty for other subjects."""
    meaning: str
    reason: str
    advice: str


class Diagnosis(Struct, frozen=True, kw_only=True):
    """What `doctor` prints."""

    schema: str = "willitrun.diagnosis/1"
    machine: str
    gpus_usable: int
    gpus_present: int
    trials: tuple[Trial, ...]
    problems: tuple[Problem, ...]
    reporting: Reporting | None = None
    """How reporting into a fleet stands, None where this machine never reported or another one is looked at."""


def diagnose(machine: Machine, reporting: Reporting | None = None) -> Diagnosis:
    """Order what the probe found by how much it matters."""
    problems = [_problem(found, machine.gpus) for found in machine.findings]
    order = {"broken": 0, "warning": 1, "note": 2}
    return Diagnosis(
        machine=machine.name,
        gpus_usable=sum(gpu.usable and gpu.visible for gpu in machine.gpus),
        gpus_present=len(machine.gpus),
        trials=tuple(
            Trial(source=s.name, outcome=s.outcome, seconds=s.seconds, reason=s.reason) for s in machine.sources
        ),
        problems=tuple(sorted(problems, key=lambda problem: order[problem.severity])),
        reporting=reporting,
    )


def _problem(found: Finding, gpus: tuple[Gpu, ...]) -> Problem:
    code = CODES.get(found.code)
    severity: Severity = "warning"
    if code is not None and code.broken:
        severity = "broken"
    elif found.code in _NOTES:
        severity = "note"
    device = next((gpu.name for gpu in gpus if found.subject in {gpu.pci_address, gpu.uuid}), "")
    return Problem(
        severity=severity,
        code=found.code,
        subject=found.subject,
        device=device,
        meaning=code.meaning if code is not None else "",
        reason=found.reason,
        advice=found.advice,
    )
