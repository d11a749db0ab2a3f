"""Reports that came as files: one document a file or a line, stored as if they had been sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import insert, select

from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.document import Report, decode
from willitrun_here.fleet.errors import CloneError, DocumentError
from willitrun_here.fleet.ingest import Ingest, parcel

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


class Imported(Struct, frozen=True, kw_only=True):
    """What became of the reports of some files."""

    stored: int = 0
    known: int = 0
    """Duplicates, and older ones that only completed the history."""
    problems: tuple[str, ...] = ()


def documents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Split a file into documents with a name for each: one whole file, or one a line."""
    stripped = data.strip()
    lines = stripped.split(b"\n")
    if len(lines) == 1 or not all(line.strip().startswith(b"{") and line.strip().endswith(b"}") for line in lines):
        yield name, stripped
        return
    for number, line in enumerate(lines, start=1):
        yield f"{name}:{number}", line


def import_reports(engine: Engine, named: Iterable[tuple[str, bytes]], *, clock: Callable[[], float]) -> Imported:
    """Store carried reports; one that cannot be read does not stop the others.

    A carried machine was seen when it was observed, not when the file arrived.
    """
    ingest = Ingest(engine.dialect.name)
    counts = {"stored": 0, "duplicate": 0, "stale": 0}
    problems = []
    for name, body in named:
        try:
            report, raw = decode(body)
            ready = parcel(report, raw)
            with writing(engine) as connection:
                _register(connection, report, clock())
                received_at = min(clock(), report.observed_at.timestamp())
                counts[ingest.store(connection, ready, received_at=received_at).result] += 1
        except (DocumentError, CloneError) as error:
            ingest.forget()
            problems.append(f"{name}: {error.message}")
    return Imported(stored=counts["stored"], known=counts["duplicate"] + counts["stale"], problems=tuple(problems))


def _register(connection: Connection, report: Report, now: float) -> None:
    """Make the agent known without a token; when it later reaches the server it enrols under the same id."""
    agent_id = str(report.agent_id)
    if connection.execute(select(tables.agent.c.agent_id).where(tables.agent.c.agent_id == agent_id)).first() is None:
        connection.execute(
            insert(tables.agent).values(
                agent_id=agent_id,
                enrolled_at=now,
                fingerprint_machine=report.fingerprint.machine,
                fingerprint_product=report.fingerprint.product,
            )
        )
