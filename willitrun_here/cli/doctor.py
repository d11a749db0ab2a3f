"""`doctor`: what was tried, what is wrong, what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.options import option
from willitrun_here.cli.probe import DRIVER_BROKEN, ROOT, TIMEOUT, observe

if TYPE_CHECKING:
    from willitrun_here.fleet.reporting import Reporting


@click.command()
@JSON
@option(TIMEOUT)
@option(ROOT)
@click.option("--machine", metavar="DIR|FILE", help="Diagnose a recording or a saved probe instead.")
@click.option("--state-dir", type=click.Path(file_okay=False), help="Where `report` keeps identity and spool.")
def doctor(*, as_json: bool, timeout_s: float, root: str | None, machine: str | None, state_dir: str | None) -> int:
    """Say what was tried, what is wrong and what to type. Ends with 3 when a driver is unusable.

    A machine that reports into a fleet also says what waits, what was refused and what the server took last.
    """
    from willitrun_here.doctor import diagnose  # noqa: PLC0415 - after the options are read
    from willitrun_probe.findings import driver_broken  # noqa: PLC0415

    seen = observe(timeout_s=timeout_s, root=root, machine=machine)
    own = root is None and machine in {None, "here"}
    diagnosis = diagnose(seen, standing(state_dir) if own else None)
    if as_json:
        from willitrun_here.cli.output import print_json  # noqa: PLC0415

        print_json(diagnosis)
    else:
        from willitrun_here.cli.output import console  # noqa: PLC0415
        from willitrun_here.render.machine import show_diagnosis  # noqa: PLC0415

        screen = console()
        show_diagnosis(diagnosis, screen)
        if diagnosis.reporting is not None:
            from willitrun_here.fleet.reporting import lines  # noqa: PLC0415
            from willitrun_here.render.wording import printable  # noqa: PLC0415

            for line in lines(diagnosis.reporting):
                screen.print(f"reporting: {printable(line)}", markup=False)
    return DRIVER_BROKEN if driver_broken(seen) else 0


def standing(state_dir: str | None) -> Reporting | None:
    """Return how reporting stands, here or in a given state folder; an unreadable one is said and nothing more."""
    from pathlib import Path  # noqa: PLC0415 - only for this
    from time import time  # noqa: PLC0415

    from willitrun_here.cli.output import note  # noqa: PLC0415
    from willitrun_here.fleet import reporting  # noqa: PLC0415
    from willitrun_here.fleet.errors import FleetError  # noqa: PLC0415

    try:
        return reporting.here() if state_dir is None else reporting.reporting(Path(state_dir), now=time())
    except FleetError as error:
        note(f"willitrun-here: reporting: {error}")
        return None
