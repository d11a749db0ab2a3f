"""Storing reports so that any order, repetition and loss with retry of a stream ends in the same tables.

The newest sequence owns the machine's row; facts are stored under their hash; history rows merge by minimum and
maximum; runs have ids of their own. Every statement is therefore idempotent and commutes with the others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from willitrun_here.fleet import tables
from willitrun_here.fleet.document import Receipt, Report, State, canonical, digest
from willitrun_here.fleet.errors import CloneError, DocumentError
from willitrun_here.fleet.facts import facts_document
from willitrun_here.fleet.summary import FactsSummary, free_list, summarize, total

if TYPE_CHECKING:
    from sqlalchemy import Connection

CLOCK_STEP_S = 1.0
"""A report that is older by its sequence and newer by its clock, beyond this, comes from another machine."""
SUMMARIES_KEPT = 20_000


class Parcel(Struct, frozen=True, kw_only=True):
    """A decoded report on its way into the tables."""

    report: Report
    digest: str
    facts_document: str | None


def parcel(report: Report, raw: dict[str, Any]) -> Parcel:
    """Prepare a decoded report; raises DocumentError when its facts are not those of its hash."""
    document = None
    if report.facts is not None:
        facts = facts_document(raw["facts"])
        if digest(facts) != report.facts_hash:
            raise DocumentError("facts_hash is not the hash of facts - at `$.facts_hash`")
        document = canonical(facts).decode()
    return Parcel(report=report, digest=digest(raw), facts_document=document)


class Ingest:
    """The statements for one kind of database, prepared once, and a cache of facts summaries."""

    def __init__(self, dialect: str) -> None:
        insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
        lesser, greater = (func.least, func.greatest) if dialect == "postgresql" else (func.min, func.max)
        row = insert(tables.machine)
        self._upsert_machine = row.on_conflict_do_update(
            index_elements=["agent_id"],
            set_={
                column.name: row.excluded[column.name] for column in tables.machine.columns if not column.primary_key
            },
            where=tables.machine.c.sequence < row.excluded.sequence,
        )
        self._insert_facts = insert(tables.facts).on_conflict_do_nothing().returning(tables.facts.c.facts_hash)
        seen = insert(tables.facts_seen)
        self._upsert_seen = seen.on_conflict_do_update(
            index_elements=["agent_id", "facts_sequence"],
            set_={
                "first_at": lesser(tables.facts_seen.c.first_at, seen.excluded.first_at),
                "last_at": greater(tables.facts_seen.c.last_at, seen.excluded.last_at),
            },
        )
        self._insert_run = insert(tables.measured).on_conflict_do_nothing()
        columns = tables.machine.c
        self._select_machine = select(columns.sequence, columns.digest, columns.observed_at).where(
            columns.agent_id == bindparam("agent")
        )
        if dialect == "postgresql":
            self._select_machine = self._select_machine.with_for_update()
        self._select_facts = select(tables.facts.c.document).where(tables.facts.c.facts_hash == bindparam("hash"))
        self._summaries: OrderedDict[str, FactsSummary] = OrderedDict()

    def store(self, connection: Connection, parcel: Parcel, *, received_at: float) -> Receipt:
        """Store one report inside a transaction; raises CloneError, and then nothing of it is stored."""
        report = parcel.report
        agent_id, observed_at = str(report.agent_id), report.observed_at.timestamp()
        current = connection.execute(self._select_machine, {"agent": agent_id}).first()
        result = _result(parcel, current, observed_at)
        arrived = False
        if parcel.facts_document is not None:
            row = {"facts_hash": report.facts_hash, "document": parcel.facts_document}
            arrived = connection.execute(self._insert_facts, row).first() is not None
        summary = self._summary(connection, report.facts_hash)
        if result == "stored":
            row = _machine_row(parcel, summary, observed_at=observed_at, received_at=received_at)
            connection.execute(self._upsert_machine, row)
        if arrived and summary is not None:
            self._complete(connection, report.facts_hash, summary)
        if result != "duplicate":
            connection.execute(
                self._upsert_seen,
                {
                    "agent_id": agent_id, "facts_sequence": report.facts_sequence, "facts_hash": report.facts_hash,
                    "first_at": observed_at, "last_at": observed_at,
                },
            )  # fmt: skip
            for run in report.measured:
                connection.execute(self._insert_run, _run_row(agent_id, run))
        return Receipt(result=result, need=() if summary is not None else ("facts",))

    def forget(self) -> None:
        """Drop the cache, after a transaction that did not commit or facts that were pruned."""
        self._summaries.clear()

    def _summary(self, connection: Connection, facts_hash: str) -> FactsSummary | None:
        known = self._summaries.get(facts_hash)
        if known is not None:
            self._summaries.move_to_end(facts_hash)
            return known
        document = connection.execute(self._select_facts, {"hash": facts_hash}).scalar()
        if document is None:
            return None
        known = self._summaries[facts_hash] = summarize(document)
        if len(self._summaries) > SUMMARIES_KEPT:
            self._summaries.popitem(last=False)
        return known

    def _complete(self, connection: Connection, facts_hash: str, summary: FactsSummary) -> None:
        """Fill the columns of machines whose facts arrived after their state."""
        columns = tables.machine.c
        waiting = select(columns.agent_id, columns.state).where(
            columns.facts_hash == facts_hash, columns.shape_key.is_(None)
        )
        for agent_id, state in connection.execute(waiting).all():
            derived = _derived(summary, msgspec.json.decode(state, type=State))
            connection.execute(update(tables.machine).where(columns.agent_id == agent_id).values(**derived))


def _result(parcel: Parcel, current: Any, observed_at: float) -> Any:
    if current is None or current.sequence < parcel.report.sequence:
        return "stored"
    if current.sequence == parcel.report.sequence:
        if current.digest != parcel.digest:
            raise CloneError("another machine already used this sequence under the same agent id")
        return "duplicate"
    if observed_at > current.observed_at + CLOCK_STEP_S:
        raise CloneError("an older sequence with a newer time: two machines share this agent id")
    return "stale"


def _machine_row(
    parcel: Parcel, summary: FactsSummary | None, *, observed_at: float, received_at: float
) -> dict[str, Any]:
    report = parcel.report
    return {
        "agent_id": str(report.agent_id),
        "sequence": report.sequence,
        "digest": parcel.digest,
        "facts_hash": report.facts_hash,
        "labels": canonical(report.labels).decode(),
        "state": msgspec.json.encode(report.state).decode(),
        "agent_version": report.agent_version,
        "observed_at": observed_at,
        "received_at": received_at,
        "skew_s": observed_at - received_at,
        "spool_dropped": report.spool.dropped,
        **_derived(summary, report.state),
    }


def _derived(summary: FactsSummary | None, state: State) -> dict[str, Any]:
    """Return the columns that need the facts; all None while those are missing."""
    return {
        "name": summary and summary.name,
        "shape_key": summary and summary.shape_key,
        "free": summary and free_list(summary.gpu_keys, state),
        "gpu_models": summary and summary.gpu_models,
        "gpu_count": summary and summary.gpu_count,
        "vram_total_bytes": summary and summary.vram_total_bytes,
        "vram_free_bytes": total(gpu.memory_free_bytes for gpu in state.gpus),
        "ram_total_bytes": summary and summary.ram_total_bytes,
        "ram_free_bytes": state.ram_free_bytes,
        "finding_count": summary and summary.finding_count,
    }


def _run_row(agent_id: str, run: Any) -> dict[str, Any]:
    return {
        "run_id": str(run.run_id),
        "agent_id": agent_id,
        "model": run.model,
        "engine": run.engine,
        "quant": run.quant,
        "measured_at": run.measured_at.timestamp(),
        "decode_tokens_per_s": run.decode_tokens_per_s,
        "expected_decode_tokens_per_s": run.expected_decode_tokens_per_s,
        "document": msgspec.json.encode(run).decode(),
    }
