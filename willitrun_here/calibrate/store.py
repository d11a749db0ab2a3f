"""What was measured on machines of one shape, kept in one JSON file a shape.

New hardware starts without corrections, and the old file is simply no longer read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from willitrun_here.places import state_path

if TYPE_CHECKING:
    from pathlib import Path

    from willitrun_estimator.calibration import Corrections, Run
    from willitrun_probe.machine import Machine

MOST_RUNS = 64


def store_folder() -> Path:
    """Return the folder of the corrections; WILLITRUN_STATE names another."""
    from pathlib import Path  # noqa: PLC0415 - takes longer to import than a file takes to read

    return Path(store_path())


def store_path() -> str:
    """Return the same folder as text."""
    return os.environ.get("WILLITRUN_STATE") or state_path()


def path_of(shape_hash: str, folder: Path) -> Path:
    """Return the file of one machine shape."""
    return folder / file_name(shape_hash)


def file_name(shape_hash: str) -> str:
    """Return how the file of one machine shape is called."""
    return f"calibration-{shape_hash or 'unknown'}.json"


def read(shape_hash: str, folder: Path | None = None) -> Corrections | None:
    """Return the corrections of a machine shape; None without any or when the file cannot be understood."""
    try:
        with open(os.path.join(folder or store_path(), file_name(shape_hash)), "rb") as file:  # noqa: PTH118,PTH123
            data = file.read()
    except OSError:
        return None
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - most machines have none

    try:
        found = msgspec.json.decode(data, type=Corrections)
    except msgspec.MsgspecError:
        return None
    return found if found.shape_hash == shape_hash else None


def write(corrections: Corrections, folder: Path | None = None) -> Path:
    """Keep corrections; the file is replaced in one step. Raises OSError."""
    path = path_of(corrections.shape_hash, folder or store_folder())
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(corrections), indent=1) + b"\n")
    beside.replace(path)
    return path


def remove(shape_hash: str, folder: Path | None = None) -> bool:
    """Forget a machine shape; tell whether there was anything."""
    path = path_of(shape_hash, folder or store_folder())
    if not path.exists():
        return False
    path.unlink()
    return True


def keep_runs(shape_hash: str, runs: Sequence[Run], folder: Path | None = None) -> Path:
    """Add engine runs to a machine's corrections; a newer run of the same plan replaces the older. Raises OSError."""
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - only here

    known = read(shape_hash, folder) or Corrections(shape_hash=shape_hash)
    fresh = {_key(run) for run in runs}
    kept = [run for run in known.runs if _key(run) not in fresh]
    return write(structs.replace(known, runs=(*kept, *runs)[-MOST_RUNS:]), folder)


def _key(run: Run) -> tuple[object, ...]:
    return (run.test, run.model, run.quant, run.engine, run.gpu_layers, run.cpu_moe_layers)


def with_measurements(machine: Machine, corrections: Corrections | None) -> Machine:
    """Return a probed machine with the measured rates in it; unchanged for another machine's corrections."""
    if corrections is None or corrections.shape_hash != machine.shape_hash:
        return machine
    rate = corrections.ram_bandwidth_bytes_per_s
    memory = machine.memory
    if rate is not None:
        sources = memory.sources | {"bandwidth_bytes_per_s": "micro-benchmark"}
        memory = structs.replace(memory, bandwidth_bytes_per_s=rate, sources=sources)
    cpu = structs.replace(
        machine.cpu,
        product_rates=corrections.product_rates,
        block_s=corrections.block_s,
        side_s=corrections.side_s,
    )
    disks = tuple(
        structs.replace(disk, read_bytes_per_s=corrections.disk_read_bytes_per_s.get(disk.path, disk.read_bytes_per_s))
        for disk in machine.disks
    )
    return structs.replace(machine, memory=memory, cpu=cpu, disks=disks)
