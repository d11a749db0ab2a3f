"""The user's own catalog: one readable file a model, in a folder of the user's data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import CatalogError, FileAccessError, FileFormatError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.source import read_small

SCHEMA = "willitrun.model/1"
MAX_ENTRY_BYTES = 16 << 20
_UNSAFE = re.compile(r"[^a-z0-9._-]+")


class Entry(Struct, frozen=True, kw_only=True):
    """One model of the user's catalog, with where it came from and when."""

    schema: str = SCHEMA
    added_from: str
    """What was given to `models add`: a path, `hf:ORG/REPO:FILE`, `ollama:NAME`."""
    added_at: str
    """UTC, ISO 8601 with a trailing Z."""
    model: ModelSpec


def entry_name(text: str) -> str:
    """Turn a model's name into the name that is typed and that its file has."""
    name = _UNSAFE.sub("-", text.lower().replace("ollama:", "").replace("hf:", "")).strip("-.")
    if not name:
        raise CatalogError(f"{text!r} is not a name for a model", "give one with --name")
    return name[:120]


def write_entry(folder: Path, entry: Entry) -> Path:
    """Write an entry so that a reader sees the old file or the new one; raises `CatalogError`."""
    path = folder / f"{entry.model.name}.json"
    if entry_name(entry.model.name) != entry.model.name:
        raise CatalogError(f"{entry.model.name!r} is not a name for a model", f"use {entry_name(entry.model.name)}")
    data = readable(entry)
    decode_entry(data, str(path))
    import tempfile  # noqa: PLC0415 - slow to import, and most runs only read

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except OSError as error:
        raise FileAccessError(str(path), f"cannot be written: {error.strerror}") from error
    return path


def readable(entry: Entry) -> bytes:
    """Write an entry as JSON that people can read and compare: a line per layer and per tensor."""
    built = msgspec.to_builtins(entry)
    lists = {key: built["model"].pop(key) or [] for key in ("layers", "tensors")}
    text = msgspec.json.format(msgspec.json.encode(built), indent=2).decode().removesuffix("\n  }\n}")
    for key, items in lists.items():
        lines = ",\n".join("      " + msgspec.json.encode(item).decode() for item in items)
        text += f',\n    "{key}": [\n{lines}\n    ]' if items else f',\n    "{key}": null'
    return (text + "\n  }\n}\n").encode()


def decode_entry(data: bytes, path: str) -> Entry:
    """Decode and check an entry; raises `FileFormatError` naming what is wrong."""
    try:
        entry = msgspec.json.decode(data, type=Entry)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FileFormatError(path, f"is not a model entry: {error}") from error
    model = entry.model
    if entry.schema != SCHEMA:
        raise FileFormatError(path, f"has schema {entry.schema!r}, expected {SCHEMA!r}", field="schema")
    if not model.layers:
        raise FileFormatError(path, "has no layers", field="model.layers")
    for field in ("hidden_size", "vocab_size", "max_context_tokens"):
        if getattr(model, field) <= 0:
            raise FileFormatError(path, f"is {getattr(model, field)}", field=f"model.{field}")
    return entry


def read_entry(path: Path) -> Entry:
    """Read one entry; raises `CatalogError`."""
    return decode_entry(read_small(path, MAX_ENTRY_BYTES), str(path))


def entries(folder: Path) -> Iterator[Entry | CatalogError]:
    """Read all entries in the order of their names. A broken one is yielded as its error and hides no other."""
    try:
        paths = sorted(folder.glob("*.json"))
    except OSError:
        return
    for path in paths:
        try:
            yield read_entry(path)
        except CatalogError as error:
            yield error


def find_entry(folder: Path, query: str) -> ModelSpec | None:
    """Find a model by its name or an alias, or return None; raises `CatalogError` when its file is broken."""
    wanted = entry_name(query) if query.strip() else ""
    path = folder / f"{wanted}.json"
    if wanted and path.is_file():
        return read_entry(path).model
    if not folder.is_dir():
        return None
    for entry in entries(folder):
        if isinstance(entry, Entry) and query.lower() in (alias.lower() for alias in entry.model.aliases):
            return entry.model
    return None
