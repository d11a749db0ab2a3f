"""How many placements of a model are sized and timed in a second, once the model is known.

    python benchmarks/placements.py [--write]

One model of every architecture in the catalog in Q4_K_M on two GPUs: every split of all layers at four contexts. The
bytes are those of the exact memory model, the speeds decode and prefill. Processor seconds of one core; layouts that
are asked for the first time are planned with the allocator and counted apart. `--write` puts the figures into
docs/performance.md. Takes about a minute.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import processes

from willitrun_catalog import shipped
from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Devices
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.hardware import devices
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.request import Request
from willitrun_estimator.throughput import SpeedModel
from willitrun_estimator.weights import weight_profile
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

MACHINE = "2x RTX 3090, 256 GiB RAM"
CONTEXTS = (4096, 8192, 16384, 32768)
REPEATS = 10
PROMPT_TOKENS = 512
LEAST_SIZED_PER_S = 20_000.0
LEAST_TIMED_PER_S = 50_000.0
SHOWN = 5


class Rates(NamedTuple):
    """Placements per second and core of one model."""

    name: str
    first_per_s: float
    """Sized, each layout for the first time."""
    sized_per_s: float
    timed_per_s: float
    """Sized, with decode and prefill speed."""


def one_of_each() -> list[ModelSpec]:
    """Return a model of every architecture: the smallest that the catalog has."""
    smallest: dict[str, ModelSpec] = {}
    for spec in sorted(shipped.models(), key=lambda one: one.params):
        smallest.setdefault(spec.architecture, spec)
    return sorted(smallest.values(), key=lambda one: one.name)


def rates(spec: ModelSpec, machine: Devices) -> Rates:
    """Measure one model."""
    weights, settings, units = (
        weight_profile(spec, "Q4_K_M"),
        Settings(context_tokens=CONTEXTS[0]),
        spec.block_count + 1,
    )
    memory, speed = MemoryModel(weights, machine, settings), SpeedModel(weights, machine, settings)
    splits = [Placement(gpu_layers=units, split=(front, units - front)) for front in range(1, units)]

    def size() -> None:
        for placement in splits:
            for context_tokens in CONTEXTS:
                memory.per_device_bytes(placement, context_tokens)

    def size_and_time() -> None:
        for placement in splits:
            memory.per_device_bytes(placement, CONTEXTS[0])
            speed.decode_rate(placement)
            speed.prefill_rate(placement, prompt_tokens=PROMPT_TOKENS)

    sized = len(splits) * len(CONTEXTS)
    return Rates(
        name=spec.name,
        first_per_s=sized / processes.best_of(1, size),
        sized_per_s=sized / processes.best_of(REPEATS, size),
        timed_per_s=len(splits) / processes.best_of(REPEATS, size_and_time),
    )


def report(done: list[Rates]) -> str:
    """Return the section for the document."""
    sized, timed = min(one.sized_per_s for one in done), min(one.timed_per_s for one in done)
    held = [
        ["bytes, the slowest model", f"{sized:,.0f}/s", ">= 20,000/s", verdict(sized, LEAST_SIZED_PER_S)],
        ["bytes and speed, the slowest model", f"{timed:,.0f}/s", ">= 50,000/s", verdict(timed, LEAST_TIMED_PER_S)],
    ]
    slowest = sorted(done, key=lambda one: one.sized_per_s)[:SHOWN]
    rows = [
        [one.name, f"{one.first_per_s:,.0f}", f"{one.sized_per_s:,.0f}", f"{one.timed_per_s:,.0f}"] for one in slowest
    ]
    return "\n\n".join(
        (
            f"## Placements\n\nMeasured {processes.this_machine()}",
            processes.table(("what", "measured", "bar", ""), held),
            f"The slowest of {len(done)} models, one of each architecture, in placements a second and core:",
            processes.table(("model", "bytes, first time", "bytes", "bytes and speed"), rows),
        )
    )


def verdict(measured: float, bar: float) -> str:
    """Return whether a rate reaches its bar."""
    return processes.verdict(measured, bar, least=True)


def main() -> int:
    """Measure and print; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md")
    options = parser.parse_args()
    machine = devices(open_machine(MACHINE), Request(), sheet_of)
    text = report([rates(spec, machine) for spec in one_of_each()])
    print(text)
    if options.write:
        processes.write_section("placements", text)
    return int(" missed " in text)


if __name__ == "__main__":
    sys.exit(main())
