"""How reporting into a fleet stands on this machine, read without changing anything."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from willitrun_here.fleet.errors import FleetError
from willitrun_here.fleet.identity import Agent, load_agent
from willitrun_here.fleet.spool import Spool


class Reporting(Struct, frozen=True, kw_only=True):
    """What waits for the server, what it refused, and what it took last."""

    agent_id: str
    enrolled: bool
    """Whether this agent has a token of its own; one with a certificate needs none."""
    pending: int
    """Reports waiting in the spool."""
    pending_oldest_s: float
    """How long the oldest of them has waited."""
    rejected: int
    """Reports put aside because the server will never take them; the last ten are kept."""
    rejected_reason: str
    """Why the last of them was refused, empty without any."""
    dropped: int
    """Reports given up for want of room, ever."""
    acknowledged: int | None
    """Sequence of the last report that the server has committed, None before any."""
    acknowledged_at: str | None
    failures: int
    """Attempts in a row that reached no server."""
    next_try_at: str | None
    """When a patient agent tries again; None when nothing holds it back."""


def reporting(directory: Path, *, now: float) -> Reporting | None:
    """Look at an agent's state folder; None where no agent ever was. Raises FleetError for an unreadable record."""
    if not (directory / "agent.json").is_file():
        return None
    try:
        return _standing(directory, load_agent(directory), now)
    except OSError as error:
        raise FleetError(f"cannot read {directory}: {error.strerror or error}", "Run doctor as its owner.") from error


def _standing(directory: Path, agent: Agent, now: float) -> Reporting:
    spool = Spool(directory / "spool", read_only=True)
    rejected = spool.rejected()
    return Reporting(
        agent_id=str(agent.agent_id),
        enrolled=(directory / "token").exists(),
        pending=len(spool.entries()),
        pending_oldest_s=round(spool.oldest_s(now), 1),
        rejected=len(rejected),
        rejected_reason=rejected[-1][1] if rejected else "",
        dropped=spool.dropped,
        acknowledged=agent.acknowledged or None,
        acknowledged_at=_moment(agent.acknowledged_at),
        failures=agent.failures,
        next_try_at=_moment(agent.next_try_at) if agent.next_try_at > now else None,
    )


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def here() -> Reporting | None:
    """Look at this user's agent."""
    import os  # noqa: PLC0415 - the only place that looks at the process itself

    from willitrun_here.fleet.identity import state_directory  # noqa: PLC0415

    return reporting(state_directory(os.environ), now=time.time())


def lines(told: Reporting) -> list[str]:
    """Say it in words, one line for each thing that a person may have to act on."""
    if told.acknowledged is None:
        said = ["no report has been acknowledged by a server yet"]
    else:
        said = [f"report {told.acknowledged} was acknowledged at {told.acknowledged_at}"]
    if told.pending:
        said.append(f"{told.pending} waiting, the oldest for {told.pending_oldest_s:.0f} s")
    if told.failures:
        after = f", the next attempt at {told.next_try_at}" if told.next_try_at else ""
        attempts = "1 attempt" if told.failures == 1 else f"{told.failures} attempts in a row"
        said.append(f"{attempts} reached no server{after}")
    if told.rejected:
        said.append(f"{told.rejected} refused for good and kept aside; the last one: {told.rejected_reason}")
    if told.dropped:
        said.append(f"{told.dropped} given up for want of room, in all")
    return said
