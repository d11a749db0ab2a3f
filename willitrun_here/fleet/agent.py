"""One beat of the agent: look at the machine, keep what is new in the spool, hand the spool to the server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from willitrun_here import __version__
from willitrun_here.fleet import identity
from willitrun_here.fleet.document import (
    MAX_RUNS,
    SCHEMA,
    Enrolment,
    Facts,
    Fingerprint,
    MeasuredRun,
    Report,
    SpoolState,
    encode,
)  # fmt: skip
from willitrun_here.fleet.durable import locked, write_durably
from willitrun_here.fleet.errors import CloneError, DocumentError, FleetUsageError, RefusedError, UnreachableError
from willitrun_here.fleet.facts import HostnamePolicy, facts_hash, facts_of, state_of
from willitrun_here.fleet.identity import Agent, load_agent, save_agent
from willitrun_here.fleet.send import Send, enrol, put_report, retry_delay_s
from willitrun_here.fleet.spool import Entry, Kind, Spool
from willitrun_probe.machine import Machine


class Setup(Struct, frozen=True, kw_only=True):
    """Where the agent keeps its things and what it may tell."""

    directory: Path
    hostname: HostnamePolicy = "clear"
    labels: dict[str, str] = {}
    fingerprint: Fingerprint = Fingerprint()
    certified: bool = False
    """A client certificate says who this agent is; then it needs no token."""


class Delivery(Struct, frozen=True, kw_only=True):
    """How handing over the spool went."""

    delivered: int = 0
    rejected: int = 0
    waiting: int = 0
    problem: str | None = None
    advice: str = ""
    next_try_at: float | None = None
    """Unix time of the next attempt, when the server did not take everything."""


def compose(
    machine: Machine,
    setup: Setup,
    agent: Agent,
    *,
    sequence: int,
    with_facts: bool,
    runs: tuple[MeasuredRun, ...] = (),
    spool: SpoolState = SpoolState(),  # noqa: B008 - frozen
    uptime_s: float | None = None,
) -> Report:
    """Build one report; nothing of the machine that `facts.facts_of` and `state_of` do not let through is in it."""
    facts = facts_of(machine, hostname=setup.hostname)
    hashed = facts_hash(facts)
    return Report(
        schema=SCHEMA,
        agent_id=agent.agent_id,
        sequence=sequence,
        observed_at=_moment(machine.observed_at),
        agent_version=__version__,
        facts_hash=hashed,
        facts_sequence=agent.facts_sequence if agent.facts_hash == hashed else sequence,
        state=state_of(machine),
        fingerprint=setup.fingerprint,
        uptime_s=uptime_s,
        labels=setup.labels,
        facts=Facts(machine=facts) if with_facts else None,
        measured=runs,
        spool=spool,
    )


def keep(machine: Machine, setup: Setup, *, now: float, uptime_s: float | None = None) -> list[int]:
    """Put what there is to say about the machine into the spool and return the sequences taken.

    Facts go with it when they changed or the server is not known to have them, measured runs until none is left.
    """
    spool = Spool(setup.directory / "spool")
    sequences = []
    while True:
        agent = load_agent(setup.directory)
        runs = _pending_runs(setup.directory)
        sequence = agent.sequence + 1
        changed = facts_hash(facts_of(machine, hostname=setup.hostname)) != agent.facts_hash
        lacking = changed or (agent.accepted_facts != agent.facts_hash and not _facts_wait(spool, agent))
        report = compose(
            machine, setup, agent, sequence=sequence, with_facts=lacking, runs=tuple(run for _, run in runs),
            spool=SpoolState(dropped=spool.dropped, oldest_s=spool.oldest_s(now)), uptime_s=uptime_s,
        )  # fmt: skip
        save_agent(
            setup.directory,
            replace(agent, sequence=sequence, facts_hash=report.facts_hash, facts_sequence=report.facts_sequence),
        )
        kind: Kind = "measured" if runs else "facts" if lacking else "state"
        spool.put(kind, sequence, encode(report))
        for path, _ in runs:
            path.unlink(missing_ok=True)
        sequences.append(sequence)
        if len(runs) < MAX_RUNS:
            return sequences


def record_run(directory: Path, run: MeasuredRun) -> None:
    """Keep a measured run for the next report."""
    folder = directory / "runs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(folder / f"{run.run_id}.json", msgspec.json.encode(run))


def deliver(setup: Setup, send: Send, *, enrol_token: str | None, now: Callable[[], float]) -> Delivery:
    """Hand everything in the spool to the server, oldest first; what it does not commit stays.

    Raises RefusedError when the server wants an enrolment and no token for one is at hand, or refuses the token.
    """
    spool = Spool(setup.directory / "spool")
    delivered = rejected = 0
    last: Entry | None = None
    try:
        for _ in range(2):  # a second round when the server called this machine a clone
            entries = spool.entries()
            for entry in entries:
                outcome = _hand_over(setup, spool, entry, send, enrol_token)
                if outcome == "delivered":
                    delivered, last = delivered + 1, entry
                rejected += outcome == "rejected"
                if outcome == "restamped":
                    break
            if not spool.entries():
                break
    except UnreachableError as error:
        agent = acknowledged(load_agent(setup.directory), last, now())
        failures = agent.failures + 1
        delay_s = retry_delay_s(failures) if error.retry_after_s is None else error.retry_after_s
        held = error.retry_after_s is not None
        save_agent(setup.directory, replace(agent, failures=failures, next_try_at=now() + delay_s, held=held))
        return Delivery(
            delivered=delivered, rejected=rejected, waiting=len(spool.entries()), problem=error.message,
            advice=error.advice, next_try_at=now() + delay_s,
        )  # fmt: skip
    agent = acknowledged(load_agent(setup.directory), last, now())
    save_agent(setup.directory, replace(agent, failures=0, next_try_at=0.0, held=False, delivered_at=now()))
    return Delivery(delivered=delivered, rejected=rejected, waiting=len(spool.entries()))


def acknowledged(agent: Agent, last: Entry | None, at: float) -> Agent:
    """Return the record with the last report that was taken, where one was."""
    return agent if last is None else replace(agent, acknowledged=last.sequence, acknowledged_at=at)


def beat(
    machine: Machine,
    setup: Setup,
    send: Send,
    *,
    enrol_token: str | None,
    now: Callable[[], float],
    patient: bool,
    uptime_s: float | None = None,
) -> Delivery:
    """Do one beat; a `patient` agent (a timer's) keeps every pause, others only one that the server asked for."""
    setup.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(setup.directory / "lock"):
        keep(machine, setup, now=now(), uptime_s=uptime_s)
        agent = load_agent(setup.directory)
        pause_s = agent.next_try_at - now()
        # A pause longer than any we set means that the clock was turned back.
        if 0 < pause_s <= 4 * 900 and (patient or agent.held):
            waiting = len(Spool(setup.directory / "spool").entries())
            return Delivery(
                waiting=waiting, problem="the server is being left alone for a while", next_try_at=agent.next_try_at
            )
        delivery = deliver(setup, send, enrol_token=enrol_token, now=now)
        agent = load_agent(setup.directory)
        if delivery.problem is None and delivery.delivered and agent.accepted_facts != agent.facts_hash:
            keep(machine, setup, now=now(), uptime_s=uptime_s)
            again = deliver(setup, send, enrol_token=enrol_token, now=now)
            delivery = replace(again, delivered=delivery.delivered + again.delivered)
        return delivery


def _hand_over(setup: Setup, spool: Spool, entry: Entry, send: Send, enrol_token: str | None) -> str:
    body = entry.body()
    agent = load_agent(setup.directory)
    try:
        secret = identity.load_secret(setup.directory)
        if secret is None and not setup.certified:
            secret = _enrol(setup, send, enrol_token)
        try:
            receipt = put_report(send, str(agent.agent_id), entry.sequence, body, secret)
        except RefusedError:
            secret = _enrol(setup, send, enrol_token)
            receipt = put_report(send, str(agent.agent_id), entry.sequence, body, secret)
    except CloneError:
        start_anew(setup, spool)
        return "restamped"
    except DocumentError as error:
        spool.reject(entry, error.message)
        return "rejected"
    spool.remove(entry)
    report = msgspec.json.decode(body, type=Report)
    if "facts" in receipt.need and agent.accepted_facts is not None:
        save_agent(setup.directory, replace(agent, accepted_facts=None))
    elif "facts" not in receipt.need and agent.accepted_facts != report.facts_hash:
        save_agent(setup.directory, replace(agent, accepted_facts=report.facts_hash))
    return "delivered"


def start_anew(setup: Setup, spool: Spool) -> None:
    """Become a new agent, because another machine uses this one's id; what waits is stamped anew."""
    old = load_agent(setup.directory)
    identity.save_secret(setup.directory, None)
    agent = Agent(agent_id=uuid.uuid4(), previous_agent_id=old.agent_id)
    save_agent(setup.directory, agent)
    for entry in spool.entries():
        report = msgspec.json.decode(entry.body(), type=Report)
        sequence = agent.sequence + 1
        facts_sequence = agent.facts_sequence if agent.facts_hash == report.facts_hash else sequence
        agent = replace(agent, sequence=sequence, facts_hash=report.facts_hash, facts_sequence=facts_sequence)
        save_agent(setup.directory, agent)
        stamped = replace(report, agent_id=agent.agent_id, sequence=sequence, facts_sequence=facts_sequence)
        spool.put(entry.kind, sequence, encode(stamped))
        if entry.sequence != sequence:
            spool.remove(entry)


def _enrol(setup: Setup, send: Send, enrol_token: str | None) -> str:
    if enrol_token is None:
        raise RefusedError("this machine is not enrolled", "Give --enrol-token-file FILE once (see: fleet token).")
    agent = load_agent(setup.directory)
    enrolment = Enrolment(
        agent_id=agent.agent_id, fingerprint=setup.fingerprint, previous_agent_id=agent.previous_agent_id
    )
    secret = enrol(send, enrolment, enrol_token)
    identity.save_secret(setup.directory, secret)
    return secret


def _facts_wait(spool: Spool, agent: Agent) -> bool:
    """Tell whether a report with the current facts is already waiting."""
    current = (agent.facts_hash or "").encode()
    bodies = (entry.body() for entry in spool.entries() if entry.kind != "state")
    return any(current in body and b'"facts":{' in body for body in bodies)


def _pending_runs(directory: Path) -> list[tuple[Path, MeasuredRun]]:
    pending = []
    for path in sorted((directory / "runs").glob("*.json"))[:MAX_RUNS]:
        try:
            pending.append((path, msgspec.json.decode(path.read_bytes(), type=MeasuredRun)))
        except msgspec.DecodeError:
            path.rename(path.with_suffix(".unreadable"))
    return pending


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read `KEY=VALUE` labels; raises FleetUsageError."""
    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key or len(pair) > 256:  # noqa: PLR2004 - the document's limit of a text
            raise FleetUsageError(f"{pair!r} is not a label", "Write KEY=VALUE.")
        labels[key] = value
    return labels


def carried(machine: Machine, setup: Setup, *, uptime_s: float | None = None, take: bool) -> bytes:
    """Return one whole report, facts and waiting runs included, for a file or for a person to look at.

    With `take` its sequence is used up, as the file will be imported; without, nothing is changed.
    """
    existed = (setup.directory / "agent.json").exists()
    agent = load_agent(setup.directory) if take or existed else Agent(agent_id=uuid.uuid4())
    runs = tuple(run for _, run in _pending_runs(setup.directory))
    report = compose(machine, setup, agent, sequence=agent.sequence + 1, with_facts=True, runs=runs, uptime_s=uptime_s)
    if take:
        taken = replace(
            agent, sequence=report.sequence, facts_hash=report.facts_hash, facts_sequence=report.facts_sequence
        )
        save_agent(setup.directory, taken)
    return encode(report)
