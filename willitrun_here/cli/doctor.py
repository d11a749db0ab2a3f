"""`doctor`: what was tried, what is wrong, what to type."""

from __future__ import annotations

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.probe import DRIVER_BROKEN, ROOT, TIMEOUT, observe


@click.command()
@JSON
@TIMEOUT
@ROOT
@click.option("--machine", metavar="DIR|FILE", help="Diagnose a recording or a saved probe instead.")
def doctor(*, as_json: bool, timeout_s: float, root: str | None, machine: str | None) -> int:
    """Say what was tried, what is wrong and what to type. Ends with 3 when a driver is unusable."""
    from willitrun_here.doctor import diagnose  # noqa: PLC0415 - after the options are read
    from willitrun_probe.findings import driver_broken  # noqa: PLC0415

    seen = observe(timeout_s=timeout_s, root=root, machine=machine)
    diagnosis = diagnose(seen)
    if as_json:
        from willitrun_here.cli.output import print_json  # noqa: PLC0415

        print_json(diagnosis)
    else:
        from willitrun_here.cli.output import console  # noqa: PLC0415
        from willitrun_here.render.machine import show_diagnosis  # noqa: PLC0415

        show_diagnosis(diagnosis, console())
    return DRIVER_BROKEN if driver_broken(seen) else 0
