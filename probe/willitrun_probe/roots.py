"""Where facts are read from: the running machine, another directory tree, or a recording of a machine.

Every reader of this package takes a `Roots` and asks it for absolute paths such as `/proc/meminfo`. A file that
is there but cannot be read is remembered in `unreadable`; nothing here raises for what it finds in a file system.
Standard library only: the children that talk to vendor libraries import this module too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import NamedTuple

LIMIT_BYTES = 4 * 1024**2
"""No file is read beyond this: /proc/cpuinfo of a thousand processors is about 1.5 MB."""

_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})", re.ASCII)
_LARGEST = 2**63 - 1
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
"""What the kernel answers for a device or attribute that is not there (or not supported)."""


class Space(NamedTuple):
    """The size of a file system."""

    total_bytes: int
    free_bytes: int


class Recorded(NamedTuple):
    """What a recording knows: file contents, symbolic links, and answers of system calls that are no files."""

    files: dict[str, bytes]
    links: dict[str, str]
    failures: dict[str, str]
    """Path to the reason why it could not be read, as `EACCES`."""
    space: dict[str, Space]
    access: dict[str, bool]
    architecture: str | None = None
    system: str = "Linux"


class Roots:
    """Reads the files of one machine and never raises for what it finds.

    `root` is a directory holding `proc`, `sys`, `dev`, `etc` …; `/` is this machine. With `recorded` nothing
    outside that value is read.
    """

    def __init__(self, root: str | os.PathLike[str] = "/", *, recorded: Recorded | None = None) -> None:
        self.root = os.fspath(root).rstrip("/")
        self.recorded = recorded
        self.location: str | None = (self.root or "/") if recorded is None else None
        """What a child is told to read the same machine; None when only this process has it."""
        self.unreadable: dict[str, str] = {}
        self.seen: dict[str, bytes] = {}
        """Every file that was read, with what it held; a recorder writes these."""
        self.seen_names: set[str] = set()
        """Paths known to be there without having been read."""
        self.seen_links: dict[str, str] = {}
        self.seen_space: dict[str, Space] = {}
        self.seen_access: dict[str, bool] = {}
        self._folders: dict[str, set[str]] | None = None

    @property
    def live(self) -> bool:
        """Whether this is the running machine itself."""
        return self.recorded is None and not self.root

    @property
    def architecture(self) -> str | None:
        """The machine type as `uname -m` spells it; None for a foreign tree."""
        if self.recorded is not None:
            return self.recorded.architecture
        return os.uname().machine if self.live else None

    @property
    def system(self) -> str:
        """The operating system family: `Linux` or `Darwin`."""
        if self.recorded is not None:
            return self.recorded.system
        return os.uname().sysname if self.live else "Linux"

    def data(self, path: str) -> bytes | None:
        """Return what a file holds (at most `LIMIT_BYTES`), or None when it is missing or unreadable."""
        data = self._recorded_bytes(path) if self.recorded is not None else self._read(path)
        if data is not None:
            self.seen[path] = data
        return data

    def text(self, path: str) -> str | None:
        """Return a file as text, undecodable bytes replaced; None when it is missing or unreadable."""
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "replace").replace("\0", "\n")

    def line(self, path: str) -> str | None:
        """Return the first line of a file without spaces around it; None when there is nothing in it."""
        text = self.text(path)
        first = text.strip().splitlines()[:1] if text else []
        return clean(first[0]) or None if first else None

    def integer(self, path: str) -> int | None:
        """Return the integer a file holds (decimal or 0x…), or None when it holds none that fits 63 bits."""
        return to_integer(self.line(path))

    def listing(self, path: str) -> tuple[str, ...]:
        """Return the sorted names in a folder; empty when it is missing or unreadable."""
        if self.recorded is not None:
            names = tuple(sorted(self._recorded_folders().get(path.rstrip("/"), ())))
        else:
            try:
                names = tuple(sorted(os.listdir(self.root + path)))  # noqa: PTH208 - half the cost of Path.iterdir
            except (OSError, ValueError) as error:
                self._note(path, error)
                return ()
        self.seen_names.update(f"{path}/{name}" for name in names)
        return names

    def link(self, path: str) -> str | None:
        """Return the target of a symbolic link, or None when there is none."""
        if self.recorded is not None:
            target = self.recorded.links.get(path)
        else:
            try:
                target = os.readlink(self.root + path)  # noqa: PTH115 - half the cost of Path.readlink
            except OSError:
                target = None
        if target is not None:
            self.seen_links[path] = target
        return target

    def exists(self, path: str) -> bool:
        """Say whether a path is there, readable or not."""
        if self.recorded is None:
            there = os.path.lexists(self.root + path)
        else:
            recorded = self.recorded
            there = (
                path in recorded.files
                or path in recorded.links
                or path in recorded.failures
                or path in recorded.access
                or path in self._recorded_folders()
            )
        if there:
            self.seen_names.add(path)
        return there

    def space(self, path: str) -> Space | None:
        """Return the size of the file system that holds a path; None when that cannot be told."""
        if self.recorded is not None:
            found = self.recorded.space.get(path)
        else:
            try:
                answer = os.statvfs(self.root + path)
            except OSError:
                return None
            found = Space(total_bytes=answer.f_blocks * answer.f_frsize, free_bytes=answer.f_bavail * answer.f_frsize)
        if found is not None:
            self.seen_space[path] = found
        return found

    def accessible(self, path: str) -> bool | None:
        """Say whether this user may read and write a device node; None when it is not there."""
        if self.recorded is not None:
            allowed = self.recorded.access.get(path)
        elif not os.path.lexists(self.root + path):
            return None
        else:
            allowed = os.access(self.root + path, os.R_OK | os.W_OK)
        if allowed is not None:
            self.seen_access[path] = allowed
        return allowed

    def _read(self, path: str) -> bytes | None:
        try:
            descriptor = os.open(self.root + path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            self._note(path, error)
            return None
        chunks: list[bytes] = []
        size = 0
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            while size < LIMIT_BYTES and (chunk := os.read(descriptor, min(65536, LIMIT_BYTES - size))):
                chunks.append(chunk)
                size += len(chunk)
        except OSError as error:
            self._note(path, error)
            return None
        finally:
            os.close(descriptor)
        return b"".join(chunks)

    def _recorded_bytes(self, path: str) -> bytes | None:
        recorded = self.recorded
        if recorded is None:
            return None
        if path in recorded.failures:
            self.unreadable.setdefault(path, recorded.failures[path])
            return None
        return recorded.files.get(path)

    def _recorded_folders(self) -> dict[str, set[str]]:
        if self._folders is None:
            folders: dict[str, set[str]] = {}
            self._folders = folders
            recorded = self.recorded or Recorded({}, {}, {}, {}, {})
            for known in (recorded.files, recorded.links, recorded.failures, recorded.access):
                for path in known:
                    while path not in {"/", ""}:
                        parent, _, name = path.rpartition("/")
                        folders.setdefault(parent, set()).add(name)
                        path = parent  # noqa: PLW2901 - climbing to the root
        return self._folders

    def _note(self, path: str, error: Exception) -> None:
        code = getattr(error, "errno", None)
        if code is None or code not in _MISSING:
            self.unreadable.setdefault(path, errno.errorcode.get(code or 0, type(error).__name__))


def to_integer(text: str | None) -> int | None:
    """Read a decimal or 0x… integer that fits 63 bits; None for anything else."""
    text = (text or "").strip()
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text, 16 if "x" in text.lower() else 10)
    return value if abs(value) <= _LARGEST else None


def clean(text: str | None) -> str:
    """Keep the printable characters of a name that came from hardware or firmware, at most 200 of them."""
    return " ".join("".join(c if c.isprintable() else " " for c in (text or "")[:400]).split())[:200]


def cpu_list(text: str | None) -> frozenset[int]:
    """Read the kernel's list format, `0-3,8,10-11`; what is not a number is left out."""
    found: set[int] = set()
    for part in (text or "").split(","):
        low, _, high = part.strip().partition("-")
        first = to_integer(low)
        last = to_integer(high) if high else first
        if first is not None and last is not None and 0 <= first <= last < 2**16:
            found.update(range(first, last + 1))
    return frozenset(found)


def key_values(text: str | None, separator: str = ":") -> dict[str, str]:
    """Read lines of `key: value`; a key that repeats keeps its first value."""
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        key, mark, value = line.partition(separator)
        if mark or separator == " ":
            found.setdefault(key.strip(), value.strip())
    return found
