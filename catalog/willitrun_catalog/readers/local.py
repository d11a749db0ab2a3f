"""Everything that is on this machine already: a scan of the stores, remembered between runs.

A scan reads the beginning of each file that is new or has changed, so that a thousand models take a second; what a
file holds in full is read when it is asked about. Files that cannot be read are listed with the reason.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import CatalogError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.checkpoint import read_json, shard_paths
from willitrun_catalog.readers.config import class_name, gguf_architecture
from willitrun_catalog.readers.gguf import read_header, read_summary
from willitrun_catalog.readers.gguf_model import FILE_TYPES, part_paths
from willitrun_catalog.readers.names import quant_of
from willitrun_catalog.readers.ollama import blobs, pulled_models
from willitrun_catalog.readers.places import Places, find_places
from willitrun_catalog.readers.quantization import quantization
from willitrun_catalog.readers.source import kind_of, open_file

SCHEMA = "willitrun.scan/1"
MAX_ENTRIES = 20_000
MAX_DEPTH = 8
Store = Literal["ollama", "lm-studio", "huggingface", "llama.cpp", "gpt4all", "jan", "folder"]


class Found(Struct, frozen=True, kw_only=True):
    """One model on disk."""

    model: str
    """What to type as MODEL: `ollama:NAME` or a path."""
    store: Store
    path: str
    """The first file, or the folder, links followed."""
    format: Literal["gguf", "safetensors"]
    size_bytes: int
    files: int = 1
    title: str = ""
    architecture: str | None = None
    quant: str | None = None
    modified_ns: int = 0


class Problem(Struct, frozen=True, kw_only=True):
    """Something that looks like a model and cannot be read."""

    path: str
    reason: str


class Scan(Struct, frozen=True, kw_only=True):
    """What a scan found."""

    schema: str = SCHEMA
    models: tuple[Found, ...]
    problems: tuple[Problem, ...] = ()
    truncated: bool = False
    """There is more than a scan looks at."""


class _Facts(Struct, frozen=True, array_like=True):
    """What is remembered of one file."""

    size: int
    modified_ns: int
    title: str
    architecture: str | None
    quant: str | None
    kind: str
    """`general.type`; projectors and adapters are not listed."""


class _Cache(Struct, array_like=True):
    schema: str
    facts: dict[str, _Facts]


class _Candidate(Struct, frozen=True):
    model: str
    store: Store
    path: Path
    projector: bool = False


def scan(places: Places, folders: Iterable[Path] = ()) -> Scan:
    """Look into all stores and `folders`; never raises for what it finds there."""
    memory = _Memory(places.scan_cache)
    models: list[Found] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    looked = 0
    for candidate in _candidates(places, folders, problems):
        looked += 1
        if looked > MAX_ENTRIES:
            break
        try:
            found = _look(candidate, memory, seen)
        except CatalogError as error:
            problems.append(Problem(path=str(candidate.path), reason=error.message))
        else:
            if found is not None:
                models.append(found)
    memory.save()
    models.sort(key=lambda found: (-found.size_bytes, found.model))
    return Scan(models=tuple(models), problems=tuple(problems), truncated=looked > MAX_ENTRIES)


def local_models(places: Places | None = None, folders: Iterable[Path] = ()) -> Iterator[ModelSpec]:
    """Read every model that a scan finds, largest first; those that cannot be read are left out."""
    from willitrun_catalog.readers.open import open_anything  # noqa: PLC0415 - which reads one model, not a disk

    places = places or find_places()
    for found in scan(places, folders).models:
        try:
            yield open_anything(found.model, places)
        except CatalogError:
            continue


def _candidates(places: Places, folders: Iterable[Path], problems: list[Problem]) -> Iterator[_Candidate]:
    for store in places.ollama:
        for pulled in pulled_models(store):
            try:
                weights, _ = blobs(pulled.manifest, store)
            except CatalogError as error:
                problems.append(Problem(path=str(pulled.manifest), reason=error.message))
            else:
                yield _Candidate(f"ollama:{pulled.name}", "ollama", weights)
    stores: tuple[tuple[Store, Iterable[Path]], ...] = (
        ("lm-studio", places.lm_studio),
        ("huggingface", places.huggingface),
        ("llama.cpp", places.llama_cpp),
        ("gpt4all", places.gpt4all),
        ("jan", places.jan),
        ("folder", folders),
    )
    for name, tops in stores:
        for top in tops:
            yield from _walk(name, top, problems)


def _walk(store: Store, top: Path, problems: list[Problem]) -> Iterator[_Candidate]:
    def remember(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.append(Problem(path=str(error.filename), reason=f"cannot be listed: {error.strerror}"))

    base = len(top.parts)
    for folder, names, files in os.walk(top, onerror=remember):
        names[:] = sorted(name for name in names if name != "blobs" and not name.startswith("."))
        here = Path(folder)
        if len(here.parts) - base >= MAX_DEPTH:
            names.clear()
        problems += [
            Problem(path=str(here / name), reason="is a folder, not a file")
            for name in names
            if name.lower().endswith(".gguf")
        ]
        if "config.json" in files and any(file.endswith(".safetensors") for file in files):
            yield _Candidate(folder, store, here)
        for file in sorted(files):
            if file.lower().endswith(".gguf"):
                yield _Candidate(str(here / file), store, here / file, "mmproj" in file.lower())


def _look(candidate: _Candidate, memory: _Memory, seen: set[str]) -> Found | None:
    """Describe a candidate; None where it is not a model of its own or was seen already."""
    if candidate.projector:
        return None
    if candidate.path.is_dir():
        return _folder(candidate, seen)
    parts = part_paths(candidate.path)
    if parts[0].name != candidate.path.name:
        return None
    size, newest, real = 0, 0, ""
    for part in parts:
        status, where = _status(part)
        size += status.st_size
        newest = max(newest, status.st_mtime_ns)
        real = real or where
    if real in seen:
        return None
    seen.add(real)
    facts = memory.facts(real, candidate.path.name, size, newest)
    if facts.kind not in {"", "model"}:
        return None
    return Found(
        model=candidate.model,
        store=candidate.store,
        path=real,
        format="gguf",
        size_bytes=size,
        files=len(parts),
        title=facts.title or candidate.path.name,
        architecture=facts.architecture,
        quant=facts.quant,
        modified_ns=newest,
    )


def _status(path: Path) -> tuple[os.stat_result, str]:
    try:
        status = path.stat()
        real = os.path.realpath(path)
    except OSError as error:
        reason = "is a link that leads nowhere" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise CatalogError(f"{path}: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CatalogError(f"{path}: is a {kind_of(status.st_mode)}, not a file")
    return status, real


def _folder(candidate: _Candidate, seen: set[str]) -> Found | None:
    real = os.path.realpath(candidate.path)
    if real in seen:
        return None
    seen.add(real)
    config = read_json(candidate.path / "config.json")
    shards = shard_paths(candidate.path)
    statuses = [_status(shard)[0] for shard in shards]
    quant, _ = quantization(config)
    parent = candidate.path.parent.parent.name
    title = parent.removeprefix("models--").replace("--", "/") if parent.startswith("models--") else ""
    return Found(
        model=candidate.model,
        store=candidate.store,
        path=real,
        format="safetensors",
        size_bytes=sum(status.st_size for status in statuses),
        files=len(shards),
        title=title or candidate.path.name,
        architecture=gguf_architecture(config)[0] if class_name(config) else None,
        quant=quant,
        modified_ns=max(status.st_mtime_ns for status in statuses),
    )


class _Memory:
    """What earlier scans have read, by path, size and time of change."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, _Facts] = {}
        self._used: dict[str, _Facts] = {}
        if path is not None:
            try:
                cache = msgspec.msgpack.decode(path.read_bytes(), type=_Cache)
            except (OSError, msgspec.MsgspecError):
                return
            if cache.schema == SCHEMA:
                self._known = cache.facts

    def facts(self, real: str, name: str, size: int, modified_ns: int) -> _Facts:
        """Get what is known of a file, reading it where it is new; raises `CatalogError`."""
        known = self._known.get(real)
        if known is None or known.size != size or known.modified_ns != modified_ns:
            known = _read_facts(Path(real), name, size, modified_ns)
        self._used[real] = known
        return known

    def save(self) -> None:
        """Keep what was used for the next scan. A cache that cannot be written is no error."""
        if self._path is None or self._used == self._known:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".scan-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.msgpack.encode(_Cache(SCHEMA, self._used)))
            Path(temporary).replace(self._path)
        except OSError:
            return


def _read_facts(path: Path, name: str, size: int, modified_ns: int) -> _Facts:
    with open_file(path) as source:
        summary = read_summary(source)
        quant = FILE_TYPES.get(number) if isinstance(number := summary.get("general.file_type"), int) else None
        if quant is None and name.lower().endswith(".gguf"):
            quant = quant_of(name[:-5])
        if quant is None:
            # llama-quantize writes the file type behind the token table, and a blob's name says nothing.
            number = read_header(source, whole_file=False).metadata.get("general.file_type")
            quant = FILE_TYPES.get(number) if isinstance(number, int) else None
    architecture = summary.get("general.architecture")
    title, kind = summary.get("general.name"), summary.get("general.type")
    return _Facts(
        size=size,
        modified_ns=modified_ns,
        title=title if isinstance(title, str) else "",
        architecture=architecture if isinstance(architecture, str) else None,
        quant=quant,
        kind="mmproj" if architecture == "clip" else kind if isinstance(kind, str) else "",
    )
