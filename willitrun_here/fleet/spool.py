"""The durable queue of reports on disk: what was put is there after a crash, whole; the oldest goes when it is full.

A `state` report is replaced by any newer report; `facts` and `measured` queue, bounded. A file name carries the
sequence, so files sort in the order they were made. A crash leaves at most a hidden half-written file, removed at the
next opening.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from msgspec import Struct

from willitrun_here.fleet.durable import sync_directory, write_durably

Kind = Literal["state", "facts", "measured"]

KINDS: dict[str, Kind] = {"state": "state", "facts": "facts", "measured": "measured"}
MAX_FACTS = 64
MAX_MEASURED = 1000
MAX_MEASURED_BYTES = 16 * 1024**2
KEPT_REJECTED = 10


class Entry(Struct, frozen=True):
    """One report waiting."""

    sequence: int
    kind: Kind
    path: Path

    def body(self) -> bytes:
        """Return the report as it was put."""
        return self.path.read_bytes()


class Spool:
    """A folder of reports waiting for the server.

    One process at a time may use it (`durable.locked`), any number may look at it `read_only`. `kind`s are kept apart
    by their file names.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.directory = directory
        self.rejected_directory = directory / "rejected"
        if read_only:
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in directory.glob(".*"):
            half.unlink(missing_ok=True)

    def put(self, kind: Kind, sequence: int, body: bytes) -> None:
        """Keep a report. When this returns it survives a crash; it replaces an older state, as all carry one."""
        write_durably(self.directory / f"{sequence:020d}-{kind}.json", body)
        for entry in self.entries():
            if entry.kind == "state" and entry.sequence < sequence:
                entry.path.unlink(missing_ok=True)
        if kind != "state":
            self._drop_oldest(kind)

    def entries(self) -> list[Entry]:
        """Return what waits, oldest first."""
        entries = []
        for path in sorted(self.directory.glob("*-*.json")):
            number, _, kind = path.stem.partition("-")
            if number.isdigit() and kind in KINDS:
                entries.append(Entry(int(number), KINDS[kind], path))
        return entries

    def remove(self, entry: Entry) -> None:
        """Forget a report that the server has committed."""
        entry.path.unlink(missing_ok=True)
        sync_directory(self.directory)

    def reject(self, entry: Entry, reason: str) -> None:
        """Put a report aside that the server will never take; the newest few are kept for a person to look at."""
        self.rejected_directory.mkdir(mode=0o700, exist_ok=True)
        write_durably(self.rejected_directory / f"{entry.path.stem}.reason", reason.encode())
        with contextlib.suppress(FileNotFoundError):
            entry.path.replace(self.rejected_directory / entry.path.name)
        sync_directory(self.directory)
        for old in sorted(self.rejected_directory.glob("*.json"))[:-KEPT_REJECTED]:
            old.unlink(missing_ok=True)
            old.with_suffix(".reason").unlink(missing_ok=True)

    def rejected(self) -> list[tuple[str, str]]:
        """Return (file name, reason) of the reports put aside, oldest first."""
        if not self.rejected_directory.is_dir():
            return []
        return [
            (path.with_suffix(".json").name, path.read_text(encoding="utf-8", errors="replace"))
            for path in sorted(self.rejected_directory.glob("*.reason"))
        ]

    @property
    def dropped(self) -> int:
        """How many reports were given up for want of room, ever."""
        try:
            return int((self.directory / "dropped").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0

    def oldest_s(self, now: float) -> float:
        """Return how long the oldest report has waited."""
        times = []
        for entry in self.entries():
            with contextlib.suppress(FileNotFoundError):
                times.append(entry.path.stat().st_mtime)
        return max(0.0, now - min(times)) if times else 0.0

    def _drop_oldest(self, kind: Kind) -> None:
        entries = [entry for entry in self.entries() if entry.kind == kind]
        limit = MAX_FACTS if kind == "facts" else MAX_MEASURED
        excess = entries[: max(0, len(entries) - limit)]
        if kind == "measured":
            excess = excess or self._beyond_bytes(entries)
        if not excess:
            return
        write_durably(self.directory / "dropped", str(self.dropped + len(excess)).encode())
        for entry in excess:
            entry.path.unlink(missing_ok=True)
        sync_directory(self.directory)

    @staticmethod
    def _beyond_bytes(entries: list[Entry]) -> list[Entry]:
        sizes = [entry.path.stat().st_size for entry in entries]
        total, count = sum(sizes), 0
        while total > MAX_MEASURED_BYTES and count < len(sizes) - 1:
            total -= sizes[count]
            count += 1
        return entries[:count]
