"""A vendor library that answers from a spec file instead of from a driver."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from willitrun_probe.gpus.spec import Answer, Line, parse_spec

_HANG_S = 3600.0


class Replay:
    """Answers calls from a spec; `missing` is the code of a call that has no line."""

    def __init__(self, path: str, *, missing: int) -> None:
        self._spec = parse_spec(Path(path).read_text("utf-8", errors="replace"))
        self._missing = missing

    def has(self, target: str, key: str) -> bool:
        """Say whether the spec has a line for a call of this very target."""
        return (target, key) in self._spec

    def answer(self, target: str, key: str, default: Answer | None = None) -> Answer:
        """Answer one call, after the waiting, hanging or dying that its line asks for."""
        line = self._spec.get((target, key)) or self._spec.get(("*", key))
        if line is None:
            return self._missing if default is None else default
        _act(line)
        return line.answer


def _act(line: Line) -> None:
    if line.wait_s:
        time.sleep(line.wait_s)
    if line.action == "HANG":
        time.sleep(_HANG_S)
    elif line.action == "SEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif line.action == "EXIT":
        os._exit(77)
