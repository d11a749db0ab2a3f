"""Which flags each vLLM version has: a shipped list, for when none is installed.

`flags.json` names for every option of `vllm serve` the first release that has it and, where it went away, the last one
(option strings of the released wheels 0.10.0 to 0.33.0).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_estimator.vllm.versions import Version


class FlagList(Struct, frozen=True, forbid_unknown_fields=True):
    """The shipped file."""

    source: str
    versions: tuple[str, ...]
    flags: dict[str, tuple[str, str | None]]
    """First and last release; None while it exists."""


@lru_cache(maxsize=1)
def flag_list() -> FlagList:
    """Read the shipped list."""
    return msgspec.json.decode((Path(__file__).parent / "flags.json").read_bytes(), type=FlagList)


def known_flags(version: Version) -> frozenset[str]:
    """List the flags of a version; of one newer than the list, those of the newest."""
    newest = _version(flag_list().versions[-1])
    at = min(version, newest)
    return frozenset(
        name
        for name, (first, last) in flag_list().flags.items()
        if _version(first) <= at and (last is None or at <= _version(last))
    )


def unknown_flags(argv: list[str], version: Version) -> list[str]:
    """List the long options of a command that a version does not have; `--no-x` counts as `--x`."""
    known = known_flags(version)
    found = []
    for word in argv:
        name = word.partition("=")[0]
        positive = name.replace("--no-", "--", 1)
        if name.startswith("--") and name not in known and positive not in known:
            found.append(name)
    return found


def _version(text: str) -> Version:
    major, minor = text.split(".")
    return int(major), int(minor)
