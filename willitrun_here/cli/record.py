"""`record`: a redacted, replayable recording of this machine."""

from __future__ import annotations

import click

from willitrun_here.cli.options import option
from willitrun_here.cli.probe import ROOT, TIMEOUT


@click.command()
@click.argument("folder", type=click.Path(), metavar="DIR")
@option(TIMEOUT)
@option(ROOT)
@click.option("--keep-ids", is_flag=True, help="Keep UUIDs, serial numbers, names and process ids.")
def record(*, folder: str, timeout_s: float, root: str | None, keep_ids: bool) -> int:
    """Write what the probe reads on this machine into a new folder DIR, without names and ids.

    `probe --machine DIR` replays it anywhere; please attach it to reports about wrong detection.
    """
    import os  # noqa: PLC0415 - this command passes the process's own environment on
    import time  # noqa: PLC0415

    from willitrun_here.cli.output import note  # noqa: PLC0415
    from willitrun_probe.collect import libraries_from  # noqa: PLC0415
    from willitrun_probe.recorder import record as write_recording  # noqa: PLC0415
    from willitrun_probe.roots import Roots  # noqa: PLC0415

    machine = write_recording(
        folder,
        roots=Roots(root or "/"),
        libraries=libraries_from(os.environ),
        environment=os.environ,
        timeout_s=timeout_s,
        now=time.time(),
        keep_ids=keep_ids,
    )
    note(f"recorded {len(machine.gpus)} GPUs into {folder}; replay with: willitrun-here probe --machine {folder}")
    return 0
