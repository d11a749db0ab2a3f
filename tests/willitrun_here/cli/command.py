"""Running the command in this process, as a person would type it."""

from __future__ import annotations

import shlex

from msgspec import Struct

from willitrun_here.__main__ import main


class Done(Struct, frozen=True, kw_only=True):
    code: int
    out: str
    err: str


def typed(capfdbinary, line: str | list[str]) -> Done:  # type: ignore[no-untyped-def]
    """Run one command line; what it prints and its exit code come back."""
    capfdbinary.readouterr()
    code = main(shlex.split(line) if isinstance(line, str) else line)
    shown = capfdbinary.readouterr()
    return Done(code=code, out=shown.out.decode(), err=shown.err.decode())
