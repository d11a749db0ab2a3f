"""Runs of made-up models on machines that `calibrate` had measured: what its predictions are worth.

The file is what `python benchmarks/calibrate.py --keep FILE` writes: a line per calibration, then a line per model and
test with the measured tokens per second.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_catalog import shipped
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.device import Devices, Host
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput import SpeedModel
from willitrun_estimator.throughput.constants import Constants
from willitrun_estimator.weights import weight_profile

RUNS = Path(__file__).resolve().parent.parent / "tests/truth/cpu_calibrated.jsonl"
SERVED_ROWS = RUNS.with_name("cpu_serving.jsonl")
SERVED = 48
"""Output tokens of every slot."""
PROMPT, OUTPUT = 128, 16
NOWHERE = Placement(gpu_layers=0)


class CalibratedRun(Struct, frozen=True, kw_only=True):
    """One model on one calibrated machine."""

    model: str
    quant: str
    host: Host
    measured: dict[str, float]

    def predicted(self, constants: Constants) -> dict[str, float]:
        """Return the predicted speeds of both tests."""
        return predicted(self.model, self.quant, self.host, constants)


def predicted(model: str, quant: str, host: Host, constants: Constants | None = None) -> dict[str, float]:
    """Return the speeds of a catalog model on a processor alone, without any run of that machine."""
    asked = SpeedModel(
        weight_profile(shipped.model(model), quant),
        Devices(name=host.cpu_name or "", gpus=(), host=host),
        Settings(context_tokens=512),
        constants=constants,
    )
    return {
        "decode": asked.decode_rate(NOWHERE, depth_tokens=OUTPUT / 2) or 0.0,
        "prefill": asked.prefill_rate(NOWHERE, prompt_tokens=PROMPT) or 0.0,
    }


def host_of(cpu: str, threads: int, flags: tuple[str, ...], known: Corrections) -> Host:
    """Return the host that a calibration describes."""
    return Host(
        ram_total_bytes=0,
        ram_available_bytes=0,
        bandwidth_bytes_per_s=known.ram_bandwidth_bytes_per_s,
        bandwidth_basis="micro-benchmark",
        threads=threads,
        cpu_name=cpu,
        flags=flags,
        product_rates=known.product_rates,
        block_s=known.block_s,
        side_s=known.side_s,
        disk_read_bytes_per_s=max(known.disk_read_bytes_per_s.values(), default=None),
    )


class ServedRow(Struct, frozen=True, kw_only=True):
    """One figure of llama-server on a calibrated machine: seconds until it answers or to the first token, or slots."""

    what: str
    model: str
    quant: str
    count: int
    measured: float
    host: Host

    def predicted(self, constants: Constants | None = None) -> float | None:
        """Return what the speed model says of it."""
        return served(self.what, self.model, self.quant, self.count, self.host, constants)


def served(
    what: str, model: str, quant: str, count: int, host: Host, constants: Constants | None = None
) -> float | None:
    """Return a predicted figure of llama-server on a processor alone."""
    asked = SpeedModel(
        weight_profile(shipped.model(model), quant),
        Devices(name=host.cpu_name or "", gpus=(), host=host),
        Settings(context_tokens=2048),
        constants=constants,
    )
    if what == "slots tok/s":
        return asked.aggregate(NOWHERE, count, depth_tokens=SERVED / 2)
    if what == "ttft s":
        return asked.ttft_s(NOWHERE, prompt_tokens=count)
    return asked.load_s(NOWHERE, cached=what == "load warm s")


def served_rows(path: Path = SERVED_ROWS) -> list[ServedRow]:
    """Return the rows of a file that `python benchmarks/serving.py --keep FILE` wrote."""
    found: list[ServedRow] = []
    host: Host | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "corrections" in row:
            known = msgspec.convert(row["corrections"], type=Corrections)
            host = host_of(row["cpu"], row["threads"], tuple(row["flags"]), known)
        else:
            found.append(msgspec.convert(row | {"host": host}, type=ServedRow, from_attributes=True))
    return found


def calibrated_runs(path: Path = RUNS) -> list[CalibratedRun]:
    """Return the runs of a file, every one with the calibration before it."""
    found: list[CalibratedRun] = []
    host: Host | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "corrections" in row:
            known = msgspec.convert(row["corrections"], type=Corrections)
            host = host_of(row["cpu"], row["threads"], tuple(row["flags"]), known)
            continue
        assert host is not None
        if found and (found[-1].model, found[-1].quant, found[-1].host) == (row["model"], row["quant"], host):
            found[-1].measured[row["test"]] = row["measured"]
        else:
            found.append(
                CalibratedRun(
                    model=row["model"], quant=row["quant"], host=host, measured={row["test"]: row["measured"]}
                )
            )
    return found
