"""Which flags the installed llama-server understands: read from its `--help` once and kept.

Names changed over the years: `--no-mmap` became `--load-mode` and a bare `-fa` became an error in 2026. A command
that works the first time therefore asks the build. Without an installed engine the newest known names are used.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_HELP_TIMEOUT_S = 10.0


class Flags(Struct, frozen=True, kw_only=True):
    """What one build understands."""

    names: frozenset[str]
    version: str | None = None
    flash_takes_value: bool = True
    layers_take_all: bool = True
    jinja_by_default: bool = True
    """Whether a model's own chat template is used without `--jinja`; older builds want it."""
    assumed: bool = False
    """True when no build was asked and the newest known names are used."""

    def __contains__(self, name: str) -> bool:
        return name in self.names


NEWEST = Flags(
    names=frozenset(
        (
            "-m",
            "-hf",
            "-hff",
            "-ngl",
            "-c",
            "-fa",
            "-ctk",
            "-ctv",
            "-ts",
            "-ncmoe",
            "-ot",
            "-ub",
            "-b",
            "-t",
            "-np",
            "-lm",
            "-cram",
            "-kvu",
            "-fit",
            "--host",
            "--port",
            "--numa",
            "-dev",
            "--no-mmproj",
        )
    ),
    version="0.5.0-dev (0c1e570)",
    assumed=True,
)
"""Names of llama.cpp commit 0c1e570 (2026-08), read from its `--help`."""


def parse_help(text: str, version: str | None = None) -> Flags:
    """Read the flags from the text of `llama-server --help`."""
    about: dict[str, str] = {}
    declared: list[str] = []
    for line in text.splitlines():
        if line.startswith("-"):
            declared = [name for part in line.split("  ")[:3] for name in _FLAG.findall(part)]
        for name in declared:
            about[name] = f"{about.get(name, '')} {' '.join(line.split())}"
    return Flags(
        names=frozenset(about),
        version=version,
        flash_takes_value="-fa" not in about or "on|off" in about["-fa"],
        layers_take_all="'all'" in about.get("-ngl", ""),
        jinja_by_default="--jinja" not in about or "default: enabled" in about["--jinja"],
    )


def installed(program: str, cache: Path) -> Flags:
    """Return the flags of an installed build, from the cache when the file has not changed; NEWEST if it cannot say."""
    try:
        stat = os.stat(program)  # noqa: PTH116 - one call, and a plain string is at hand
    except OSError:
        return NEWEST
    import hashlib  # noqa: PLC0415 - only where an engine is installed
    import subprocess  # noqa: PLC0415

    key = hashlib.sha256(
        f"{program}\0{stat.st_size}\0{stat.st_mtime_ns}\0{Flags.__struct_fields__}".encode()
    ).hexdigest()[:24]
    kept = cache / "flags" / f"{key}.json"
    try:
        return msgspec.json.decode(kept.read_bytes(), type=Flags)
    except (OSError, msgspec.DecodeError):
        pass
    try:
        shown = subprocess.run(
            [program, "--help"], capture_output=True, text=True, timeout=_HELP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return NEWEST
    flags = parse_help(shown.stdout)
    if "-m" not in flags:
        return NEWEST
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(msgspec.json.encode(flags))
    except OSError:
        pass  # an unwritable cache costs a second look, nothing else
    return flags
