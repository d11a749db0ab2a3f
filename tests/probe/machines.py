"""Recorded machines for the unit tests: replayed in this process."""

from __future__ import annotations

from pathlib import Path

from willitrun_probe.collect import collect
from willitrun_probe.machine import Machine
from willitrun_probe.record import Recording, read_recording
from willitrun_probe.roots import Recorded, Roots

FOLDER = Path(__file__).parents[1] / "machines"


def recording(name: str) -> Recording:
    return read_recording(FOLDER / name)


def machine(name: str, **environment: str) -> Machine:
    """Replay a machine, with variables added to its environment."""
    found = recording(name)
    return collect(
        roots=found.roots,
        libraries=found.libraries,
        environment={**found.environment, **environment},
        timeout_s=5,
        now=found.observed,
        isolated=False,
    )


def roots(files: dict[str, str], **links: str) -> Roots:
    """Return roots that hold these files only."""
    contents = {path: text.encode() for path, text in files.items()}
    return Roots(recorded=Recorded(files=contents, links=links, failures={}, space={}, access={}))
