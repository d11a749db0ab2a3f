"""`probe`: this machine and the evidence."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from willitrun_here.cli.arguments import JSON, Choice, Option, Path, Seconds
from willitrun_here.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from willitrun_probe.machine import Machine

DRIVER_BROKEN = 3


TIMEOUT = Option(
    "--timeout",
    Seconds(0.1, 3600),
    20.0,
    "Seconds after which vendor libraries are given up.",
    "timeout_s",
    show_default=True,
)
ROOT = Option(
    "--root", Path(folder=True), metavar="DIR", help="Read DIR/proc, DIR/sys … instead of this system's files."
)
PARAMETERS = (
    JSON,
    Option("--save", Path(), metavar="FILE", help="Also write the JSON to FILE."),
    TIMEOUT,
    ROOT,
    Option("--machine", metavar="DIR|FILE", help="Replay a recording, or show a saved probe."),
    Option("--format", Choice(("text", "json", "html")), "text", "What to print.", "form"),
)


def probe(
    *, as_json: bool, save: str | None, timeout_s: float, root: str | None, machine: str | None, form: str
) -> int:
    """Show this machine and the evidence: which source answered, what failed, why, and what to do.

    Ends with 3 when a device is present and its driver unusable. WILLITRUN_NVML and WILLITRUN_AMDSMI name vendor
    libraries to load instead of the system's.
    """
    from willitrun_probe.findings import driver_broken  # noqa: PLC0415 - after the options are read
    from willitrun_probe.machine import to_json  # noqa: PLC0415

    seen = observe(timeout_s=timeout_s, root=root, machine=machine)
    encoded = to_json(seen)
    if save is not None:
        try:
            from pathlib import Path  # noqa: PLC0415 - as said there

            Path(save).write_bytes(encoded + b"\n")
        except OSError as error:
            raise UnreadableError(f"{save} cannot be written: {error.strerror or error}") from None
    if as_json or form == "json":
        from willitrun_here.cli.output import print_json  # noqa: PLC0415

        print_json(seen)
    elif form == "html":
        from willitrun_here.cli.output import print_text  # noqa: PLC0415
        from willitrun_here.render import machine_page  # noqa: PLC0415

        print_text(machine_page.render(seen))
    else:
        from willitrun_here.cli.output import console  # noqa: PLC0415
        from willitrun_here.render.machine import show  # noqa: PLC0415

        show(seen, console())
    return DRIVER_BROKEN if driver_broken(seen) else 0


def observe(*, timeout_s: float, root: str | None = None, machine: str | None = None) -> Machine:
    """Collect this machine, another tree's, or a recorded or saved one. Raises UsageError, UnreadableError."""
    if root is not None and machine is not None:
        raise UsageError("--root and --machine contradict each other", "Drop one of them.")
    if machine is not None and machine != "here":
        return _recorded(machine, timeout_s=timeout_s)
    from willitrun_probe.collect import here  # noqa: PLC0415 - after the options are read

    if root is None:
        from willitrun_here.calibrate.store import read, with_measurements  # noqa: PLC0415 - as said there

        seen = here(timeout_s=timeout_s)
        return with_measurements(seen, read(seen.shape_hash))
    if not os.path.isdir(root):  # noqa: PTH112 - pathlib is slow to import beside a probe
        raise UnreadableError(f"{root} is not a folder", "Name a folder that holds proc and sys.")
    return here(timeout_s=timeout_s, root=root)


def _recorded(machine: str, *, timeout_s: float) -> Machine:
    if os.path.isdir(machine):  # noqa: PTH112
        from willitrun_probe.record import open_recording  # noqa: PLC0415

        return open_recording(machine, timeout_s=timeout_s)
    from pathlib import Path  # noqa: PLC0415 - as said there

    import msgspec  # noqa: PLC0415

    from willitrun_probe.machine import from_json  # noqa: PLC0415

    advice = "Save one with: willitrun-here probe --save FILE"
    try:
        return from_json(Path(machine).read_bytes())
    except OSError as error:
        raise UnreadableError(f"{machine}: {error.strerror or error}", advice) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{machine} is not a saved probe: {error}", advice) from None
