"""The report document: what one machine sends, as versioned values with limits.

Writers forbid nothing they do not know; the server ignores unknown fields of a newer minor version and refuses
another major version. Integers are bytes, times are seconds or UTC timestamps, None is unknown.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from willitrun_here.fleet.errors import DocumentError
from willitrun_probe.machine import Bytes, Machine

SCHEMA = "willitrun.report/1.0"
ACCEPTED = "willitrun.report/1"
"""The major version this server reads."""

MAX_BODY_BYTES = 256_000
MAX_TEXT = 256
MAX_DEPTH = 12
MAX_ITEMS = 4096
MAX_GPUS = 64
MAX_RUNS = 200

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
FactsHash = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$", min_length=71, max_length=71)]
Sequence = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Moment = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Rate = Annotated[float, Meta(ge=0, le=1e12)]


class GpuState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of one GPU changes from beat to beat."""

    key: Text
    """See `facts.gpu_keys`."""
    memory_free_bytes: Bytes | None = None
    busy_fraction: Annotated[float, Meta(ge=0, le=1)] | None = None


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of the machine changes from beat to beat."""

    ram_free_bytes: Bytes | None = None
    gpus: Annotated[tuple[GpuState, ...], Meta(max_length=MAX_GPUS)] = ()


class Facts(Struct, frozen=True, kw_only=True):
    """What seldom changes: hardware, drivers, engines, with everything private removed (see `facts`)."""

    machine: Machine


class MeasuredRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One real run of a model beside what was predicted for it."""

    run_id: UUID
    """Random; makes the same run arriving twice one row."""
    model: Text
    engine: Text
    measured_at: Moment
    quant: Text | None = None
    context_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    decode_tokens_per_s: Rate | None = None
    prefill_tokens_per_s: Rate | None = None
    ttft_s: Seconds | None = None
    memory_bytes: Bytes | None = None
    expected_decode_tokens_per_s: Rate | None = None
    expected_memory_bytes: Bytes | None = None


class SpoolState(Struct, frozen=True, kw_only=True):
    """What the agent could not keep while the server was away."""

    dropped: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    oldest_s: Seconds = 0.0


class Fingerprint(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hashes that link and warn; never an identity. None is unreadable (the product UUID needs root)."""

    machine: Annotated[str, Meta(max_length=64)] | None = None
    """The machine id, keyed with this application's id as machine-id(5) demands."""
    product: Annotated[str, Meta(max_length=64)] | None = None
    """The firmware's product UUID, hashed."""


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One report. `agent_id` and `sequence` together are its address and its idempotency key."""

    schema: Text
    agent_id: UUID
    sequence: Sequence
    observed_at: Moment
    agent_version: Text
    facts_hash: FactsHash
    facts_sequence: Sequence
    """Sequence of the first report with these facts: tells a return to old facts from the old facts."""
    state: State
    fingerprint: Fingerprint = Fingerprint()
    uptime_s: Seconds | None = None
    labels: Annotated[dict[Text, Text], Meta(max_length=32)] = {}
    facts: Facts | None = None
    """Present only when the server lacks them."""
    measured: Annotated[tuple[MeasuredRun, ...], Meta(max_length=MAX_RUNS)] = ()
    spool: SpoolState = SpoolState()


class Receipt(Struct, frozen=True, kw_only=True):
    """The server's answer to a report."""

    result: Literal["stored", "duplicate", "stale"]
    need: tuple[Literal["facts"], ...] = ()


class Enrolment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says when it enrols."""

    agent_id: UUID
    fingerprint: Fingerprint = Fingerprint()
    previous_agent_id: UUID | None = None
    """Set when the server called this machine a clone of that one."""


class Enrolled(Struct, frozen=True, kw_only=True):
    """The server's answer to an enrolment: the secret of this agent."""

    agent_id: UUID
    token: str


class Problem(Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    code: str
    message: str
    accepts: tuple[str, ...] = ()
    """The schemas this server reads, where another one was sent."""


def canonical(document: Any) -> bytes:
    """Encode plain values with sorted keys and no spaces: what hashes are taken over."""
    return msgspec.json.encode(document, order="sorted")


def digest(document: Any) -> str:
    """Hash a document independently of how its JSON was laid out."""
    return "sha256:" + hashlib.sha256(canonical(document)).hexdigest()


def encode(report: Report) -> bytes:
    """Encode a report as it is sent."""
    return msgspec.json.encode(report, order="sorted")


class _Header(Struct):
    schema: str


def decode(body: bytes) -> tuple[Report, dict[str, Any]]:
    """Decode and check a report; returns it with the raw document, which keeps fields of newer versions.

    Raises DocumentError naming the path that is wrong.
    """
    if len(body) > MAX_BODY_BYTES:
        raise DocumentError(f"a report has at most {MAX_BODY_BYTES} bytes, this one {len(body)}")
    try:
        header = msgspec.json.decode(body, type=_Header)
        if header.schema != ACCEPTED and not header.schema.startswith(f"{ACCEPTED}."):
            raise DocumentError(
                f"the schema {header.schema[:64]!r} is not one of {ACCEPTED}.x", accepts=(f"{ACCEPTED}.0",)
            )
        report = msgspec.json.decode(body, type=Report)
        raw: dict[str, Any] = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise DocumentError(str(error)) from error
    except RecursionError as error:
        raise DocumentError("the document is nested too deeply") from error
    _check(raw, "$", 0)
    if report.facts is not None and len(report.facts.machine.gpus) > MAX_GPUS:
        raise DocumentError(f"more than {MAX_GPUS} GPUs - at `$.facts.machine.gpus`")
    return report, raw


def _check(value: Any, path: str, depth: int) -> None:
    """Refuse what types cannot: long text, NUL (which PostgreSQL cannot store), depth, endless lists."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT or "\0" in value:
            raise DocumentError(f"text longer than {MAX_TEXT}, or with a NUL - at `{path}`")
        return
    if not isinstance(value, (dict, list)):
        return
    if depth > MAX_DEPTH or len(value) > MAX_ITEMS:
        raise DocumentError(f"deeper than {MAX_DEPTH} or more than {MAX_ITEMS} members - at `{path}`")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, path, depth)
            _check(item, f"{path}.{key}", depth + 1)
    else:
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
