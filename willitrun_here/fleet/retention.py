"""Forgetting: old facts history, and machines gone for long, which are written to an archive first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import delete, select, update

from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

HISTORY_S = 400 * 86400.0
GONE_S = 90 * 86400.0
PLANS_S = 30 * 86400.0


def prune(engine: Engine, *, now: float, archive: Path | None) -> dict[str, int]:
    """Delete what is past its time and return how many rows of each table went.

    Machines silent for 90 days go to `archive` (JSON Lines, appended) and then out of the tables; without an archive
    they stay. Measured runs stay for ever. Raises StoreError when the archive cannot be written.
    """
    machine, seen, facts = tables.machine.c, tables.facts_seen.c, tables.facts.c
    with writing(engine) as connection:
        gone = select(tables.machine, facts.document).join_from(
            tables.machine, tables.facts, machine.facts_hash == facts.facts_hash, isouter=True
        )
        rows = connection.execute(gone.where(machine.received_at < now - GONE_S)).all() if archive is not None else []
        if archive is not None and rows:
            _append(archive, [dict(row._mapping) for row in rows])  # noqa: SLF001 - SQLAlchemy's public name
        old = [row.agent_id for row in rows]
        removed = {"machine": 0, "agent": 0, "facts_seen": 0}
        for start in range(0, len(old), 500):
            chunk = old[start : start + 500]
            for table in (tables.machine, tables.agent, tables.facts_seen):
                removed[table.name] += connection.execute(delete(table).where(table.c.agent_id.in_(chunk))).rowcount
        removed["facts_seen"] += connection.execute(
            delete(tables.facts_seen).where(
                seen.last_at < now - HISTORY_S,
                seen.facts_hash.not_in(select(machine.facts_hash).where(machine.agent_id == seen.agent_id)),
            )
        ).rowcount
        unused = facts.facts_hash.not_in(select(machine.facts_hash)) & facts.facts_hash.not_in(select(seen.facts_hash))
        removed["facts"] = connection.execute(delete(tables.facts).where(unused)).rowcount
        stale = tables.shape_plan.c.computed_at < now - PLANS_S
        removed["shape_plan"] = connection.execute(delete(tables.shape_plan).where(stale)).rowcount
    return removed


def merge_agents(engine: Engine, old: str, new: str, *, now: float) -> None:
    """Give an agent's measured runs to another and forget its machine; its token is no longer taken."""
    with writing(engine) as connection:
        connection.execute(update(tables.measured).where(tables.measured.c.agent_id == old).values(agent_id=new))
        for table in (tables.machine, tables.facts_seen):
            connection.execute(delete(table).where(table.c.agent_id == old))
        gone = {"revoked_at": now, "token_sha256": None, "fingerprint_machine": None, "fingerprint_product": None}
        connection.execute(update(tables.agent).where(tables.agent.c.agent_id == old).values(**gone))


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        with path.open("ab") as file:
            file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
            file.flush()
    except OSError as error:
        raise StoreError(f"cannot write the archive: {error}") from error
