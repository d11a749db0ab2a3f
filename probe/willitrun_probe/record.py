"""Recordings: a folder with everything the probe read, replayed through the same code path.

    recording.json   what is no file: clock, environment, architecture, sizes of file systems, access rights
    files.txt        the files that were read, one section each
    nvml.spec        answers of NVML, one C function a line
    amdsmi.spec      answers of AMD SMI likewise

A section of files.txt starts with `=== PATH`; `=== PATH -> TARGET` is a symbolic link, `=== PATH ! EACCES` a file
that cannot be read. A content line that starts with `=` or a backslash is written with a backslash before it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from willitrun_probe.errors import ProbeError
from willitrun_probe.gpus.spec import ABSENT, Libraries
from willitrun_probe.roots import Recorded, Roots, Space

if TYPE_CHECKING:
    from willitrun_probe.machine import Machine

SCHEMA = "willitrun.recording/1"
_MARK = "=== "


class Recording(NamedTuple):
    """A recorded machine, ready to be collected."""

    roots: Roots
    libraries: Libraries
    environment: dict[str, str]
    observed: float
    origin: str
    """Where the recording comes from: recorded on the machine, or composed from public documentation."""


def open_recording(folder: str | os.PathLike[str], *, timeout_s: float = 20.0) -> Machine:
    """Collect the machine a recording describes, by the code that collects a real one; raises ProbeError."""
    from willitrun_probe.collect import collect  # noqa: PLC0415 - the children that read recordings do without

    recording = read_recording(folder)
    return collect(
        roots=recording.roots,
        libraries=recording.libraries,
        environment=recording.environment,
        timeout_s=timeout_s,
        now=recording.observed,
    )


def read_recording(folder: str | os.PathLike[str]) -> Recording:
    """Read what a recording holds; raises ProbeError when the folder holds none."""
    path = Path(folder)
    try:
        facts = json.loads((path / "recording.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        advice = "`willitrun-here record DIR` makes one."
        raise ProbeError(f"{path} holds no readable recording: {error}", advice) from None
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        advice = f"this version reads {SCHEMA}"
        raise ProbeError(f"{path}/recording.json is not a recording of a known schema", advice)
    specs = {name: str(path / name) if (path / name).is_file() else ABSENT for name in ("nvml.spec", "amdsmi.spec")}
    environment = {str(key): str(value) for key, value in _table(facts, "environment").items()}
    observed = facts.get("observed", 0)
    roots = Roots(recorded=_recorded(path, facts))
    roots.location = str(path)
    return Recording(
        roots=roots,
        libraries=Libraries(specs["nvml.spec"], specs["amdsmi.spec"]),
        environment=environment,
        observed=float(observed) if isinstance(observed, int | float) else 0.0,
        origin=str(facts.get("origin", "")),
    )


def open_roots(location: str) -> Roots:
    """Open what a child is told to read: a recording's folder, or the root of a tree."""
    if (Path(location) / "recording.json").is_file():
        return read_recording(location).roots
    return Roots(location)


def parse_files(text: str) -> tuple[dict[str, bytes], dict[str, str], dict[str, str]]:
    """Read files.txt into contents, links and failures, each by path."""
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    failures: dict[str, str] = {}
    path: str | None = None
    content: list[str] = []

    def close() -> None:
        if path is not None:
            files[path] = "".join(content).encode("utf-8", "surrogateescape")
        content.clear()

    for line in text.splitlines(keepends=True):
        if not line.startswith(_MARK):
            content.append(line.removeprefix("\\"))
            continue
        close()
        title = line[len(_MARK) :].rstrip("\n")
        path = None
        if " -> " in title:
            name, _, target = title.partition(" -> ")
            links[name] = target
        elif " ! " in title:
            name, _, reason = title.partition(" ! ")
            failures[name] = reason
        else:
            path = title
    close()
    return files, links, failures


def _recorded(path: Path, facts: dict[str, Any]) -> Recorded:
    try:
        text = (path / "files.txt").read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ProbeError(f"{path}/files.txt cannot be read: {error.strerror}") from None
    files, links, failures = parse_files(text)
    space: dict[str, Space] = {}
    for name, sizes in _table(facts, "space").items():
        if isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(size, int) for size in sizes):  # noqa: PLR2004
            space[name] = Space(sizes[0], sizes[1])
    return Recorded(
        files=files,
        links=links,
        failures=failures,
        space=space,
        access={name: bool(allowed) for name, allowed in _table(facts, "access").items()},
        architecture=facts.get("architecture") if isinstance(facts.get("architecture"), str) else None,
        system=str(facts.get("system", "Linux")),
    )


def _table(facts: dict[str, Any], name: str) -> dict[str, Any]:
    value = facts.get(name)
    return value if isinstance(value, dict) else {}


def write_files(files: dict[str, str], links: dict[str, str], failures: dict[str, str]) -> str:
    """Write contents, links and failures as `parse_files` reads them."""
    parts = [f"{_MARK}{path} -> {target}\n" for path, target in sorted(links.items())]
    parts += [f"{_MARK}{path} ! {reason}\n" for path, reason in sorted(failures.items())]
    for path, text in sorted(files.items()):
        lines = text.splitlines(keepends=True)
        body = "".join(f"\\{line}" if line.startswith(("=", "\\")) else line for line in lines)
        parts.append(f"{_MARK}{path}\n{body}" + ("" if body.endswith("\n") or not body else "\n"))
    return "".join(parts)
