"""Models that are on disk twice: the same bytes in two stores."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable

from msgspec import Struct

from willitrun_catalog.readers.local import Found

SAMPLE_BYTES = 1 << 16
SAMPLES = 16
_DIGEST = re.compile(r"(?:^|sha256-)([0-9a-f]{64})$")


class Duplicate(Struct, frozen=True, kw_only=True):
    """The same file under several names."""

    models: tuple[str, ...]
    """What to type for each, the one to keep first."""
    paths: tuple[str, ...]
    reclaim_bytes: int
    """Disk space that is free once only one is left."""
    basis: str
    """`same digest` where the store names files by it, else `same size and samples`."""


def duplicates(models: Iterable[Found]) -> tuple[Duplicate, ...]:
    """Find files that hold the same bytes and do not share them already (hard links do)."""
    by_size: dict[int, list[Found]] = defaultdict(list)
    for found in models:
        if found.format == "gguf" and found.files == 1:
            by_size[found.size_bytes].append(found)
    result = []
    for size, group in by_size.items():
        if len(group) > 1 and size:
            result += _among(group, size)
    return tuple(sorted(result, key=lambda duplicate: -duplicate.reclaim_bytes))


def _among(group: list[Found], size: int) -> list[Duplicate]:
    named = {found.path: _digest(found) for found in group}
    sampled = not all(named.values())
    same: dict[str, list[Found]] = defaultdict(list)
    for found in group:
        key = _sample(found.path, size) if sampled else named[found.path]
        if key:
            same[key].append(found)
    result = []
    for copies in same.values():
        inodes = {_inode(found.path) for found in copies}
        if len(copies) > 1 and len(inodes) > 1:
            digests = {named[found.path] for found in copies}
            result.append(
                Duplicate(
                    models=tuple(found.model for found in copies),
                    paths=tuple(found.path for found in copies),
                    reclaim_bytes=size * (len(inodes) - 1),
                    basis="same digest" if len(digests) == 1 and None not in digests else "same size and samples",
                )
            )
    return result


def _digest(found: Found) -> str | None:
    match = _DIGEST.search(os.path.basename(found.path))  # noqa: PTH119 - a string in, a string out
    return match[1] if match else None


def _inode(path: str) -> tuple[int, int] | str:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _sample(path: str, size: int) -> str | None:
    """Digest of pieces spread over the whole file; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for number in range(SAMPLES):
            digest.update(os.pread(descriptor, SAMPLE_BYTES, max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1)))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return digest.hexdigest()
