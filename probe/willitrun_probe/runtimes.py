"""The inference engines installed here, with their versions. Asking starts programs, so it is cached and bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.machine import Engine, Finding
from willitrun_probe.roots import Roots, clean

VERSION_S = 2.0
"""An engine that has not told its version by then is listed without one."""
_OUTPUT_LIMIT = 16384


class Program(NamedTuple):
    """How an engine is found and asked."""

    engine: str
    executable: str
    arguments: tuple[str, ...]
    pattern: str
    package: str | None = None
    """The Python package it belongs to, whose metadata tells the version without starting it."""


PROGRAMS = (
    Program("llama.cpp", "llama-server", ("--version",), r"version:\s*(\S+)"),
    Program("ollama", "ollama", ("--version",), r"version(?: is|:)?\s+v?([0-9][\w.+-]*)"),
    Program("vllm", "vllm", ("--version",), r"([0-9]+\.[0-9][\w.+-]*)", package="vllm"),
    Program("docker", "docker", ("--version",), r"version\s+([0-9][\w.+-]*)"),
)


def read_engines(
    roots: Roots, environment: Mapping[str, str], *, cache: str | None, deadline: float
) -> tuple[tuple[Engine, ...], list[Finding]]:
    """Find the engines on PATH and tell their versions, all asked at the same time.

    `cache` is a JSON file keyed by path, size and modification time; unusable or unwritable it is just not used.
    `deadline` is on the monotonic clock. A recording has no programs.
    """
    if not roots.live:
        return (), []
    present = [(program, path) for program in PROGRAMS if (path := _which(program.executable, environment))]
    packaged = {path: _packaged(path, program.package) for program, path in present if program.package is not None}
    known = _load(cache)
    keys = {path: _key(path) for _, path in present}
    waiting = [(program, path) for program, path in present if not packaged.get(path) and keys[path] not in known]
    told = _ask(waiting, environment, min(deadline, time.monotonic() + VERSION_S))
    fresh = {keys[path]: version for path, version in told.items() if version is not None}
    if fresh:
        _store(cache, {**known, **fresh})
    engines: list[Engine] = []
    found: list[Finding] = []
    for program, path in present:
        version = packaged.get(path) or known.get(keys[path]) or told.get(path)
        if version is None:
            found.append(finding("engine-version-unknown", path, f"`{program.executable} --version` did not tell it"))
        engines.append(Engine(name=program.engine, version=version, path=path))
    return tuple(engines), found


def _which(name: str, environment: Mapping[str, str]) -> str | None:
    for folder in environment.get("PATH", "").split(os.pathsep):
        path = os.path.join(folder, name)  # noqa: PTH118 - a PATH has hundreds of candidates
        if folder.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):  # noqa: PTH113
            return path
    return None


def _packaged(path: str, package: str) -> str | None:
    """Read a package's version from the metadata beside its script (`PREFIX/bin`, `PREFIX/lib/python3.*`)."""
    import glob  # noqa: PLC0415 - only where such an engine is installed

    prefix = os.path.dirname(os.path.dirname(os.path.realpath(path)))  # noqa: PTH120 - as above
    lib = os.path.join(glob.escape(prefix), "lib", "python3*")  # noqa: PTH118
    for folder in ("site-packages", "dist-packages"):
        for found in glob.glob(os.path.join(lib, folder, f"{package}-*.dist-info")):  # noqa: PTH118, PTH207
            return clean(os.path.basename(found).split("-")[1].removesuffix(".dist"))  # noqa: PTH119
    return None


def _key(path: str) -> str:
    try:
        facts = os.stat(path)  # noqa: PTH116 - the real file behind a link counts
    except OSError:
        return path
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


def _ask(waiting: list[tuple[Program, str]], environment: Mapping[str, str], deadline: float) -> dict[str, str | None]:
    """Start all programs, read their output until the deadline, and leave none behind."""
    if not waiting:
        return {}
    import re  # noqa: PLC0415 - only where an engine is asked
    import select  # noqa: PLC0415

    running: dict[int, tuple[int, Program, str, bytearray]] = {}
    for program, path in waiting:
        end, write = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
            (os.POSIX_SPAWN_DUP2, write, 2),
        ]
        try:
            pid = os.posix_spawn(path, [path, *program.arguments], dict(environment), file_actions=actions, setsid=True)
        except OSError:
            os.close(end)
        else:
            running[end] = (pid, program, path, bytearray())
        finally:
            os.close(write)
    open_ends = set(running)
    while open_ends and (left := deadline - time.monotonic()) > 0:
        for end in select.select(list(open_ends), [], [], left)[0]:
            chunk = os.read(end, 4096)
            if chunk and len(running[end][3]) < _OUTPUT_LIMIT:
                running[end][3].extend(chunk)
            else:
                open_ends.discard(end)
    found: dict[str, str | None] = {}
    for end, (pid, program, path, output) in running.items():
        os.close(end)
        _finish(pid)
        match = re.search(program.pattern, output.decode("utf-8", "replace"))
        found[path] = clean(match.group(1)) if match else None
    return found


def _finish(pid: int) -> None:
    import signal  # noqa: PLC0415 - only after an engine was asked

    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    limit = time.monotonic() + 0.5
    while time.monotonic() < limit:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        time.sleep(0.002)


def _read(path: str) -> Any:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes longer to import than this to run
        import json  # noqa: PLC0415 - most machines have no such file

        return json.load(file)


def _load(cache: str | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        data = _read(cache)
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}


def _store(cache: str | None, versions: dict[str, str]) -> None:
    if cache is None:
        return
    import json  # noqa: PLC0415 - only after an engine was asked
    from pathlib import Path  # noqa: PLC0415

    path = Path(cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(versions), "utf-8")
        fresh.replace(path)
    except OSError:
        return
