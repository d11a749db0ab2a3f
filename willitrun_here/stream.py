"""Lines in, answers out: read as they come, in order, with bounded memory, on all cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import msgspec

from willitrun_here.batch import MOST_LINE_BYTES, answer_lines

if TYPE_CHECKING:
    from concurrent.futures import Future

    from willitrun_here.workers import Lines, Workers

BLOCK_BYTES = 1 << 16
"""Read at once, as much as a pipe of Linux holds: some 400 lines of those that wait."""
FEW_LINES = 200
"""So many are not worth a second process."""
AHEAD = 4
"""Groups in work beyond the one whose answers are awaited."""


class About(msgspec.Struct):
    """What of a line decides who answers it."""

    model: str = ""


class Asked(NamedTuple):
    """A group of lines in work."""

    parts: list[list[int]]
    """Which lines each worker has."""
    answers: list[Future[Lines]]

    def together(self) -> Lines:
        """Return the answers in the order of the lines."""
        found: dict[int, bytes] = {}
        for part, answers in zip(self.parts, self.answers, strict=True):
            found |= zip(part, answers.result(), strict=True)
        return [found[i] for i in range(len(found))]


_about = msgspec.json.Decoder(About)


def blocks(file: BinaryIO) -> Iterator[Lines]:
    """Yield the lines of a file in groups, as they come: whoever waits for an answer gets it before the next line.

    Of a line that is too long only the beginning is kept.
    """
    # A buffer's lock must not be held while the process ends, and the thread that reads may be waiting then.
    read = getattr(file, "raw", file).read
    rest = b""
    while data := read(BLOCK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if group := [line for line in lines if line.strip()]:
            yield group
        rest = rest[: MOST_LINE_BYTES + 1]
    if rest.strip():
        yield [rest]


def answered(groups: Iterable[Lines], *, jobs: int) -> Iterator[Lines]:
    """Yield the answers to each group of lines; a bad line yields an error object and nothing stops.

    Raises AgentError where a worker process was stopped from outside.
    """
    groups, count = iter(groups), 0
    for group in groups:
        count += len(group)
        if jobs > 1 and count > FEW_LINES:
            yield from answered_in_parallel(chain([group], groups), jobs)
            return
        yield answer_lines(group)


def answered_in_parallel(groups: Iterator[Lines], jobs: int) -> Iterator[Lines]:
    """Answer groups in worker processes, while a thread reads on."""
    from willitrun_here.workers import Workers  # noqa: PLC0415 - only for many lines

    waiting: Queue[Asked | BaseException | None] = Queue(AHEAD)
    try:
        with Workers(jobs, answer_lines) as workers:
            Thread(target=hand_out, args=(groups, workers, waiting), daemon=True).start()
            while (asked := waiting.get()) is not None:
                if isinstance(asked, BaseException):
                    raise asked
                yield asked.together()
    finally:
        while not waiting.empty():  # room for the thread to find that there are no workers any more
            waiting.get()


def hand_out(groups: Iterator[Lines], workers: Workers, waiting: Queue[Asked | BaseException | None]) -> None:
    """Read groups and share them among workers; what ends the reading is passed on.

    Lines about one model go to one worker as far as that shares the work evenly: what a worker has learnt of a model
    the others need not learn too.
    """
    try:
        for group in groups:
            parts = shares(group, len(workers))
            waiting.put(Asked(parts, workers.hand_out([[group[i] for i in part] for part in parts])))
        waiting.put(None)
    except BaseException as error:  # noqa: BLE001 - raised again where the answers are awaited
        waiting.put(error)


def shares(group: Lines, jobs: int) -> list[list[int]]:
    """Return which lines of a group each worker takes: equally many, neighbours by model."""
    order = sorted(range(len(group)), key=lambda i: model_of(group[i]))
    cuts = [len(group) * job // jobs for job in range(jobs + 1)]
    return [order[start:end] for start, end in pairwise(cuts)]


def model_of(line: bytes) -> str:
    """Return the model a line names; nothing where the line cannot be read."""
    try:
        return _about.decode(line).model
    except msgspec.MsgspecError:
        return ""
