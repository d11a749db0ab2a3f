"""The question that matters: which machines run this model now, if idle, or not, and with which plan.

A plan is computed once per hardware shape, question and catalog version and kept in the database. Machines whose
free memory does not hold the idle plan are grouped by how much of each device is free, in eighths rounded down, and
one more plan per group is computed on that floor: what fits there fits on every machine of the group.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Answer, Plan
from willitrun_estimator.request import Request
from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.document import State, digest
from willitrun_here.fleet.query import GONE_S, Status, status_of
from willitrun_here.fleet.summary import machine_of
from willitrun_probe.machine import Machine
from willitrun_probe.units import format_bytes

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Planner = Callable[[Machine, ModelSpec, Request], Answer]
"""The estimator's answer with commands; pure."""
Verdict = Literal["runs-now", "runs-if-idle", "does-not-run", "unknown"]

EIGHTHS = 8
IDLE = "idle"
QUESTIONS_KEPT = 64
MOST_NEW_PLANS = 256
"""Plans computed for one question beyond the idle ones; the fullest groups come first."""
_ORDER: dict[Verdict, int] = {"runs-now": 0, "runs-if-idle": 1, "does-not-run": 2, "unknown": 3}


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


class DeviceNeed(Struct, frozen=True, kw_only=True):
    """Both numbers of the inequality for one device; free is None when the machine does not say."""

    device: str
    needed_bytes: int
    free_bytes: int | None


class MachineVerdict(Struct, frozen=True, kw_only=True):
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


class Where(Struct, frozen=True, kw_only=True):
    """The answer over all machines, best first."""

    schema: str = "willitrun.where/1"
    model: str
    machines: tuple[MachineVerdict, ...]
    counts: dict[str, int]
    shapes: int
    plans_computed: int
    """How many plans this answer had to compute; 0 when all were known."""


class _Row(Struct, frozen=True):
    agent_id: str
    name: str | None
    shape_key: str | None
    free: tuple[int | None, ...]
    """Host memory first, then the GPUs as listed."""
    received_at: float
    gpus: str | None


Plans = dict[tuple[str, str], ShapePlan]
"""(shape, level) to plan."""


class Questions:
    """Answers `where` and remembers plans per shape, in the database and in memory."""

    def __init__(
        self, engine: Engine, planner: Planner, catalog_version: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._planner = planner
        self._version = catalog_version
        self._clock = clock
        self._plans: OrderedDict[str, Plans] = OrderedDict()
        self._machines: OrderedDict[str, Machine] = OrderedDict()

    def where(self, spec: ModelSpec, request: Request) -> Where:
        """Tell for every machine that is not gone whether it runs the model."""
        question = digest([msgspec.to_builtins(spec), msgspec.to_builtins(request)])
        now = self._clock()
        with self._engine.connect() as connection:
            rows = _rows(connection, now)
            shapes = Counter(row.shape_key for row in rows if row.shape_key is not None)
            machines = self._representatives(connection, shapes)
            plans = self._load(connection, question)
        wanted = [(shape, IDLE) for shape, _ in shapes.most_common() if (shape, IDLE) not in plans]
        new = self._compute(wanted, machines, spec, request)
        plans |= new
        busy = Counter(
            (row.shape_key, level)
            for row in rows
            if row.shape_key is not None and (level := _busy_level(row, plans, machines[row.shape_key])) is not None
        )
        wanted = [key for key, _ in busy.most_common() if key not in plans][:MOST_NEW_PLANS]
        more = self._compute(wanted, machines, spec, request)
        plans |= more
        self._save(question, new | more)
        verdicts = sorted(
            (_verdict(row, plans, machines, now) for row in rows),
            key=lambda item: (_ORDER[item.verdict], -item.score, -(item.decode_tokens_per_s or 0), item.name or ""),
        )
        return Where(
            model=spec.name,
            machines=tuple(verdicts),
            counts=dict(Counter(item.verdict for item in verdicts)),
            shapes=len(shapes),
            plans_computed=len(new) + len(more),
        )

    def _representatives(self, connection: Connection, shapes: Iterable[str]) -> dict[str, Machine]:
        """Return one machine of each shape; device ids are left out, as commands must not name another machine's."""
        missing = [shape for shape in shapes if shape not in self._machines]
        for start in range(0, len(missing), 500):
            chunk = missing[start : start + 500]
            columns = tables.machine.c
            first = (
                select(columns.shape_key, func.min(columns.facts_hash).label("facts_hash"))
                .where(columns.shape_key.in_(chunk))
                .group_by(columns.shape_key)
                .subquery()
            )
            documents = select(first.c.shape_key, tables.facts.c.document).join_from(
                first, tables.facts, first.c.facts_hash == tables.facts.c.facts_hash
            )
            for shape, document in connection.execute(documents):
                self._machines[shape] = _anonymous(machine_of(document, State(), ""))
        return {shape: self._machines[shape] for shape in shapes}

    def _load(self, connection: Connection, question: str) -> Plans:
        known = self._plans.get(question)
        if known is not None:
            self._plans.move_to_end(question)
            return known
        columns = tables.shape_plan.c
        rows = connection.execute(
            select(columns.shape_key, columns.level, columns.document).where(
                columns.question == question, columns.catalog_version == self._version
            )
        )
        decoder = msgspec.json.Decoder(ShapePlan)
        known = {(shape, level): decoder.decode(document) for shape, level, document in rows}
        self._plans[question] = known
        if len(self._plans) > QUESTIONS_KEPT:
            self._plans.popitem(last=False)
        return known

    def _compute(
        self, wanted: list[tuple[str, str]], machines: dict[str, Machine], spec: ModelSpec, request: Request
    ) -> Plans:
        return {(shape, level): self._plan(machines[shape], level, spec, request) for shape, level in wanted}

    def _plan(self, machine: Machine, level: str, spec: ModelSpec, request: Request) -> ShapePlan:
        if level == IDLE:
            machine, request = (
                _at_level(machine, str(EIGHTHS) * (len(machine.gpus) + 1)),
                replace(request, assume_idle=True),
            )
        else:
            machine = _at_level(machine, level)
        try:
            return shape_plan(self._planner(machine, spec, request), machine, request)
        except EstimatorError as error:
            return ShapePlan(runs=False, status="too-large", message=str(error))

    def _save(self, question: str, plans: Plans) -> None:
        if not plans:
            return
        insert: Any = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        now = self._clock()
        rows = [
            {
                "shape_key": shape, "level": level, "question": question, "catalog_version": self._version,
                "document": msgspec.json.encode(plan).decode(), "computed_at": now,
            }
            for (shape, level), plan in plans.items()
        ]  # fmt: skip
        with writing(self._engine) as connection:
            connection.execute(insert(tables.shape_plan).on_conflict_do_nothing(), rows)


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


def _anonymous(machine: Machine) -> Machine:
    return replace(machine, gpus=tuple(replace(gpu, uuid=None, parent_uuid=None) for gpu in machine.gpus))


def _at_level(machine: Machine, level: str) -> Machine:
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


def _busy_level(row: _Row, plans: Plans, machine: Machine) -> str | None:
    """Return the level to plan on for a machine that runs the model only when idle; None for all others."""
    idle = plans[row.shape_key or "", IDLE]
    if not idle.runs or _holds(idle, row.free):
        return None
    totals = (machine.memory.total_bytes, *(gpu.memory_total_bytes for gpu in machine.gpus))
    digits = []
    for free, total in zip(row.free, totals, strict=True):
        if free is None or not total:
            return None
        digits.append(str(min(EIGHTHS, free * EIGHTHS // total)))
    return "".join(digits)


def _holds(plan: ShapePlan, free: tuple[int | None, ...]) -> bool:
    for need in plan.needs:
        there = free[0 if need.position is None else need.position + 1]
        if there is None or there < need.needed_bytes:
            return False
    return True


def _verdict(row: _Row, plans: Plans, machines: dict[str, Machine], now: float) -> MachineVerdict:
    status = status_of(now - row.received_at)
    if row.shape_key is None:
        return MachineVerdict(
            agent_id=row.agent_id, name=row.name, verdict="unknown", reason="its facts have not arrived", status=status
        )
    plan = plans[row.shape_key, IDLE]
    verdict: Verdict = "does-not-run"
    reason = plan.message
    if plan.runs:
        level = _busy_level(row, plans, machines[row.shape_key])
        now_plan = plan if _holds(plan, row.free) else plans.get((row.shape_key, level)) if level is not None else None
        if now_plan is not None and now_plan.runs:
            verdict, plan, reason = "runs-now", now_plan, now_plan.message
        else:
            verdict, reason = "runs-if-idle", _shortage(plan, row.free)
    needs = tuple(
        DeviceNeed(
            device=need.device,
            needed_bytes=need.needed_bytes,
            free_bytes=row.free[0 if need.position is None else need.position + 1],
        )
        for need in plan.needs
    )
    return MachineVerdict(
        agent_id=row.agent_id, name=row.name, verdict=verdict, reason=reason, status=status, fit=plan.status,
        quant=plan.quant, engine=plan.engine, context_tokens=plan.context_tokens,
        decode_tokens_per_s=plan.decode_tokens_per_s, decode_low_tokens_per_s=plan.decode_low_tokens_per_s,
        decode_high_tokens_per_s=plan.decode_high_tokens_per_s, score=plan.score, grade=plan.grade, needs=needs,
        command=plan.command, gpus=row.gpus,
    )  # fmt: skip


def _shortage(plan: ShapePlan, free: tuple[int | None, ...]) -> str:
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


def _rows(connection: Connection, now: float) -> list[_Row]:
    columns = tables.machine.c
    found = connection.execute(
        select(
            columns.agent_id, columns.name, columns.shape_key, columns.free, columns.received_at, columns.gpu_models
        ).where(columns.received_at >= now - GONE_S)
    )
    decoder = msgspec.json.Decoder(tuple[int | None, ...])
    return [
        _Row(agent_id, name, shape, decoder.decode(free) if free is not None else (), received_at, gpus)
        for agent_id, name, shape, free, received_at, gpus in found
    ]
