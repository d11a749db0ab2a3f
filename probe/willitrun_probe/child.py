"""The child process of one vendor: reads, writes JSON lines on descriptor 3, and ends without any teardown.

Started by path with one JSON argument (see `isolate`), so that the interpreter's start-up hooks do not run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from willitrun_probe.roots import Roots

ANSWERS = 3


def main() -> None:
    """Read one vendor's devices as the argument says."""
    arguments = json.loads(sys.argv[1])
    sys.path[:] = arguments["path"]
    emit: Callable[[dict[str, Any]], None] = write
    read(arguments, emit)
    write({"kind": "end"})
    os._exit(0)


def write(line: dict[str, Any]) -> None:
    """Write one answer; the pipe belongs to this process alone."""
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(ANSWERS, data) :]


def read(arguments: dict[str, Any], emit: Callable[[dict[str, Any]], None], *, roots: Roots | None = None) -> None:
    """Run the reader the arguments name: `nvidia`, `amd`, `intel` or `apple`."""
    vendor = arguments["vendor"]
    done, avoid = (frozenset(arguments.get(name, ())) for name in ("done", "avoid"))
    if vendor == "nvidia":
        from willitrun_probe.gpus import nvml  # noqa: PLC0415 - each child loads its own vendor only

        nvml.read(arguments.get("library"), emit, done=done, avoid=avoid)
        return
    if roots is None:
        from willitrun_probe.record import open_roots  # noqa: PLC0415

        roots = open_roots(arguments["root"])
    if vendor == "amd":
        from willitrun_probe.gpus import amd_sysfs, smi  # noqa: PLC0415

        amd_sysfs.read(roots, emit, leave=done | avoid)
        smi.read(arguments.get("library"), emit)
    elif vendor == "intel":
        from willitrun_probe.gpus import intel_sysfs  # noqa: PLC0415

        intel_sysfs.read(roots, emit, leave=done | avoid)
    elif vendor == "apple":
        from willitrun_probe.gpus import apple_metal  # noqa: PLC0415

        apple_metal.read(roots, emit)
    if arguments.get("record"):
        emit({"kind": "files", **written(roots)})


def written(roots: Roots) -> dict[str, Any]:
    """Tell a recorder what was read here, as text that survives JSON."""
    return {
        "files": {path: data.decode("utf-8", "surrogateescape") for path, data in roots.seen.items()},
        "links": roots.seen_links,
        "failures": roots.unreadable,
        "names": sorted(roots.seen_names),
    }


if __name__ == "__main__":
    main()
