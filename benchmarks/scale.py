"""How the time of many answers grows: with models, quantizations, contexts and machines; and a fleet's question.

    python benchmarks/scale.py [--repeats 2] [--quick] [--write]

Each point is a fresh process that answers a list of questions as `batch` does (plan and speed, one worker), and counts
its processor time from the first question on: nothing is known beforehand. One axis grows, the others stay. Models
differ tenfold in what their plans cost, so a point of fewer models is the mean over parts of the largest list, one
process each: every model counts the same at every point, and what grows is what their number costs. The
exponent is the slope of time over count, both in logarithms (least squares); 1 is proportional, the bar is 1.05. The
fleet is asked where a model runs, with more and more machines of the same 60 shapes. `--write` puts the figures into
docs/performance.md and the curves into docs/scale.svg. Takes several minutes, `--quick` one or two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import processes

from willitrun_catalog.quant import LADDER
from willitrun_catalog.shipped import datasheets, models

PLOT = processes.ROOT / "docs" / "scale.svg"
MOST_EXPONENT = 1.05
CONTEXT_STEP = 512
COUNTS = {
    "models": (8, 16, 32, 64, 128),
    "quants": (2, 4, 8, len(LADDER)),
    "contexts": (4, 8, 16, 32, 64),
    "machines": (4, 8, 16, 32, 64),
}
FLEET = (1_000, 2_000, 4_000, 8_000)
FLEET_MODEL = "llama-3.1-8b"
SHAPES = 60


ASIDE = {"models": 4, "quants": 2, "contexts": 2, "machines": 2}
"""What stands beside the axis that grows."""
COMBINATIONS = (
    "The plan and the speed of every combination of 4 models, 2 quantizations, 2 contexts and 2 machines, of which one "
    "grows; each point a fresh process that knows nothing beforehand, for models the mean of several, so that all "
    "points have the same ones."
)
SHARED_SHAPES = (
    f"A fleet of machines in {SHAPES} shapes, asked where Llama 3.1 8B runs. The plans to make depend on the shapes "
    "and on what is free in eighths, not on the machines; what is left grows with the list itself."
)


class Curve(NamedTuple):
    """Seconds at some counts of one thing."""

    name: str
    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of the logarithms."""
        return slope([math.log(count) for count in self.counts], [math.log(value) for value in self.seconds])


def slope(across: Sequence[float], up: Sequence[float]) -> float:
    """Return the slope of the least-squares line."""
    middle, height = sum(across) / len(across), sum(up) / len(up)
    spread = sum((x - middle) ** 2 for x in across)
    return sum((x - middle) * (y - height) for x, y in zip(across, up, strict=True)) / spread


def spaced(values: Sequence[Any], count: int) -> list[Any]:
    """Return so many of the values, evenly spaced: every part of an ordered list is represented alike."""
    return [values[int((place + 0.5) * len(values) / count)] for place in range(count)]


def model_names(count: int) -> list[str]:
    """Return models of the catalog, from small to large."""
    known = sorted(models(), key=lambda spec: (spec.params or 0, spec.name))
    return [spec.name for spec in spaced(known, min(count, len(known)))]


def machine_words(count: int) -> list[str]:
    """Return machines with one to four GPUs of the catalog and 32 to 256 GiB of RAM."""
    sheets = sorted((s for s in datasheets() if s.memory_bytes and s.bandwidth_bytes_per_s), key=lambda s: s.name)
    gpus = [sheet.name for sheet in sheets if sheet.vendor in {"nvidia", "amd"} and not sheet.unified]
    return [
        f"{1 + place % 4}x {name}, {32 << place % 4} GiB RAM"
        for place, name in enumerate(spaced(gpus, min(count, 128)))
    ]


def parts_of(axis: str, count: int, most: int) -> int:
    """Return in how many parts the longest list is measured: models in as many as there are."""
    return most // count if axis == "models" else 1


def questions(axis: str, count: int, part: int, most: int) -> Iterator[dict[str, Any]]:
    """Yield the product of all axes, of which one has as many values as asked; models are a part of the `most`."""
    size = {**ASIDE, axis: count}
    names, machines = model_names(size["models"]), machine_words(size["machines"])
    if axis == "models":
        names = model_names(most)[part :: most // count]
    quants, contexts = spaced(LADDER, min(size["quants"], len(LADDER))), range(1, size["contexts"] + 1)
    for machine, model, quant, context in product(machines, names, quants, contexts):
        yield {
            "model": model, "machine": machine, "quant": quant, "context": 2048 + CONTEXT_STEP * context,
            "sections": ["plan", "speed"],
        }  # fmt: skip


def answer_all(axis: str, count: int, part: int, most: int) -> tuple[float, int]:
    """Answer the questions in this process; returns processor seconds and how many there were."""
    lines = [json.dumps(one).encode() for one in questions(axis, count, part, most)]
    from willitrun_here.__main__ import collect_seldom  # noqa: PLC0415
    from willitrun_here.batch import answer_lines  # noqa: PLC0415 - imported, but not asked yet

    collect_seldom()  # as the command does; else the collector's share grows with everything that is kept
    start = time.process_time()
    for line in answer_lines(lines):
        assert b'"fit"' in line, line
    return time.process_time() - start, len(lines)


def measured(axis: str, counts: Sequence[int], repeats: int) -> tuple[Curve, float]:
    """Measure one axis in fresh processes, the sizes in turn; returns the curve and answers per second at its end."""
    points = [(count, part) for count in counts for part in range(parts_of(axis, count, counts[-1]))]
    seconds = dict.fromkeys(points, math.inf)
    lines = dict.fromkeys(counts, 0)
    for _ in range(repeats):
        for count, part in points:
            command = [sys.executable, __file__, "--answer", axis, str(count), str(part), str(counts[-1])]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds[count, part], lines[count] = min(seconds[count, part], float(told[0])), int(told[1])
    means = [statistics.mean(value for point, value in seconds.items() if point[0] == count) for count in counts]
    curve = Curve(axis, tuple(counts), tuple(means))
    return curve, lines[counts[-1]] / curve.seconds[-1]


def fleet_benchmark() -> Any:
    """Load benchmarks/fleet.py, which makes fleets."""
    spec = importlib.util.spec_from_file_location("fleet_benchmark", Path(__file__).with_name("fleet.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fleet_question(agents: int) -> tuple[float, float, int]:
    """Return the seconds of a fleet's question asked first and again, and the plans it made; in a fresh process."""
    fleet = fleet_benchmark()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/fleet.db"
        fleet.prepare(url, agents, SHAPES, random.Random(1))
        found: tuple[float, float, int] = fleet.question_times(url, FLEET_MODEL)
    return found


def fleet_rows(sizes: Sequence[int]) -> list[tuple[int, float, float, int]]:
    """Ask fleets of several sizes."""
    rows = []
    for agents in sizes:
        command = [sys.executable, __file__, "--fleet", str(agents)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append((agents, float(told[0]), float(told[1]), int(told[2])))
    return rows


def plot(curves: Sequence[Curve]) -> str:
    """Return the curves as an SVG with both axes logarithmic, each beside the straight line of its first point."""
    size, gap = 360, 50
    colours = dict(zip(COUNTS, ("#1f77b4", "#d62728", "#2ca02c", "#9467bd"), strict=True))
    most = max(max(curve.counts) for curve in curves)
    low = math.floor(math.log10(min(min(curve.seconds) for curve in curves)))
    high = math.ceil(math.log10(max(max(curve.seconds) for curve in curves)))

    def x(count: float) -> float:
        return size * math.log(count) / math.log(most)

    def y(seconds: float) -> float:
        return size * (1 - (math.log10(seconds) - low) / (high - low))

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size + 2 * gap + 160}" height="{size + 2 * gap}" '
        'font-family="sans-serif" font-size="12">'
    )
    parts = [
        head,
        f'<g transform="translate({gap},{gap})"><rect width="{size}" height="{size}" fill="none" stroke="#888"/>',
        '<text x="4" y="-8">processor seconds against how many; dashed: proportional</text>',
    ]
    parts += [
        f'<text x="-4" y="{y(10.0**power):.0f}" text-anchor="end">{10.0**power:g}</text>'
        for power in range(low, high + 1)
    ]
    parts += [
        f'<text x="{x(count):.0f}" y="{size + 16}" text-anchor="middle">{count}</text>'
        for count in (2, 4, 8, 16, 32, 64, 128, 256)
        if count <= most
    ]
    for place, curve in enumerate(curves):
        colour = colours[curve.name]
        points = " ".join(f"{x(n):.1f},{y(s):.1f}" for n, s in zip(curve.counts, curve.seconds, strict=True))
        end = curve.seconds[0] * curve.counts[-1] / curve.counts[0]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<line x1="{x(curve.counts[0]):.1f}" y1="{y(curve.seconds[0]):.1f}" x2="{x(curve.counts[-1]):.1f}" '
            f'y2="{y(end):.1f}" stroke="{colour}" stroke-dasharray="3 3" stroke-opacity="0.5"/>'
        )
        parts.append(
            f'<text x="{size + 10}" y="{20 + 18 * place}" fill="{colour}">{curve.name}: {curve.exponent:.2f}</text>'
        )
    return "\n".join([*parts, "</g></svg>", ""])


def report(curves: Sequence[Curve], rates: dict[str, float], fleet: Sequence[tuple[int, float, float, int]]) -> str:
    """Return the section for the document."""
    rows = [
        [
            curve.name,
            f"{curve.counts[0]} to {curve.counts[-1]}",
            f"{curve.seconds[0]:.3f} to {curve.seconds[-1]:.2f}",
            f"{curve.exponent:.2f}",
            processes.verdict(curve.exponent, MOST_EXPONENT),
            f"{rates[curve.name]:.0f}",
        ]
        for curve in curves
    ]
    asked = [
        [f"{agents:,}", f"{1000 * cold:.0f}", f"{1000 * warm:.0f}", f"{1e6 * warm / agents:.1f}", str(plans)]
        for agents, cold, warm, plans in fleet
    ]
    head = ("what grows", "from, to", "processor seconds", "exponent", "bar 1.05", "answers/s and core at the end")
    return "\n\n".join(
        (
            f"## Growth\n\nMeasured {processes.this_machine()}",
            "![time over counts](scale.svg)",
            processes.table(head, rows),
            COMBINATIONS,
            SHARED_SHAPES,
            processes.table(("machines", "first, ms", "again, ms", "µs a machine, again", "plans made"), asked),
        )
    )


def main() -> int:
    """Measure and print; 1 when an exponent misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="once, and without the largest counts")
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md and docs/scale.svg")
    parser.add_argument("--answer", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--fleet", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        axis, *numbers = options.answer
        print(*answer_all(axis, *map(int, numbers)))
        return 0
    if options.fleet:
        print(*fleet_question(options.fleet))
        return 0
    curves, rates = [], {}
    for axis, counts in COUNTS.items():
        curve, rates[axis] = measured(
            axis, counts[:-1] if options.quick else counts, 1 if options.quick else options.repeats
        )
        curves.append(curve)
    fleet = fleet_rows(FLEET[:2] if options.quick else FLEET)
    text = report(curves, rates, fleet)
    print(text)
    if options.write:
        processes.write_section("scale", text)
        PLOT.write_text(plot(curves), encoding="utf-8")
    return int(any(curve.exponent > MOST_EXPONENT for curve in curves))


if __name__ == "__main__":
    sys.exit(main())
