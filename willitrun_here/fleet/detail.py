"""One machine: its facts and state, how the facts changed, what it measured, what to be warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import func, select

from willitrun_here.fleet import tables
from willitrun_here.fleet.document import State
from willitrun_here.fleet.query import GONE_S, MachineRow, iso, machine_row
from willitrun_here.fleet.summary import machine_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


class FactsPeriod(Struct, frozen=True, kw_only=True):
    """A time during which the machine's facts were the same, and what differs from the period before."""

    facts_hash: str
    first_at: float
    last_at: float
    changes: tuple[str, ...] = ()


class MeasuredRow(Struct, frozen=True, kw_only=True):
    """A run that was measured, beside what had been expected."""

    model: str
    engine: str
    quant: str | None
    measured_at: float
    decode_tokens_per_s: float | None
    expected_decode_tokens_per_s: float | None


class MachineDetail(Struct, frozen=True, kw_only=True):
    """Everything known of one machine."""

    row: MachineRow
    machine: dict[str, Any] | None
    """Its facts with the last state, None while they are missing."""
    history: tuple[FactsPeriod, ...] = ()
    measured: tuple[MeasuredRow, ...] = ()
    warnings: tuple[str, ...] = ()


def machine_detail(connection: Connection, agent_id: str, *, now: float) -> MachineDetail | None:
    """Return everything known of a machine, or None when there is none of this id."""
    row = connection.execute(select(tables.machine).where(tables.machine.c.agent_id == agent_id)).first()
    if row is None:
        return None
    facts = tables.facts.c
    document = connection.execute(select(facts.document).where(facts.facts_hash == row.facts_hash)).scalar()
    machine = None
    if document is not None:
        state = msgspec.json.decode(row.state, type=State)
        machine = msgspec.to_builtins(machine_of(document, state, iso(row.observed_at)))
    return MachineDetail(
        row=machine_row(row, now),
        machine=machine,
        history=_history(connection, agent_id),
        measured=_measured(connection, agent_id),
        warnings=_warnings(connection, agent_id, row, now),
    )


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Describe what changed between two documents, one line for each changed leaf."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted(before.keys() | after.keys())
            for line in differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(after, list):
        shared = [
            line
            for index, (old, new) in enumerate(zip(before, after, strict=False))
            for line in differences(old, new, f"{path}[{index}]")
        ]
        added = [f"{path} + {_brief(item)}" for item in after[len(before) :]]
        return shared + added + [f"{path} - {_brief(item)}" for item in before[len(after) :]]
    return [] if before == after else [f"{path}: {_brief(before)} → {_brief(after)}"]


def _history(connection: Connection, agent_id: str) -> tuple[FactsPeriod, ...]:
    seen, facts = tables.facts_seen.c, tables.facts.c
    rows = connection.execute(
        select(seen.facts_hash, seen.first_at, seen.last_at, facts.document)
        .join_from(tables.facts_seen, tables.facts, seen.facts_hash == facts.facts_hash, isouter=True)
        .where(seen.agent_id == agent_id)
        .order_by(seen.facts_sequence.desc())
        .limit(100)
    ).all()
    periods = []
    for row, older in zip(rows, [*rows[1:], None], strict=True):
        changes: list[str] = []
        if older is not None and row.document and older.document:
            before, after = (msgspec.json.decode(item.document)["machine"] for item in (older, row))
            changes = differences(before, after)[:50]
        periods.append(
            FactsPeriod(facts_hash=row.facts_hash, first_at=row.first_at, last_at=row.last_at, changes=tuple(changes))
        )
    return tuple(periods)


def _measured(connection: Connection, agent_id: str) -> tuple[MeasuredRow, ...]:
    runs = tables.measured.c
    rows = connection.execute(
        select(tables.measured).where(runs.agent_id == agent_id).order_by(runs.measured_at.desc()).limit(200)
    )
    return tuple(
        MeasuredRow(
            model=row.model,
            engine=row.engine,
            quant=row.quant,
            measured_at=row.measured_at,
            decode_tokens_per_s=row.decode_tokens_per_s,
            expected_decode_tokens_per_s=row.expected_decode_tokens_per_s,
        )
        for row in rows
    )


def _warnings(connection: Connection, agent_id: str, row: Row[Any], now: float) -> tuple[str, ...]:
    agents = tables.agent.c
    warnings = []
    agent = connection.execute(select(tables.agent).where(agents.agent_id == agent_id)).first()
    if agent is not None:
        if agent.clone_seen_at is not None:
            warnings.append("Another machine reported under this agent's id; it was told to enrol as a new agent.")
        if agent.clone_of is not None:
            warnings.append(f"This machine carried the identity of agent {agent.clone_of} before: a copied disk?")
        if agent.fingerprint_machine is not None:
            same = select(agents.agent_id).where(
                agents.fingerprint_machine == agent.fingerprint_machine,
                agents.agent_id != agent_id,
                func.coalesce(agents.fingerprint_product, "") == (agent.fingerprint_product or ""),
            )
            warnings.extend(
                f"Probably the same machine as agent {other}. To join them: fleet merge {other} {agent_id}"
                for other in connection.execute(same.limit(5)).scalars()
            )
    if abs(row.skew_s) > 120 and now - row.received_at <= GONE_S:  # noqa: PLR2004 - two minutes
        warnings.append(f"Its clock was {row.skew_s:+.0f} s off the server's.")
    if row.spool_dropped:
        warnings.append(f"It gave up {row.spool_dropped} reports for want of room while the server was away.")
    return tuple(warnings)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("name") or value.get("code") or value
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "…"  # noqa: PLR2004 - a line of a page
