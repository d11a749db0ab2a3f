"""`calibrate`: measure this machine once and keep the corrections."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.errors import UnreadableError

if TYPE_CHECKING:
    from willitrun_estimator.calibration import Corrections
    from willitrun_probe.machine import Machine


@click.command()
@JSON
@click.option("--remove", is_flag=True, help="Forget what was measured on this machine.")
@click.option("--show", is_flag=True, help="Show what is known, measure nothing.")
@click.option(
    "--model", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Also run llama-bench on a GGUF file."
)
def calibrate(*, as_json: bool, remove: bool, show: bool, model: str | None) -> int:
    """Measure this machine once and keep the corrections: memory, disks, and what an installed llama.cpp does here.

    Takes about a minute; leave the machine alone while it runs. Later answers use it until the hardware changes. What
    `launch --exec` measures is kept in the same place.
    """
    from willitrun_here.calibrate import store  # noqa: PLC0415 - after the options are read
    from willitrun_here.cli.output import print_json, print_text  # noqa: PLC0415
    from willitrun_probe.collect import here  # noqa: PLC0415

    machine = here(timeout_s=20.0)
    if remove:
        gone = store.remove(machine.shape_hash)
        print_text("This machine's corrections are gone." if gone else "There were no corrections of this machine.")
        return 0
    known = store.read(machine.shape_hash) if show else measure(machine, None if model is None else Path(model))
    if known is None:
        print_text("Nothing was measured on this machine yet.")
    elif as_json:
        print_json(known)
    else:
        print_text("\n".join(lines_of(known)))
    return 0


def measure(machine: Machine, model: Path | None) -> Corrections | None:
    """Measure the machine, and the engine on a model file; keep all of it and return what is known then."""
    from datetime import UTC, datetime  # noqa: PLC0415 - only here

    from willitrun_here.calibrate import runs, store  # noqa: PLC0415
    from willitrun_here.calibrate.measure import measure as measured  # noqa: PLC0415
    from willitrun_here.cli.output import note  # noqa: PLC0415

    program = llama_bench()
    if model is not None and program is None:
        raise UnreadableError("no llama-bench was found on PATH", "Install llama.cpp, or leave --model out.")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    known = measured(machine, say=note, now=now, before=store.read(machine.shape_hash), program=program)
    try:
        note(f"kept in {store.write(known)}")
    except OSError as error:
        raise UnreadableError(f"the corrections cannot be kept: {error}", "Set WILLITRUN_STATE to a folder.") from None
    if model is None or program is None:
        return known
    note(f"llama-bench on {model} …")
    if not runs.run_engine(store.with_measurements(machine, known), model, program=program, now=now):
        note("  it measured nothing")
    return store.read(machine.shape_hash)


def llama_bench() -> str | None:
    """Return the installed llama-bench: beside the llama-server that is used, else the one on PATH."""
    from willitrun_here.ask import llama_server  # noqa: PLC0415 - only here

    server = llama_server()
    beside = Path(server).resolve().parent / "llama-bench" if server else None
    return str(beside) if beside is not None and beside.is_file() else shutil.which("llama-bench")


def lines_of(known: Corrections) -> list[str]:
    """Return what is known of a machine as lines for people."""
    rate = known.ram_bandwidth_bytes_per_s
    found = [f"memory  {rate / 1e9:.1f} GB/s" if rate else "memory  unknown"]
    found += [f"disk    {speed / 1e9:.2f} GB/s  {path}" for path, speed in known.disk_read_bytes_per_s.items()]
    found += [
        f"{rate.weight_type:8}{rate.decode_bytes_per_s / 1e9:.1f} GB/s of weights, "
        f"{rate.prefill_ops_per_s / 1e9:.0f} Gop/s in a prompt"
        for rate in known.product_rates
    ]
    found += [
        f"{run.test:8}{run.measured_tokens_per_s:.1f} tok/s, predicted {run.predicted_tokens_per_s:.1f}"
        f"  {run.model} {run.quant} ({run.where})"
        for run in known.runs
    ]
    return found
