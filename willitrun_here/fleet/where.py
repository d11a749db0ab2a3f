"""The question that matters: which machines run this model now, if idle, or not, and with which plan.

A plan is computed once per hardware shape, question and catalog version and kept in the database. Machines whose
free memory does not hold the idle plan are grouped by how much of each device is free, in eighths rounded down, and
one more plan per group is computed on that floor: what fits there fits on every machine of the group.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.document import State, digest
from willitrun_here.fleet.query import GONE_S
from willitrun_here.fleet.summary import machine_of
from willitrun_here.fleet.verdict import (
    EIGHTHS,
    IDLE,
    MachineVerdict,
    Plans,
    Row,
    ShapePlan,
    Verdict,
    at_level,
    busy_level,
    shape_plan,
    verdict_of,
)  # fmt: skip
from willitrun_probe.machine import Machine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Planner = Callable[[Machine, ModelSpec, Request], Answer]
"""The estimator's answer with commands; pure."""

QUESTIONS_KEPT = 64
LEVELS_KEPT_S = 60.0
"""After plans for busy machines were made, the same question makes no more of them for so long."""
SHAPES_KEPT = 20_000
MOST_NEW_PLANS = 24
"""Plans computed for one question beyond the idle ones; the fullest groups come first."""
_ORDER: dict[Verdict, int] = {"runs-now": 0, "runs-if-idle": 1, "does-not-run": 2, "unknown": 3}


class Where(Struct, frozen=True, kw_only=True):
    """The answer over all machines, best first."""

    schema: str = "willitrun.where/1"
    model: str
    machines: tuple[MachineVerdict, ...]
    counts: dict[str, int]
    shapes: int
    plans_computed: int
    """How many plans this answer had to compute; 0 when all were known."""


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
        self._leveled: dict[str, float] = {}
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
        sizes = {shape: _totals(machine) for shape, machine in machines.items()}
        levels = [busy_level(row, plans, sizes.get(row.shape_key or "", ())) for row in rows]
        busy = Counter(
            (row.shape_key, level)
            for row, level in zip(rows, levels, strict=True)
            if level is not None and row.shape_key is not None
        )
        wanted = [key for key, _ in busy.most_common() if key not in plans][:MOST_NEW_PLANS]
        if now < self._leveled.get(question, 0.0) + LEVELS_KEPT_S:
            wanted = []
        more = self._compute(wanted, machines, spec, request)
        plans |= more
        self._save(question, new | more)
        if more:
            self._leveled[question] = now
        verdicts = [verdict_of(row, level, plans, now) for row, level in zip(rows, levels, strict=True)]
        verdicts.sort(
            key=lambda item: (_ORDER[item.verdict], -item.score, -(item.decode_tokens_per_s or 0), item.name or "")
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
        if len(self._machines) > SHAPES_KEPT:
            self._machines.clear()
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
            select(columns.shape_key, columns.level, columns.document, columns.computed_at).where(
                columns.question == question, columns.catalog_version == self._version
            )
        ).all()
        decoder = msgspec.json.Decoder(ShapePlan)
        known = {(row.shape_key, row.level): decoder.decode(row.document) for row in rows}
        self._leveled[question] = max((row.computed_at for row in rows if row.level != IDLE), default=0.0)
        self._plans[question] = known
        if len(self._plans) > QUESTIONS_KEPT:
            self._leveled.pop(self._plans.popitem(last=False)[0], None)
        return known

    def _compute(
        self, wanted: list[tuple[str, str]], machines: dict[str, Machine], spec: ModelSpec, request: Request
    ) -> Plans:
        return {(shape, level): self._plan(machines[shape], level, spec, request) for shape, level in wanted}

    def _plan(self, machine: Machine, level: str, spec: ModelSpec, request: Request) -> ShapePlan:
        if level == IDLE:
            machine, request = (
                at_level(machine, str(EIGHTHS) * (len(machine.gpus) + 1)),
                replace(request, assume_idle=True),
            )
        else:
            machine = at_level(machine, level)
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


def _anonymous(machine: Machine) -> Machine:
    gpus = tuple(
        replace(gpu, uuid=None, parent_uuid=None, index=position if gpu.index is None else gpu.index)
        for position, gpu in enumerate(machine.gpus)
    )
    return replace(machine, gpus=gpus)


def _totals(machine: Machine) -> tuple[int | None, ...]:
    return (machine.memory.total_bytes, *(gpu.memory_total_bytes for gpu in machine.gpus))


def _rows(connection: Connection, now: float) -> list[Row]:
    columns = tables.machine.c
    found = connection.execute(
        select(
            columns.agent_id, columns.name, columns.shape_key, columns.free, columns.received_at, columns.gpu_models
        ).where(columns.received_at >= now - GONE_S)
    ).all()
    decoder = msgspec.json.Decoder(tuple[int | None, ...])
    return [
        Row(agent_id, name, shape, decoder.decode(free) if free is not None else (), received_at, gpus)
        for agent_id, name, shape, free, received_at, gpus in found
    ]
