"""The one thread that writes reports: what waits becomes one transaction, and nobody is answered before its commit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.errors import CloneError, FleetError, UnreachableError
from willitrun_here.fleet.ingest import Ingest, Parcel

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BATCH = 50
QUEUE = 2000
"""Reports that may wait; beyond it agents are asked to come back (they keep what they have)."""

Work = Callable[["Connection"], Any]


class Writer:
    """Runs work in transactions of its own thread, in batches; a future of `submit` is done after the commit."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._ingest = Ingest(engine.dialect.name)
        self._queue: queue.Queue[tuple[Work, Future[Any]] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="fleet-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Future[Any]:
        """Queue a piece of work; raises UnreachableError when too much waits already."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a client that hangs up must not cancel what may be committed already
        try:
            self._queue.put_nowait((work, future))
        except queue.Full:
            raise UnreachableError("the server is busy", retry_after_s=30.0) from None
        return future

    def submit_report(self, parcel: Parcel, *, received_at: float | None = None) -> Future[Any]:
        """Queue a report; the future gives its Receipt, or raises CloneError after marking the agent."""

        def work(connection: Connection) -> Any:
            now = self._clock()
            try:
                return self._ingest.store(connection, parcel, received_at=received_at or now)
            except CloneError as error:
                # The mark must be committed with the batch, so the answer is a value here and an error at the edge.
                agent_id = str(parcel.report.agent_id)
                marked = update(tables.agent).where(tables.agent.c.agent_id == agent_id).values(clone_seen_at=now)
                connection.execute(marked)
                return error

        return self.submit(work)

    def forget(self) -> None:
        """Drop what is cached of facts, after some were pruned."""
        self._ingest.forget()

    def close(self) -> None:
        """Finish what waits and stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = [first], False
            while len(batch) < BATCH:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._write(batch)
            if last:
                return

    def _write(self, batch: list[tuple[Work, Future[Any]]]) -> None:
        try:
            with writing(self._engine) as connection:
                results = [work(connection) for work, _ in batch]
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one who asked, not to this thread
            self._ingest.forget()
            if len(batch) > 1:
                for item in batch:
                    self._write([item])
            else:
                batch[0][1].set_exception(_known(error))
            return
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _known(error: Exception) -> Exception:
    if isinstance(error, SQLAlchemyError) and not isinstance(error, FleetError):
        return UnreachableError(f"the database did not take it: {str(error).splitlines()[0][:200]}", retry_after_s=5.0)
    return error
