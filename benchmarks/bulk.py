"""Answers per second and memory of `batch`, at more and more lines.

    python benchmarks/bulk.py [--lines 10000 100000] [--jobs N] [--write]

Two mixtures of models, quantizations, contexts and machines: `fixed` names quantization, context, cache type and layers
as someone does who asks about given plans; `searched` leaves all but model, machine and context to the search. Lines
come through a pipe as they are made, and answers go to another: neither side holds them. Peak memory is that of the
largest process. `--write` puts the figures into docs/performance.md. The default takes about two minutes; a million
lines (`--lines 10000 100000 1000000`) several more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import processes
from scale import machine_words, model_names

from willitrun_catalog.quant import LADDER

MIB = 1024**2
LEAST_PER_S = 4_000.0
MOST_GROWTH = 1.1
"""Memory is flat when the most lines need no more than a tenth above the fewest."""
SEARCHED_LINES = 1_000
CONTEXTS = (4096, 8192, 16384, 32768, 65536)


class Bulk(NamedTuple):
    """One run of `batch`."""

    kind: str
    lines: int
    wall_s: float
    peak_bytes: int

    @property
    def per_s(self) -> float:
        """Answers per second by the clock, start-up included."""
        return self.lines / self.wall_s


def requests(kind: str, lines: int) -> Iterator[bytes]:
    """Yield questions drawn at random from 40 models, the quantizations, five contexts and 40 machines."""
    draw = random.Random(1)
    names, machines = model_names(40), machine_words(40)
    for number in range(lines):
        asked: dict[str, Any] = {
            "id": number, "model": draw.choice(names), "machine": draw.choice(machines),
            "context": draw.choice(CONTEXTS), "sections": ["plan", "speed"],
        }  # fmt: skip
        if kind == "fixed":
            asked |= {"quant": draw.choice(LADDER), "kv_type": "f16", "gpu_layers": "all", "flash_attention": "on"}
        yield json.dumps(asked).encode() + b"\n"


def feed(kind: str, lines: int, pipe: BinaryIO) -> None:
    """Write the questions into a pipe."""
    with pipe:
        pipe.writelines(requests(kind, lines))


def run(kind: str, lines: int, jobs: int) -> Bulk:
    """Run `batch` on so many lines and check that every line came back."""
    command = [sys.executable, "-m", "willitrun_here", "batch", "--jobs", str(jobs)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        writer = threading.Thread(target=feed, args=(kind, lines, process.stdin))
        writer.start()
        came = sum(1 for _ in process.stdout)
        writer.join()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (came, process.returncode) == (lines, 0), (came, process.returncode)
    return Bulk(kind, lines, time.perf_counter() - start, used.ru_maxrss * 1024)


def report(done: list[Bulk], jobs: int) -> str:
    """Return the section for the document."""
    fixed = [one for one in done if one.kind == "fixed"]
    rate, growth = fixed[-1].per_s, fixed[-1].peak_bytes / fixed[0].peak_bytes
    held = [
        [
            "answers with plan and speed",
            f"{rate:,.0f}/s",
            ">= 4,000/s",
            processes.verdict(rate, LEAST_PER_S, least=True),
        ],
        [
            f"memory at {fixed[-1].lines:,} lines over {fixed[0].lines:,}",
            f"{growth:.2f} x",
            "flat",
            processes.verdict(growth, MOST_GROWTH),
        ],
    ]
    rows = [
        [one.kind, f"{one.lines:,}", f"{one.wall_s:.1f}", f"{one.per_s:,.0f}", f"{one.peak_bytes / MIB:.0f}"]
        for one in done
    ]
    return "\n\n".join(
        (
            f"## Many questions\n\nMeasured {processes.this_machine()} {jobs} worker processes.",
            processes.table(("what", "measured", "bar", ""), held),
            processes.table(("questions", "lines", "seconds", "answers/s", "peak of the largest process, MiB"), rows),
            "`fixed` questions name quantization, context, cache type and layers; `searched` ones the context alone.",
        )
    )


def main() -> int:
    """Measure and print; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md")
    options = parser.parse_args()
    done = [run("fixed", lines, options.jobs) for lines in options.lines]
    done.append(run("searched", min(SEARCHED_LINES, options.lines[0]), options.jobs))
    text = report(done, options.jobs)
    print(text)
    if options.write:
        processes.write_section("bulk", text)
    return int(" missed " in text)


if __name__ == "__main__":
    sys.exit(main())
