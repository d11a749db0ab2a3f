"""Worker processes that work on groups of lines, each in the order in which it gets them."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from willitrun_here.errors import AgentError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Lines = list[bytes]
Work = Callable[[Lines], Lines]

FORKED = "fork" in multiprocessing.get_all_start_methods()
"""Forked workers start at once and share what is loaded already."""


class Workers:
    """So many processes, each with a thread here that waits for it.

    All are forked before the first thread starts: a child of a process with threads may inherit a lock that nobody will
    ever give back. Use it as a context: on leaving, what is still worked on is given up.
    """

    def __init__(self, count: int, work: Work) -> None:
        context = multiprocessing.get_context("fork") if FORKED else multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(count):
            here, there = context.Pipe()
            self._connections.append(here)
            inherited = (*self._connections,) if FORKED else ()
            process = context.Process(target=serve, args=(there, work, inherited), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._processes)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the processes, then the threads that wait for them."""
        for process in self._processes:
            process.terminate()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            connection.close()

    def hand_out(self, parts: Sequence[Lines]) -> list[Future[Lines]]:
        """Give each worker its part, to be worked on after what it has already."""
        return [
            thread.submit(asked, connection, part)
            for thread, connection, part in zip(self._threads, self._connections, parts, strict=True)
        ]


def asked(connection: Connection[Lines, Lines], part: Lines) -> Lines:
    """Send a part to a worker and wait for what it makes of it. Raises AgentError where the worker has ended."""
    try:
        connection.send(part)
        return connection.recv()
    except (EOFError, OSError):
        raise AgentError(
            "a worker process ended before it had answered",
            "The system may have stopped it for want of memory: take a smaller --jobs.",
        ) from None


def serve(connection: Connection[Lines, Lines], work: Work, inherited: Sequence[Connection]) -> None:
    """Work on what comes until nobody is left who would send; an interrupt is for the parent to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for one in inherited:
        one.close()
    while True:
        try:
            part = connection.recv()
        except EOFError:
            return
        connection.send(work(part))
