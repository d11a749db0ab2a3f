"""The installed vLLM: its version without importing it, and its own argument parser where a command is launched.

Importing vLLM takes tens of seconds; the version stands in the name of its `dist-info` folder beside the interpreter
that the `vllm` script names.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from msgspec import Struct

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.flags import unknown_flags
from willitrun_estimator.vllm.versions import Version, parse_version
from willitrun_probe.machine import Machine

_DIST_INFO = re.compile(r"vllm-(.+)\.dist-info")
_FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
HELP_TIMEOUT_S = 120.0


class Installed(Struct, frozen=True, kw_only=True):
    """A vLLM found on this machine."""

    program: str
    version: Version
    release: str
    """As it names itself: `0.19.0`."""
    flags: frozenset[str] | None = None
    """From its own parser; None before it was asked, then the shipped list of the version counts."""

    def unknown(self, argv: list[str]) -> list[str]:
        """List the flags of a command that this installation does not have."""
        if self.flags is None:
            return unknown_flags(argv, self.version)
        return [word for word in argv if word.startswith("--") and word.partition("=")[0] not in self.flags]


def find(program: str | None) -> Installed | None:
    """Describe the vLLM that a `vllm` script belongs to; None without one, or when its version cannot be told."""
    if program is None:
        return None
    release = release_of(Path(program))
    if release is None:
        return None
    try:
        version = parse_version(release)
    except EstimatorError:
        return None
    return Installed(program=program, version=version, release=release)


def on(machine: Machine) -> Installed | None:
    """Describe the vLLM that the probe found on a machine; of one that is not here, only the version is known."""
    engine = next((one for one in machine.engines if one.name == "vllm"), None)
    if engine is None:
        return None
    found = find(engine.path)
    if found is not None or engine.version is None:
        return found
    try:
        version = parse_version(engine.version)
    except EstimatorError:
        return None
    return Installed(program="vllm", version=version, release=engine.version)


def release_of(script: Path) -> str | None:
    """Read the release from the `dist-info` folder of the environment a script runs in."""
    try:
        with script.open("rb") as file:
            first = file.readline(4096).decode("utf-8", "replace")
    except OSError:
        return None
    folders = [script.resolve().parent.parent]
    if first.startswith("#!"):
        interpreter = first[2:].strip().split(" ")[0]
        folders.insert(0, Path(interpreter).parent.parent)
    for folder in folders:
        for found in sorted(folder.glob("lib*/python3*/*-packages/vllm-*.dist-info")):
            match = _DIST_INFO.fullmatch(found.name)
            if match is not None:
                return match.group(1)
    return None


def ask_parser(installed: Installed, *, timeout_s: float = HELP_TIMEOUT_S) -> Installed:
    """Ask the installed vLLM's own parser for its flags; the same value back when it does not answer in time."""
    try:
        done = subprocess.run(
            [installed.program, "serve", "--help=all"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return installed
    names = frozenset(_FLAG.findall(done.stdout))
    if "--max-model-len" not in names:
        return installed
    return Installed(program=installed.program, version=installed.version, release=installed.release, flags=names)


def refusal(installed: Installed, argv: list[str], *, timeout_s: float = HELP_TIMEOUT_S) -> str | None:
    """Have the installed vLLM parse a whole command and stop at `--help`; give its objection, None when it has none.

    Its parser reads from left to right and checks every value before it comes to `--help`.
    """
    try:
        done = subprocess.run(
            [installed.program, *argv[1:], "--help"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if "error:" in line]
    return lines[-1].partition("error:")[2].strip() if done.returncode and lines else None
