"""Write expected.json of every recorded machine anew; look at the difference before committing it.

python tests/machines/refresh.py [NAME …]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from willitrun_probe.collect import collect
from willitrun_probe.machine import Machine
from willitrun_probe.record import read_recording

HERE = Path(__file__).parent


def folders() -> list[Path]:
    """Return the recordings of this folder."""
    return sorted(path.parent for path in HERE.glob("*/recording.json"))


def observe(folder: Path, *, isolated: bool = False, timeout_s: float = 10.0) -> Machine:
    """Replay a recording."""
    recording = read_recording(folder)
    return collect(
        roots=recording.roots,
        libraries=recording.libraries,
        environment=recording.environment,
        timeout_s=timeout_s,
        now=recording.observed,
        isolated=isolated,
    )


def comparable(machine: Machine) -> dict[str, Any]:
    """Return a machine without what differs from run to run and from checkout to checkout."""
    facts: dict[str, Any] = msgspec.to_builtins(machine)
    for source in facts["sources"]:
        source["seconds"] = 0.0
    return {key: value for key, value in facts.items() if value not in (None, (), [])}


def main() -> None:
    """Refresh all machines, or those named."""
    for folder in folders():
        if len(sys.argv) == 1 or folder.name in sys.argv[1:]:
            text = json.dumps(comparable(observe(folder)), indent=1, sort_keys=True)
            (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
