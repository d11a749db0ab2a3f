"""Who may do what: enrolment, agent and read tokens, stored as hashes and looked up by them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import delete, insert, or_, select, update

from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.document import Enrolment, Fingerprint
from willitrun_here.fleet.errors import CloneError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

TokenKind = Literal["enrol", "read"]

ENROL_LIFETIME_S = 7 * 86400.0
READ_LIFETIME_S = 365 * 86400.0
CACHE_S = 30.0
"""How long a revoked agent token may still be taken by a running server."""
CACHED = 50_000


def new_token(kind: str) -> str:
    """Make a secret of 256 bits. The prefix lets scanners find leaked ones."""
    return f"wih_{kind}_{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """Hash a token for storing and looking up; no salt is needed for 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_token(
    engine: Engine, kind: TokenKind, *, now: float, lifetime_s: float | None = None, note: str = ""
) -> str:
    """Make an enrolment or read token; this is the only time it can be seen."""
    token = new_token(kind)
    default_s = ENROL_LIFETIME_S if kind == "enrol" else READ_LIFETIME_S
    row = {
        "token_sha256": token_hash(token),
        "kind": kind,
        "created_at": now,
        "expires_at": now + (lifetime_s or default_s),
        "revoked_at": None,
        "note": note,
    }
    with writing(engine) as connection:
        connection.execute(delete(tables.token).where(tables.token.c.expires_at < now - READ_LIFETIME_S))
        connection.execute(insert(tables.token).values(row))
    return token


def revoke_token(engine: Engine, token: str, *, now: float) -> bool:
    """Revoke an enrolment or read token; False when there is none like it."""
    columns = tables.token.c
    statement = update(tables.token).where(columns.token_sha256 == token_hash(token)).values(revoked_at=now)
    with writing(engine) as connection:
        return connection.execute(statement).rowcount > 0


def token_holds(connection: Connection, token: str, kind: TokenKind, *, now: float) -> bool:
    """Tell whether a token is of this kind, not expired and not revoked."""
    columns = tables.token.c
    row = connection.execute(
        select(columns.token_sha256).where(
            columns.token_sha256 == token_hash(token),
            columns.kind == kind,
            columns.revoked_at.is_(None),
            or_(columns.expires_at.is_(None), columns.expires_at > now),
        )
    ).scalar()
    return row is not None and hmac.compare_digest(row, token_hash(token))


def enrol(connection: Connection, enrolment: Enrolment, *, now: float, subject: str | None = None) -> str:
    """Register an agent and return its new token; the same machine may enrol again, another one may not.

    Raises CloneError, or RefusedError for an agent that was revoked.
    """
    agent_id = str(enrolment.agent_id)
    token = new_token("agent")
    row = {
        "token_sha256": token_hash(token),
        "certificate_subject": subject,
        "fingerprint_machine": enrolment.fingerprint.machine,
        "fingerprint_product": enrolment.fingerprint.product,
    }
    known = connection.execute(select(tables.agent).where(tables.agent.c.agent_id == agent_id)).first()
    if known is None:
        previous = enrolment.previous_agent_id
        clone_of = None if previous is None else str(previous)
        connection.execute(insert(tables.agent).values(agent_id=agent_id, enrolled_at=now, clone_of=clone_of, **row))
        return token
    if known.revoked_at is not None:
        raise RefusedError("this agent was revoked")
    if is_other_machine(known, enrolment.fingerprint):
        raise CloneError("this agent id belongs to another machine")
    connection.execute(update(tables.agent).where(tables.agent.c.agent_id == agent_id).values(**row))
    return token


def is_other_machine(known: Any, seen: Fingerprint) -> bool:
    """Tell whether a fingerprint contradicts the stored one.

    The product UUID decides where both sides know it (a container may get a new machine id); otherwise the machine id.
    """
    if known.fingerprint_product is not None and seen.product is not None:
        return bool(known.fingerprint_product != seen.product)
    return known.fingerprint_machine is not None and known.fingerprint_machine != seen.machine


def register_certified(connection: Connection, agent_id: str, subject: str, *, now: float) -> bool:
    """Make an agent known by its verified certificate, when nobody else has its id; False otherwise."""
    if connection.execute(select(tables.agent.c.agent_id).where(tables.agent.c.agent_id == agent_id)).first():
        return False
    connection.execute(insert(tables.agent).values(agent_id=agent_id, certificate_subject=subject, enrolled_at=now))
    return True


class AgentTokens:
    """Looks agents up by their token (or certificate subject), remembering them for some seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[float, Any]] = {}

    def remembered(self, token: str | None, subject: str | None, agent_id: str) -> Any:
        """Return what `holder` found some seconds ago, or None."""
        until, row = self._known.get((_credential(token, subject), agent_id), (0.0, None))
        return row if until > self._clock() else None

    def holder(self, engine: Engine, token: str | None, subject: str | None, agent_id: str) -> Any:
        """Return the row of the agent that may write under `agent_id`, or None; asks the database."""
        credential = _credential(token, subject)
        now = self._clock()
        columns = tables.agent.c
        matches = columns.token_sha256 == credential if token is not None else columns.certificate_subject == subject
        with engine.connect() as connection:
            row = connection.execute(
                select(tables.agent).where(columns.agent_id == agent_id, matches, columns.revoked_at.is_(None))
            ).first()
        if row is None:
            return None
        if len(self._known) >= CACHED:
            self._known.clear()
        self._known[credential, agent_id] = (now + CACHE_S, row)
        return row

    def forget(self) -> None:
        """Look everybody up anew, after an enrolment or a revocation."""
        self._known.clear()


def _credential(token: str | None, subject: str | None) -> str:
    return token_hash(token) if token is not None else f"subject:{subject}"
