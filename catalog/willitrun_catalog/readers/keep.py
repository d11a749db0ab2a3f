"""Putting models into the user's catalog, and refreshing it from a hub.

The same two functions make the entries of a release, written into another folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote as url_quote

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import CatalogError, HubError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.hub import list_repository, read_checkpoint, read_gguf
from willitrun_catalog.readers.hub_http import Connection, connect, fetch
from willitrun_catalog.readers.open import open_anything
from willitrun_catalog.readers.places import Places
from willitrun_catalog.readers.user import Entry, entries, entry_name, write_entry

MAX_LIST_BYTES = 8 << 20
MAX_MODELS = 200
STALE_DAYS = 120
"""About how often a family of open models is replaced by its successor (release dates of the shipped catalog)."""
_UNWANTED = ("abliterated", "uncensored", "merge", "frankenmerge", "roleplay", "heretic")
"""Words in the names of community variants that are not ranked by default."""


class Kept(Struct, frozen=True, kw_only=True):
    """What became of one source."""

    source: str
    path: str | None = None
    """The entry's file; None where it was not written."""
    name: str | None = None
    reason: str = ""
    """Why it was not."""


def now_text(now: datetime | None = None) -> str:
    """Write a moment as entries do: UTC, to the second."""
    return (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def add_source(
    source: str,
    folder: Path,
    *,
    name: str | None = None,
    places: Places | None = None,
    spec: ModelSpec | None = None,
    now: datetime | None = None,
) -> Kept:
    """Read a model and keep it as an entry of `folder`; raises `CatalogError`."""
    found = spec or open_anything(source, places)
    own = entry_name(name or found.name)
    aliases = tuple(
        dict.fromkeys(alias for alias in (*found.aliases, found.hf_id, found.title) if alias and alias != own)
    )
    entry = Entry(
        added_from=source,
        added_at=now_text(now),
        model=msgspec.structs.replace(found, name=own, aliases=aliases),
    )
    return Kept(source=source, path=str(write_entry(folder, entry)), name=own)


def update(
    folder: Path,
    organisations: tuple[str, ...] = (),
    *,
    limit: int = 20,
    connection: Connection | None = None,
    now: datetime | None = None,
) -> Iterator[Kept]:
    """Read again what came from a hub, and what the named organisations publish most; one broken source hides none.

    Raises `CatalogError` only where there is no way to a hub at all.
    """
    connection = connection or connect()
    if connection.offline:
        raise HubError("models update", "offline mode is on (HF_HUB_OFFLINE)", advice="unset it")
    sources = {
        entry.added_from: entry.model.name
        for entry in entries(folder)
        if isinstance(entry, Entry) and entry.added_from.startswith("hf:")
    }
    for organisation in organisations:
        try:
            for repository in published(connection, organisation, limit):
                sources.setdefault(f"hf:{repository}", "")
        except CatalogError as error:
            yield Kept(source=organisation, reason=error.message)
    for source, name in sources.items():
        try:
            spec = _read(connection, source)
            yield add_source(source, folder, name=name or None, spec=spec, now=now)
        except CatalogError as error:
            yield Kept(source=source, reason=error.message)


def _read(connection: Connection, source: str) -> ModelSpec:
    from willitrun_catalog.readers.hub import choose, parse_address  # noqa: PLC0415 - two more names of the same module

    address = parse_address(source)
    repository = list_repository(connection, address.repository)
    if repository.models and address.selector != "safetensors":
        return read_gguf(connection, repository, choose(repository, address.selector))
    return read_checkpoint(connection, repository)


class _Listed(Struct):
    id: str


def published(connection: Connection, organisation: str, limit: int) -> list[str]:
    """List an organisation's most used text models, community remixes left out; raises `HubError`."""
    path = f"/api/models?author={url_quote(organisation, safe='')}&filter=text-generation&sort=downloads&limit={limit}"
    piece = fetch(connection, path, f"hf:{organisation}", length=MAX_LIST_BYTES, ranged=False)
    try:
        listed = msgspec.json.decode(piece.data, type=list[_Listed])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise HubError(f"hf:{organisation}", f"sent a list of models that is not one: {error}") from error
    names = [model.id for model in listed[: min(limit, MAX_MODELS)]]
    return [name for name in names if not any(word in name.lower() for word in _UNWANTED)]


def stale_note(newest_release: str, today: datetime, marker: Path | None) -> str | None:
    """Say that a catalog is old, once a catalog: `marker` remembers which one was told about; None when it is not."""
    try:
        newest = datetime.fromisoformat(newest_release).replace(tzinfo=UTC)
    except ValueError:
        return None
    days = (today - newest).days
    if days <= STALE_DAYS:
        return None
    if marker is not None:
        try:
            if marker.read_text("utf-8") == newest_release:
                return None
        except (OSError, UnicodeDecodeError):
            pass
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(newest_release, "utf-8")
        except OSError:
            pass
    return f"the newest model of this catalog is {days} days old: `willitrun-here models update ORG` adds newer ones"
