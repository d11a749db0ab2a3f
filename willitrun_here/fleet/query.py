"""Reading the inventory: the table of machines, one machine with its history, totals."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import and_, func, or_, select

from willitrun_here.fleet import tables
from willitrun_here.fleet.document import State
from willitrun_here.fleet.errors import DocumentError
from willitrun_here.fleet.summary import machine_of
from willitrun_probe.machine import Machine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

LATE_S = 3 * (300.0 + 60.0)
"""Three beats of five minutes with the timer's jitter."""
GONE_S = 86400.0
MOST_ROWS = 50_000

Status = Literal["live", "late", "gone"]
Sort = Literal["name", "-name", "vram", "-vram", "free", "-free", "ram", "-ram", "seen", "-seen"]
Words = Annotated[str, Meta(max_length=256, pattern="^[^\\x00]*$")]
CursorNumber = Annotated[float, Meta(ge=-(2.0**63), lt=2.0**63)]

_columns = tables.machine.c
_SORTS: dict[str, Any] = {
    "name": func.coalesce(_columns.name, ""),
    "vram": func.coalesce(_columns.vram_total_bytes, -1),
    "free": func.coalesce(_columns.vram_free_bytes, -1),
    "ram": func.coalesce(_columns.ram_total_bytes, -1),
    "seen": _columns.received_at,
}


class MachineFilter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to show of the table, as the address of a page or an API call says it."""

    q: Words = ""
    """Part of the name."""
    label: Words = ""
    """`KEY=VALUE`."""
    gpu: Words = ""
    """Part of a GPU's name."""
    min_free_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Least free GPU memory, the GPUs of a machine together."""
    status: Literal["", "live", "late", "gone"] = ""
    sort: Sort = "name"
    after: Words = ""
    """Where the page before ended: the `next` of its answer."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class MachineRow(Struct, frozen=True, kw_only=True):
    """One line of the table. None is unknown, or waiting for the machine's facts."""

    agent_id: str
    name: str | None
    status: Status
    gpus: str | None
    gpu_count: int | None
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    ram_total_bytes: int | None
    ram_free_bytes: int | None
    findings: int | None
    labels: dict[str, str]
    last_seen_s: float
    """Seconds since the server heard from it, by the server's clock."""
    skew_s: float
    """The machine's clock minus the server's when it was last heard."""
    agent_version: str
    spool_dropped: int


class MachinePage(Struct, frozen=True, kw_only=True):
    """Some lines of the table and where the next ones begin."""

    machines: tuple[MachineRow, ...]
    next: str | None = None


class Totals(Struct, frozen=True, kw_only=True):
    """The fleet in sums."""

    machines: int
    live: int
    late: int
    gone: int
    vram_total_bytes: int
    vram_free_bytes: int
    ram_total_bytes: int
    ram_free_bytes: int
    gpus: dict[str, int]
    """GPUs by model."""
    shapes: int


def list_machines(connection: Connection, wanted: MachineFilter, *, now: float) -> MachinePage:
    """Return one page of the table; raises DocumentError for a cursor that is not one."""
    name, descending = wanted.sort.lstrip("-"), wanted.sort.startswith("-")
    column = _SORTS[name]
    statement = select(tables.machine, column.label("sort_value")).where(*_conditions(wanted, now))
    if wanted.after:
        value, agent_id = _cursor(wanted.after, of_text=name == "name")
        beyond = column < value if descending else column > value
        same = and_(column == value, _columns.agent_id > agent_id)
        statement = statement.where(or_(beyond, same))
    order = column.desc() if descending else column.asc()
    rows = connection.execute(statement.order_by(order, _columns.agent_id).limit(wanted.limit + 1)).all()
    page, rest = rows[: wanted.limit], rows[wanted.limit :]
    following = _encode_cursor(page[-1].sort_value, page[-1].agent_id) if rest else None
    return MachinePage(machines=tuple(machine_row(row, now) for row in page), next=following)


def every_machine(connection: Connection, wanted: MachineFilter, *, now: float) -> list[MachineRow]:
    """Return all machines that a filter lets through, over all pages, up to a bound."""
    rows: list[MachineRow] = []
    wanted = msgspec.structs.replace(wanted, limit=1000)
    while len(rows) < MOST_ROWS:
        page = list_machines(connection, wanted, now=now)
        rows.extend(page.machines)
        if page.next is None:
            break
        wanted = msgspec.structs.replace(wanted, after=page.next)
    return rows


def present_machines(connection: Connection, *, now: float) -> Iterator[Machine]:
    """Yield the machines that are not gone, as they were last seen, by name."""
    rows = connection.execute(
        select(_columns.state, _columns.observed_at, tables.facts.c.document)
        .join_from(tables.machine, tables.facts, _columns.facts_hash == tables.facts.c.facts_hash)
        .where(_columns.received_at >= now - GONE_S)
        .order_by(_columns.name, _columns.agent_id)
    )
    for row in rows:
        yield machine_of(row.document, msgspec.json.decode(row.state, type=State), iso(row.observed_at))


def count_machines(connection: Connection, wanted: MachineFilter, *, now: float) -> int:
    """Count the machines that a filter lets through, over all pages."""
    return int(connection.execute(select(func.count()).where(*_conditions(wanted, now))).scalar_one())


def machine_row(row: Row[Any], now: float) -> MachineRow:
    """Turn a database row into a line of the table."""
    return MachineRow(
        agent_id=row.agent_id,
        name=row.name,
        status=status_of(now - row.received_at),
        gpus=row.gpu_models,
        gpu_count=row.gpu_count,
        vram_total_bytes=row.vram_total_bytes,
        vram_free_bytes=row.vram_free_bytes,
        ram_total_bytes=row.ram_total_bytes,
        ram_free_bytes=row.ram_free_bytes,
        findings=row.finding_count,
        labels=msgspec.json.decode(row.labels),
        last_seen_s=max(0.0, now - row.received_at),
        skew_s=row.skew_s,
        agent_version=row.agent_version,
        spool_dropped=row.spool_dropped,
    )


def status_of(silent_s: float) -> Status:
    """Tell from the seconds of silence whether a machine is live, late or gone."""
    return "live" if silent_s <= LATE_S else "late" if silent_s <= GONE_S else "gone"


def find_agent(connection: Connection, name: str) -> list[str]:
    """Return the agents with this id or host name."""
    found = select(_columns.agent_id).where(or_(_columns.agent_id == name, _columns.name == name))
    return list(connection.execute(found.order_by(_columns.agent_id)).scalars())


def totals(connection: Connection, *, now: float) -> Totals:
    """Sum the fleet; memory and GPUs of machines that are gone are not counted."""
    silent = now - _columns.received_at
    states = connection.execute(
        select(
            func.count(),
            func.count().filter(silent <= LATE_S),
            func.count().filter(and_(silent > LATE_S, silent <= GONE_S)),
        )
    ).one()
    here = silent <= GONE_S
    sums = connection.execute(
        select(
            *(func.coalesce(func.sum(column), 0) for column in (
                _columns.vram_total_bytes, _columns.vram_free_bytes, _columns.ram_total_bytes, _columns.ram_free_bytes,
            )),
            func.count(func.distinct(_columns.shape_key)),
        ).where(here)
    ).one()  # fmt: skip
    gpus: dict[str, int] = {}
    models = select(_columns.gpu_models, func.count()).where(here, _columns.gpu_models != "")
    for text, machines in connection.execute(models.group_by(_columns.gpu_models)):
        for part in text.split("; "):
            count, separator, model = part.partition("x ")
            counted = (int(count), model) if separator and count.isdigit() else (1, part)
            gpus[counted[1]] = gpus.get(counted[1], 0) + counted[0] * machines
    return Totals(
        machines=states[0], live=states[1], late=states[2], gone=states[0] - states[1] - states[2],
        vram_total_bytes=int(sums[0]), vram_free_bytes=int(sums[1]), ram_total_bytes=int(sums[2]),
        ram_free_bytes=int(sums[3]), gpus=gpus, shapes=sums[4],
    )  # fmt: skip


def _conditions(wanted: MachineFilter, now: float) -> list[Any]:
    conditions: list[Any] = []
    if wanted.q:
        conditions.append(func.lower(_columns.name).contains(wanted.q.lower(), autoescape=True))
    if wanted.gpu:
        conditions.append(func.lower(_columns.gpu_models).contains(wanted.gpu.lower(), autoescape=True))
    if wanted.label:
        key, _, value = wanted.label.partition("=")
        member = msgspec.json.encode({key: value}).decode()[1:-1]
        conditions.append(_columns.labels.contains(member, autoescape=True))
    if wanted.min_free_bytes:
        conditions.append(_columns.vram_free_bytes >= wanted.min_free_bytes)
    silent = now - _columns.received_at
    if wanted.status == "live":
        conditions.append(silent <= LATE_S)
    elif wanted.status == "late":
        conditions.append(and_(silent > LATE_S, silent <= GONE_S))
    elif wanted.status == "gone":
        conditions.append(silent > GONE_S)
    return conditions


def _encode_cursor(value: Any, agent_id: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([value, agent_id])).decode().rstrip("=")


def _cursor(text: str, *, of_text: bool) -> tuple[Any, str]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if of_text:
            return msgspec.json.decode(raw, type=tuple[str, str])
        return msgspec.json.decode(raw, type=tuple[CursorNumber, str])
    except (ValueError, msgspec.DecodeError) as error:
        raise DocumentError("`after` is not where a page ended") from error


def iso(moment: float) -> str:
    """Write a Unix time in UTC, to the second; times that no calendar has are cut."""
    from datetime import UTC, datetime  # noqa: PLC0415 - only for display

    return (
        datetime.fromtimestamp(min(max(moment, 0.0), 253402300799.0), UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z")
    )
