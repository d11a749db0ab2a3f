"""Answers per second and memory of `batch`, at more and more lines.

    python benchmarks/bulk.py [--repeated 10000 1000000] [--fixed 10000 40000] [--jobs N] [--write]

Three mixtures of models, quantizations, contexts and machines. `repeated` asks a fleet's questions, each of which comes
again and again: ten models that many run, four quantizations, five contexts and twenty machines. `fixed` draws from
40 models of the whole catalog, giants and rare architectures among them, every quantization and 40 machines, so that
hardly a line comes twice. Both name the quantization, as someone does who asks about given plans; `searched` leaves it
to the search. Lines come through a pipe as they are made, and answers go to another: neither side holds them. Peak
memory is that of the largest process. `--write` puts the figures into docs/performance.md. The default takes about two
minutes.
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
MODELS = (
    "llama-3.1-8b-instruct", "llama-3.3-70b-instruct", "qwen3-4b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b",
    "gemma-3-12b-it", "gemma-3-27b-it", "gpt-oss-20b", "mistral-7b-instruct-v0.3",
)  # fmt: skip
QUANTS = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


MIXTURES = (
    "`repeated` are a fleet's: 4,000 different questions about ten models that many run on twenty machines, in random "
    "order. `fixed` are drawn from 40 models of the whole catalog, 40 machines and every quantization, so that hardly "
    "one comes twice, and a fifth needs experts on the host. Both name the quantization and ask for plan and speed; "
    "`searched` are as `fixed`, but leave the quantization to the search."
)


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
    """Yield questions of a mixture, drawn at random."""
    draw = random.Random(1)
    common = kind == "repeated"
    names, machines = (MODELS, machine_words(20)) if common else (model_names(40), machine_words(40))
    for number in range(lines):
        asked: dict[str, Any] = {
            "id": number, "model": draw.choice(names), "machine": draw.choice(machines),
            "context": draw.choice(CONTEXTS), "sections": ["plan", "speed"],
        }  # fmt: skip
        if kind == "repeated":
            asked["quant"] = draw.choice(QUANTS)
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
    held = [line for kind in ("repeated", "fixed") for line in verdicts([one for one in done if one.kind == kind])]
    rows = [
        [one.kind, f"{one.lines:,}", f"{one.wall_s:.1f}", f"{one.per_s:,.0f}", f"{one.peak_bytes / MIB:.0f}"]
        for one in done
    ]
    return "\n\n".join(
        (
            f"## Many questions\n\nMeasured {processes.this_machine()} {jobs} worker processes.",
            processes.table(("what", "measured", "bar", ""), held),
            processes.table(("questions", "lines", "seconds", "answers/s", "peak of the largest process, MiB"), rows),
            MIXTURES,
        )
    )


def verdicts(runs: list[Bulk]) -> list[list[str]]:
    """Hold the runs of one mixture, from few to many lines, against the bars."""
    kind, fewest, most = runs[0].kind, runs[0], runs[-1]
    growth = most.peak_bytes / fewest.peak_bytes
    rate = processes.verdict(most.per_s, LEAST_PER_S, least=True)
    return [
        [f"{kind}: answers with plan and speed", f"{most.per_s:,.0f}/s", ">= 4,000/s", rate],
        [
            f"{kind}: memory at {most.lines:,} lines over {fewest.lines:,}",
            f"{growth:.2f} x",
            "flat",
            processes.verdict(growth, MOST_GROWTH),
        ],
    ]


def main() -> int:
    """Measure and print; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeated", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--fixed", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md")
    options = parser.parse_args()
    done = [run("repeated", lines, options.jobs) for lines in options.repeated]
    done += [run("fixed", lines, options.jobs) for lines in options.fixed]
    done.append(run("searched", SEARCHED_LINES, options.jobs))
    text = report(done, options.jobs)
    print(text)
    if options.write:
        processes.write_section("bulk", text)
    return int(" missed " in text)


if __name__ == "__main__":
    sys.exit(main())
