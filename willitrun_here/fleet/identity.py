"""Who this agent is: a random id made once, a running sequence, and fingerprints that only link and warn."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_here.fleet.document import Fingerprint
from willitrun_here.fleet.durable import write_durably
from willitrun_here.fleet.errors import FleetError
from willitrun_here.places import state_folder

APPLICATION_ID = uuid.UUID("b1d7a4c2-5f0e-4c8e-9a37-6d2f3f1c9e10")
"""This application's constant id, the message of the keyed hash that machine-id(5) asks for."""


class Agent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent remembers between runs, apart from its secret."""

    agent_id: uuid.UUID
    sequence: int = 0
    """The last one taken; never reused."""
    facts_hash: str | None = None
    facts_sequence: int = 0
    accepted_facts: str | None = None
    """Hash of the facts the server is known to have."""
    previous_agent_id: uuid.UUID | None = None
    failures: int = 0
    """Attempts in a row that reached no server."""
    next_try_at: float = 0.0
    """Unix time before which the server shall be left alone."""
    delivered_at: float | None = None
    """Unix time at which the spool was last emptied."""
    held: bool = False
    """The server itself asked for that pause."""
    acknowledged: int = 0
    """Sequence of the last report that the server has committed; 0 before any."""
    acknowledged_at: float | None = None
    """Unix time of that answer."""


def state_directory(environment: Mapping[str, str]) -> Path:
    """Return where the agent keeps its identity and spool: systemd's StateDirectory, or the user's state folder."""
    given = environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else state_folder(environment) / "agent"


def load_agent(directory: Path) -> Agent:
    """Read the agent's record, or make a new agent (and its folder) where there is none."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "agent.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Agent)
    except FileNotFoundError:
        agent = Agent(agent_id=uuid.uuid4())
        save_agent(directory, agent)
        return agent
    except (OSError, msgspec.DecodeError) as error:
        raise FleetError(f"cannot read {path}: {error}", "Move the file away to enrol this machine anew.") from error


def save_agent(directory: Path, agent: Agent) -> None:
    """Keep the agent's record; a sequence counts as taken only after this."""
    write_durably(directory / "agent.json", msgspec.json.encode(agent))


def load_secret(directory: Path) -> str | None:
    """Return the token of this agent, None before enrolment."""
    try:
        return (directory / "token").read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def save_secret(directory: Path, token: str | None) -> None:
    """Keep the token of this agent, readable by its user alone; None forgets it."""
    if token is None:
        (directory / "token").unlink(missing_ok=True)
    else:
        write_durably(directory / "token", token.encode("ascii"))


def read_secret(path: Path) -> str:
    """Read a secret from a file; raises FleetError when it is empty, unreadable or open to other users."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"cannot read the secret in {path}: {error}") from error
    if not text:
        raise FleetError(f"{path} is empty", "Put the output of `fleet token` into it.")
    if mode & 0o002:
        raise FleetError(f"anybody can write {path}", f"chmod 600 {path}")
    return text


def fingerprint(root: Path) -> Fingerprint:
    """Return hashes of the machine id and the firmware's product UUID below `root` (`/` on a real machine)."""
    machine_id = _line(root / "etc/machine-id") or _line(root / "var/lib/dbus/machine-id")
    product = _line(root / "sys/class/dmi/id/product_uuid")
    return Fingerprint(
        machine=application_specific(machine_id) if machine_id else None,
        product=hashlib.sha256(b"willitrun product " + product.lower().encode()).hexdigest() if product else None,
    )


def application_specific(machine_id: str) -> str | None:
    """Derive this application's id of a machine as `systemd-id128 machine-id --app-specific` does.

    HMAC-SHA256 keyed by the machine id over the application id, cut to 128 bits, with the bits of a version 4 UUID
    (sd_id128_get_machine_app_specific(3)). None when the text is no machine id.
    """
    try:
        key = uuid.UUID(hex=machine_id).bytes
    except ValueError:
        return None
    raw = bytearray(hmac.digest(key, APPLICATION_ID.bytes, "sha256")[:16])
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return raw.hex()


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
