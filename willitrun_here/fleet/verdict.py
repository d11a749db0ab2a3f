"""What one hardware shape's plan means for one machine with what is free on it now: values and pure functions."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from willitrun_estimator.plan import Answer, Plan
from willitrun_estimator.request import Request
from willitrun_here.fleet.query import Status, status_of
from willitrun_probe.machine import Machine
from willitrun_probe.units import format_bytes

Verdict = Literal["runs-now", "runs-if-idle", "does-not-run", "unknown"]

EIGHTHS = 8
IDLE = "idle"


class Need(Struct, frozen=True, kw_only=True):
    """What a plan takes of one device. `position` counts GPUs as the machine lists them; None is host memory."""

    device: str
    position: int | None
    needed_bytes: int


class ShapePlan(Struct, frozen=True, kw_only=True):
    """What the estimator said for one shape, as much of it as the table of machines shows."""

    runs: bool
    status: str
    message: str
    missing_bytes: int = 0
    quant: str | None = None
    engine: str | None = None
    context_tokens: int | None = None
    decode_tokens_per_s: float | None = None
    decode_low_tokens_per_s: float | None = None
    decode_high_tokens_per_s: float | None = None
    score: int = 0
    grade: str = "F"
    needs: tuple[Need, ...] = ()
    command: str | None = None


class DeviceNeed(Struct, frozen=True, kw_only=True, gc=False):
    """Both numbers of the inequality for one device; free is None when the machine does not say."""

    device: str
    needed_bytes: int
    free_bytes: int | None


class MachineVerdict(Struct, frozen=True, kw_only=True, gc=False):
    """Whether one machine runs the model, why, and with which plan and command."""

    agent_id: str
    name: str | None
    verdict: Verdict
    reason: str
    status: Status
    """`live`, `late` or `gone`, as in the table of machines."""
    fit: str | None = None
    quant: str | None = None
    engine: str | None = None
    context_tokens: int | None = None
    decode_tokens_per_s: float | None = None
    decode_low_tokens_per_s: float | None = None
    decode_high_tokens_per_s: float | None = None
    score: int = 0
    grade: str = "F"
    needs: tuple[DeviceNeed, ...] = ()
    command: str | None = None
    gpus: str | None = None


class Row(Struct, frozen=True, gc=False):
    """One machine as the question needs it. Rows are many and hold no cycles: the collector leaves them out."""

    agent_id: str
    name: str | None
    shape_key: str | None
    free: tuple[int | None, ...]
    """Host memory first, then the GPUs as listed."""
    received_at: float
    gpus: str | None


Plans = dict[tuple[str, str], ShapePlan]
"""(shape, level) to plan."""


def shape_plan(answer: Answer, machine: Machine, request: Request) -> ShapePlan:
    """Reduce an answer to what the table of machines shows, and hold it against the speed that was asked for."""
    plan = answer.plan
    if plan is None:
        return ShapePlan(
            runs=False, status=answer.fit.status, message=answer.fit.message, missing_bytes=-answer.fit.headroom_bytes
        )
    decode = answer.speed.decode_tokens_per_s if answer.speed is not None else None
    command = answer.commands.get(plan.engine)
    known = ShapePlan(
        runs=answer.fit.status != "too-large",
        status=answer.fit.status,
        message=answer.fit.message,
        quant=plan.quant,
        engine=plan.engine,
        context_tokens=plan.context_tokens,
        decode_tokens_per_s=decode.expected if decode is not None else None,
        decode_low_tokens_per_s=decode.low if decode is not None else None,
        decode_high_tokens_per_s=decode.high if decode is not None else None,
        score=answer.score,
        grade=answer.grade,
        needs=_needs(plan, machine),
        command=command.shell if command is not None else None,
    )
    if request.min_decode is not None and decode is not None and decode.expected < request.min_decode:
        slow = f"decodes {decode.expected:.1f} tokens/s, {request.min_decode:g} were asked for"
        return replace(known, runs=False, message=slow)
    return known


def _needs(plan: Plan, machine: Machine) -> tuple[Need, ...]:
    """Say which of the machine's devices a plan fills: by the vendor's index where it is given, else in order."""
    usable = [position for position, gpu in enumerate(machine.gpus) if gpu.visible and gpu.usable]
    by_index = {machine.gpus[position].index: position for position in usable}
    needs, gpus = [], 0
    for use in plan.devices:
        position = None
        if use.kind == "gpu":
            index = plan.gpu_indexes[gpus] if gpus < len(plan.gpu_indexes) else None
            position = by_index.get(index) if index is not None else None
            if position is None and gpus < len(usable):
                position = usable[gpus]
            gpus += 1
        needs.append(Need(device=use.name, position=position, needed_bytes=use.total_bytes))
    return tuple(needs)


def at_level(machine: Machine, level: str) -> Machine:
    """Return the machine with each device free to the eighths that a level says, host memory first."""
    eighths = [int(digit) for digit in level]
    memory, total = machine.memory, machine.memory.total_bytes
    return replace(
        machine,
        memory=replace(memory, available_bytes=None if total is None else total * eighths[0] // EIGHTHS),
        gpus=tuple(
            replace(
                gpu,
                memory_free_bytes=None
                if gpu.memory_total_bytes is None
                else gpu.memory_total_bytes * eighth // EIGHTHS,
            )
            for gpu, eighth in zip(machine.gpus, eighths[1:], strict=True)
        ),
    )


def busy_level(row: Row, plans: Plans, totals: tuple[int | None, ...]) -> str | None:
    """Return the level to plan on for a machine that runs the model only when idle; None for all others.

    A level is one digit a device, host first: the eighths that are free, rounded down. Only as many GPUs as the idle
    plan takes keep theirs, the freest ones, and RAM beyond a half counts as a half: fewer levels, and all are safe,
    because less is planned on than is there. `totals` are the shape's memory sizes; unknown free memory has no level.
    """
    if row.shape_key is None:
        return None
    idle = plans[row.shape_key, IDLE]
    if not idle.runs or holds(idle, row.free):
        return None
    digits = []
    for free, total in zip(row.free, totals, strict=True):
        if free is None or not total:
            return None
        digits.append(EIGHTHS if free >= total else free * EIGHTHS // total)
    return level_of(tuple(digits), sum([need.position is not None for need in idle.needs]))


@lru_cache(maxsize=1 << 14)
def level_of(digits: tuple[int, ...], taken: int) -> str:
    """Return the level of eighths that are free, host first: machines of a fleet share few of them."""
    freest = sorted(range(1, len(digits)), key=lambda place: -digits[place])[:taken]
    kept = [digits[place] if place in freest else 0 for place in range(1, len(digits))]
    return "".join(map(str, (min(digits[0], EIGHTHS // 2), *kept)))


def holds(plan: ShapePlan, free: tuple[int | None, ...]) -> bool:
    """Tell whether what is free holds every need of a plan."""
    for need in plan.needs:
        there = free[0 if need.position is None else need.position + 1]
        if there is None or there < need.needed_bytes:
            return False
    return True


def verdict_of(row: Row, level: str | None, plans: Plans, now: float) -> MachineVerdict:
    """Judge one machine, with both numbers of every inequality. `level` is what `busy_level` said."""
    status = status_of(now - row.received_at)
    if row.shape_key is None:
        return MachineVerdict(
            agent_id=row.agent_id, name=row.name, verdict="unknown", reason="its facts have not arrived", status=status
        )
    plan = plans[row.shape_key, IDLE]
    verdict: Verdict = "does-not-run"
    reason = plan.message
    if plan.runs and level is None and holds(plan, row.free):
        verdict = "runs-now"
    elif plan.runs:
        busy = plans.get((row.shape_key, level)) if level is not None else None
        if busy is not None and busy.runs:
            verdict, plan, reason = "runs-now", busy, busy.message
        else:
            verdict, reason = "runs-if-idle", shortage(plan, row.free)
    free = row.free
    needs = tuple(
        [
            DeviceNeed(
                device=need.device,
                needed_bytes=need.needed_bytes,
                free_bytes=free[0 if need.position is None else need.position + 1],
            )
            for need in plan.needs
        ]
    )
    return MachineVerdict(
        agent_id=row.agent_id, name=row.name, verdict=verdict, reason=reason, status=status, fit=plan.status,
        quant=plan.quant, engine=plan.engine, context_tokens=plan.context_tokens,
        decode_tokens_per_s=plan.decode_tokens_per_s, decode_low_tokens_per_s=plan.decode_low_tokens_per_s,
        decode_high_tokens_per_s=plan.decode_high_tokens_per_s, score=plan.score, grade=plan.grade, needs=needs,
        command=plan.command, gpus=row.gpus,
    )  # fmt: skip


def shortage(plan: ShapePlan, free: tuple[int | None, ...]) -> str:
    """Name the device that lacks most, with both numbers."""
    worst, unknown = None, None
    for need in plan.needs:
        there = free[0 if need.position is None else need.position + 1]
        if there is None:
            unknown = need.device
        elif there < need.needed_bytes and (worst is None or need.needed_bytes - there > worst[0]):
            worst = (need.needed_bytes - there, need, there)
    if worst is None:
        return f"free memory of {unknown} is not known"
    _, need, there = worst
    return f"{need.device} needs {format_bytes(need.needed_bytes)} and has {format_bytes(there)} free"
