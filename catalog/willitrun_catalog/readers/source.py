"""Where bytes come from: a regular file, memory, or whatever else can be read at an offset."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from willitrun_catalog.errors import FileAccessError, FileFormatError


class ByteSource(Protocol):
    """Bytes that can be read at any offset."""

    name: str
    """For messages: a path or an address."""
    size: int
    """Length of the whole, in bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end."""
        ...


class MemorySource:
    """Bytes that are in memory already."""

    def __init__(self, data: bytes, name: str = "memory", size: int | None = None) -> None:
        self.name = name
        self.size = len(data) if size is None else size
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end."""
        return self._data[offset : offset + length]


class FileSource:
    """An open regular file. Reads are bounded by the size it had when it was opened."""

    def __init__(self, descriptor: int, name: str, status: os.stat_result) -> None:
        self.name = name
        self.size = status.st_size
        self.modified_ns = status.st_mtime_ns
        self._descriptor = descriptor

    def read_at(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; raises `FileAccessError` where the system refuses or the file shrank."""
        wanted = max(0, min(length, self.size - offset))
        pieces = []
        while wanted:
            try:
                piece = os.pread(self._descriptor, wanted, offset)
            except OSError as error:
                raise FileAccessError(self.name, f"cannot be read: {error.strerror}") from error
            if not piece:
                raise FileAccessError(
                    self.name, "became shorter while it was read", "wait until whatever writes it is done"
                )
            pieces.append(piece)
            offset += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check_unchanged(self) -> None:
        """Raise `FileAccessError` when the file is not the one that was opened any more."""
        status = os.fstat(self._descriptor)
        if status.st_size != self.size or status.st_mtime_ns != self.modified_ns:
            raise FileAccessError(self.name, "changed while it was read", "wait until whatever writes it is done")


@contextmanager
def open_file(path: Path) -> Iterator[FileSource]:
    """Open a regular file and check at the end that nobody changed it meanwhile.

    Pipes, devices and folders are refused without waiting on them. Raises `FileAccessError`.
    """
    name = str(path)
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileAccessError(name, f"cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise FileAccessError(repr(name), f"is not a path: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileAccessError(name, f"is a {kind_of(status.st_mode)}, not a file")
        source = FileSource(descriptor, name, status)
        yield source
        source.check_unchanged()
    finally:
        os.close(descriptor)


def kind_of(mode: int) -> str:
    """Say in a word what a file system entry is."""
    kinds = (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    )
    return next((word for test, word in kinds if test(mode)), "special file")


def read_small(path: Path, limit_bytes: int) -> bytes:
    """Read a whole small file (a configuration, a manifest); raises `FileFormatError` beyond the limit."""
    with open_file(path) as source:
        if source.size > limit_bytes:
            raise FileFormatError(str(path), f"has {source.size} bytes, more than {limit_bytes} for such a file")
        return source.read_at(0, source.size)
