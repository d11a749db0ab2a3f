"""Run a vendor reader in a child that may crash, hang, exit or chatter: the caller always gets its lines back.

The child writes one JSON line per device on a private pipe; its stdout and stderr are caught apart, since vendor
libraries print there. When the time is over the child's process group is killed and waited for only for a bounded
time: a child stuck in an uninterruptible driver call (D state) cannot be killed and must not hold the caller.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

ANSWER_LIMIT = 1 << 24
CHATTER_LIMIT = 4096
REAP_S = 0.5
"""How long a killed child is waited for."""
STALL_SHARE = 0.5
"""A device that answers nothing for this share of the time left is given up, so that the next ones get theirs."""
SPARE_START_S = 0.3
"""Less time than this is not worth another child."""

Ending = Literal["complete", "crashed", "timeout", "exited", "unstartable"]
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")  # noqa: PTH100,PTH118,PTH120


class Reply(NamedTuple):
    """What came back from one vendor's children."""

    lines: list[dict[str, Any]]
    ending: Ending
    """How the last child ended; `complete` when it said that it was done."""
    reason: str
    """In words, empty when complete."""
    seconds: float
    chatter: str
    """The end of what the library printed."""
    lost: dict[int, str]
    """Devices during which a child crashed or hung, with the reason."""
    unreaped: tuple[int, ...]
    """Process ids of killed children that had not ended when the caller went on."""


def ask(arguments: Mapping[str, Any], *, timeout_s: float, environment: Mapping[str, str]) -> Reply:
    """Ask one vendor's reader, starting again behind a device that kills it, until done or out of time."""
    start = time.monotonic()
    lines: list[dict[str, Any]] = []
    lost: dict[int, str] = {}
    unreaped: list[int] = []
    chatter = ""
    while True:
        left = start + timeout_s - time.monotonic()
        again = {"done": _done(lines), "avoid": list(lost)}
        run = _run({**arguments, **again}, timeout_s=left, environment=environment)
        lines += run.lines
        chatter = (chatter + run.chatter)[-CHATTER_LIMIT:]
        unreaped += run.unreaped
        at = run.device
        if run.ending == "complete" or at is None or at in lost:
            break
        lost[at] = run.reason
        if start + timeout_s - time.monotonic() < SPARE_START_S:
            break
    seconds = round(time.monotonic() - start, 4)
    return Reply(lines, run.ending, run.reason, seconds, chatter.strip(), lost, tuple(unreaped))


class _Run(NamedTuple):
    lines: list[dict[str, Any]]
    ending: Ending
    reason: str
    chatter: str
    device: int | None
    unreaped: tuple[int, ...]


def _done(lines: Sequence[Mapping[str, Any]]) -> list[int]:
    return [line["device"] for line in lines if isinstance(line.get("device"), int) and line.get("kind") == "device"]


def _run(arguments: Mapping[str, Any], *, timeout_s: float, environment: Mapping[str, str]) -> _Run:
    import select  # noqa: PLC0415 - only where a vendor is asked

    deadline = time.monotonic() + timeout_s
    answer_end, answer_write = os.pipe()
    chatter_end, chatter_write = os.pipe()
    try:
        pid = _spawn(arguments, answer_write, chatter_write, environment)
    except OSError as error:
        for descriptor in (answer_end, chatter_end):
            os.close(descriptor)
        return _Run([], "unstartable", f"no child process could be started: {error.strerror}", "", None, ())
    finally:
        os.close(answer_write)
        os.close(chatter_write)
    answers = _Answers()
    chatter = bytearray()
    finished = _listen(answer_end, chatter_end, answers, chatter, deadline)
    os.close(answer_end)
    status = _end(pid, time.monotonic() + (0.2 if finished else 0.0))
    while select.select([chatter_end], [], [], 0)[0] and (chunk := os.read(chatter_end, 65536)):
        chatter += chunk
    os.close(chatter_end)
    ending, reason = _judge(answers.complete, finished, status)
    said = bytes(chatter[-CHATTER_LIMIT:]).decode("utf-8", "replace")
    unreaped = () if status is not None else (pid,)
    return _Run(answers.lines, ending, reason, said, answers.device, unreaped)


def _spawn(arguments: Mapping[str, Any], answers: int, chatter: int, environment: Mapping[str, str]) -> int:
    """Start the child: own session, stdin from nothing, answers on descriptor 3, everything printed caught."""
    import json  # noqa: PLC0415 - only where there is a vendor to ask

    arguments = {**arguments, "path": sys.path}
    argv = [sys.executable or "python3", "-S", "-P", "-W", "ignore", _CHILD, json.dumps(arguments)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, chatter, 1),
        (os.POSIX_SPAWN_DUP2, chatter, 2),
        (os.POSIX_SPAWN_DUP2, answers, 3),
    ]
    return os.posix_spawnp(argv[0], argv, dict(environment), file_actions=actions, setsid=True)


class _Answers:
    """Splits the child's bytes into JSON lines; a line that is none is dropped."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.complete = False
        self.device: int | None = None
        """The device the child said it was about to ask and has not reported yet."""
        self._rest = b""
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        import json  # noqa: PLC0415 - as above

        self._size += len(chunk)
        if self._size > ANSWER_LIMIT:
            return
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for text in whole:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if not isinstance(line, dict):
                continue
            if line.get("kind") == "at":
                self.device = line.get("device") if isinstance(line.get("device"), int) else None
            elif line.get("kind") == "end":
                self.complete = True
            else:
                self.device = None
                self.lines.append(line)


def _listen(answer_end: int, chatter_end: int, answers: _Answers, chatter: bytearray, deadline: float) -> bool:
    """Read until the child is done, closes its pipe, stalls or runs out of time; False for the last two."""
    import select  # noqa: PLC0415 - as above

    open_ends = {answer_end, chatter_end}
    progress = time.monotonic()
    patience = max(0.0, (deadline - progress) * STALL_SHARE)
    while answer_end in open_ends:
        now = time.monotonic()
        until = deadline if answers.device is None else min(deadline, progress + patience)
        if now >= until:
            return False
        for descriptor in select.select(list(open_ends), [], [], until - now)[0]:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                open_ends.discard(descriptor)
            elif descriptor == answer_end:
                answers.feed(chunk)
                progress = time.monotonic()
                patience = max(0.0, (deadline - progress) * STALL_SHARE)
            else:
                chatter += chunk
                del chatter[:-CHATTER_LIMIT]
        if answers.complete:
            break
    return True


def _end(pid: int, grace: float) -> int | None:
    """Reap the child, killing it after its grace; None when even then it has not ended."""
    status = _wait(pid, lambda: time.monotonic() < grace)
    if status is not None:
        return status
    _kill(pid)
    limit = time.monotonic() + REAP_S
    return _wait(pid, lambda: time.monotonic() < limit)


def _kill(pid: int) -> None:
    import signal  # noqa: PLC0415 - only after a child that hung

    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        try:
            kill(target, signal.SIGKILL)
        except OSError:
            continue
        return


def _wait(pid: int, patient: Callable[[], bool]) -> int | None:
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        if done:
            return os.waitstatus_to_exitcode(status)
        if not patient():
            return None
        time.sleep(0.002)


def _judge(complete: bool, finished: bool, status: int | None) -> tuple[Ending, str]:
    if complete:
        return "complete", ""
    if not finished:
        stuck = "" if status is not None else "; it could not even be killed and may stay until a reboot"
        return "timeout", f"gave no answer in time{stuck}"
    if status is not None and status < 0:
        import signal  # noqa: PLC0415 - only after a child that crashed

        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return "crashed", f"crashed with {name}"
    return "exited", f"ended the process with status {status}"
