"""Accuracy of decode and prefill speed against measured rows: `python benchmarks/accuracy.py speed`.

Without options the shipped rows, each predicted with its GPU model left out of the fit (NumPy is needed for that); rows
on or partly on the host with their processor left out. `--rows FILE` asks about other rows, own or as
published, with the shipped constants. Published measurements never enter a prediction here: the speed model is asked
directly, beneath the part that moves answers towards them.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from benchmarks.speed_cases import ROWS, Case, case, gpu_depth  # noqa: E402 benchmarks are not installed
from willitrun_estimator.throughput import SpeedModel  # noqa: E402
from willitrun_estimator.throughput.constants import shipped  # noqa: E402
from willitrun_estimator.throughput.groups import decode_spread, prefill_spread  # noqa: E402

REPORT = ROOT / "docs/accuracy-speed.md"
PLOT = ROOT / "docs/accuracy-speed.svg"
NEW_CONSUMER = {"ada", "ampere", "blackwell"}
SMALL = 30


class Result(Struct, frozen=True):
    """One row with its prediction."""

    case: Case
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Relative error of the predicted speed."""
        return self.predicted / self.case.tok_s - 1

    @property
    def covered(self) -> bool:
        """Whether the measured speed lies in the interval."""
        return self.low <= self.case.tok_s <= self.high


def asked(one: Case, *, era: bool = True) -> Result | None:
    """Ask the speed model as it ships; None where it knows nothing. `era` tells it what is known of the build's age."""
    model = SpeedModel(one.weights, one.devices, one.settings, engine=one.engine, before_2025=era and one.before_2025)
    if one.test == "tg":
        rate = model.decode_rate(one.placement, depth_tokens=gpu_depth(one))
    else:
        rate = model.prefill_rate(one.placement, prompt_tokens=max(1, round(one.tokens)), depth_tokens=one.depth)
    return None if rate is None else bounded(one, model, rate)


def bounded(one: Case, model: SpeedModel, rate: float) -> Result:
    """Return a prediction with the bounds its group has."""
    around = (decode_spread if one.test == "tg" else prefill_spread)(model, one.placement)
    return Result(one, rate, rate * min(1.0, around.low), rate * max(1.0, around.high))


def left_out(rows: list[Case]) -> list[Result]:
    """Predict rows on GPUs with their GPU model left out of the fit, rows that use the host without its processor."""
    from fit_speed import Fitted, gpu_rows, typical  # noqa: PLC0415 - needs NumPy
    from speed_host import left_out as without_processor  # noqa: PLC0415

    mixed = [one for one in rows if one.where != "gpu" and one.devices.host.bandwidth_bytes_per_s]
    results = [
        bounded(
            one,
            SpeedModel(one.weights, one.devices, one.settings, engine=one.engine),
            one.tok_s * math.exp(-error),
        )
        for one, error in zip(mixed, without_processor(mixed, shipped()), strict=True)
    ]
    families = typical(rows)
    for test in ("tg", "pp"):
        fitted = Fitted(gpu_rows(rows, test), families, test)
        for one, error in zip(fitted.rows, fitted.left_out(), strict=True):
            model = SpeedModel(one.weights, one.devices, one.settings, engine=one.engine)
            results.append(bounded(one, model, one.tok_s * math.exp(-error)))
    return results


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


GROUPS: tuple[tuple[str, str, Callable[[Case], bool]], ...] = (
    ("decode, all on GPU", "8 / 25", lambda c: c.test == "tg" and c.where == "gpu"),
    (
        "decode, dense, Ada/Ampere/Blackwell",
        "6 / 18",
        lambda c: c.test == "tg" and c.where == "gpu" and not c.moe and c.family in NEW_CONSUMER,
    ),
    ("decode, MoE on GPU", "15 / 40", lambda c: c.test == "tg" and c.where == "gpu" and c.moe),
    ("decode, layers or experts on the CPU", "15 / 40", lambda c: c.test == "tg" and c.where == "offload"),
    ("decode, CPU only", "15 / 40", lambda c: c.test == "tg" and c.where == "host"),
    ("prefill", "15 / 50", lambda c: c.test == "pp"),
    ("prefill, all on GPU", "", lambda c: c.test == "pp" and c.where == "gpu"),
    ("prefill, layers or experts on the CPU", "", lambda c: c.test == "pp" and c.where == "offload"),
    ("prefill, CPU only", "", lambda c: c.test == "pp" and c.where == "host"),
    ("decode, dense on GPU", "", lambda c: c.test == "tg" and c.where == "gpu" and not c.moe),
    ("decode, llama.cpp on GPU", "", lambda c: c.test == "tg" and c.where == "gpu" and c.engine == "llama.cpp"),
    ("decode, ollama on GPU", "", lambda c: c.test == "tg" and c.where == "gpu" and c.engine == "ollama"),
    ("decode, depth of 4k tokens or more", "", lambda c: c.test == "tg" and c.where == "gpu" and c.depth >= 4096),
    ("decode, several GPUs", "", lambda c: c.test == "tg" and len(c.devices.gpus) > 1),
    ("decode, Vulkan", "", lambda c: c.test == "tg" and c.backend == "vulkan"),
)


def line(name: str, bar: str, results: list[Result]) -> str:
    """Return one line of the table."""
    errors = [abs(result.error) for result in results]
    covered = sum(result.covered for result in results) / len(results)
    bias = quantile((result.predicted / result.case.tok_s for result in results), 0.5)
    return (
        f"| {name} | {len(results)} | {quantile(errors, 0.5):.1%} | {quantile(errors, 0.9):.1%} | {bar} | {bias:.2f} "
        f"| {covered:.0%} |"
    )


HEAD = "| rows | n | median | p90 | bar (%) | predicted / measured | in the interval |\n" + "| --- " * 7 + "|"


def table(results: list[Result]) -> str:
    """Return the bars' groups, and each family, as a Markdown table."""
    lines = [HEAD]
    for name, bar, holds in GROUPS:
        part = [result for result in results if holds(result.case)]
        if part:
            lines.append(line(name, bar, part))
    lines.append(line("all rows (bar on the interval: 75-87 %)", "", results))
    lines += ["", "By family, rows on GPUs:", "", HEAD]
    for test, word in (("tg", "decode"), ("pp", "prefill")):
        for family in sorted({result.case.family for result in results if result.case.where == "gpu"}):
            part = [r for r in results if r.case.where == "gpu" and (r.case.family, r.case.test) == (family, test)]
            if part:
                lines.append(line(f"{word}, {family}", "", part))
    return "\n".join(lines)


def plot(results: list[Result]) -> str:
    """Return predicted against measured speed as an SVG, decode and prefill side by side."""
    size, gap, low, high = 360, 50, -0.5, 4.5

    def at(value: float) -> float:
        return size * (min(max(math.log10(value), low), high) - low) / (high - low)

    colours = {"gpu": "#1f77b4", "offload": "#d62728", "host": "#2ca02c"}
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * size + 3 * gap}" height="{size + 2 * gap}" '
        'font-family="sans-serif" font-size="12">'
    )
    parts = [head]
    for place, (test, word) in enumerate((("tg", "decode"), ("pp", "prefill"))):
        left = gap + place * (size + gap)
        parts.append(
            f'<g transform="translate({left},{gap})"><rect width="{size}" height="{size}" fill="none" stroke="#888"/>'
        )
        parts.append(f'<line x1="0" y1="{size}" x2="{size}" y2="0" stroke="#888"/><text x="4" y="-8">{word}: measured '
                     "against predicted tokens/s</text>")  # fmt: skip
        for power in range(5):
            x = at(10**power)
            parts.append(f'<text x="{x:.0f}" y="{size + 16}" text-anchor="middle">{10**power}</text>')
            parts.append(f'<text x="-4" y="{size - x:.0f}" text-anchor="end">{10**power}</text>')
        parts += [
            f'<circle cx="{at(r.predicted):.1f}" cy="{size - at(r.case.tok_s):.1f}" r="1.8" '
            f'fill="{colours[r.case.where]}" '
            'fill-opacity="0.5"/>'
            for r in results
            if r.case.test == test
        ]
        parts.append("</g>")
    legend = "".join(
        f'<text x="{gap + 130 * at_}" y="{size + 2 * gap - 10}" fill="{colours[name]}">{text}</text>'
        for at_, (name, text) in enumerate((("gpu", "on GPUs"), ("offload", "GPUs and host"), ("host", "host alone")))
    )
    return "\n".join([*parts, legend, "</svg>", ""])


def read(path: Path) -> list[Case]:
    """Return the questions of a file of own or of published rows."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and "runtime" in rows[0]:
        from import_speeds import convert  # noqa: PLC0415 - only for published tables

        rows = [row for published in rows if (row := convert(published)) is not None]
    return [found for row in rows if (found := case(row)) is not None]


def main(arguments: list[str]) -> int:
    """Print the accuracy; 0 always, for the table is the result."""
    parser = argparse.ArgumentParser(prog="accuracy.py speed", description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--plain", action="store_true", help="the shipped constants, nothing left out")
    parser.add_argument("--all", action="store_true", help="with the rows that carry a reason to skip them")
    parser.add_argument("--era-unknown", action="store_true", help="ask about every row as if its build were current")
    parser.add_argument("--write", action="store_true", help="also write docs/accuracy-speed.md and .svg")
    options = parser.parse_args(arguments)
    everything = [one for one in read(options.rows) if one.slots == 1]
    rows = everything if options.all else [one for one in everything if not one.skip]
    plain = options.plain or options.all or options.era_unknown or options.rows != ROWS
    if plain:
        results = [found for one in rows if (found := asked(one, era=not options.era_unknown)) is not None]
    else:
        results = left_out(rows)
    print(f"{len(results)} rows, " + ("shipped constants" if plain else "GPU model left out"))
    print(table(results))
    if options.write:
        kept = [found for one in everything if (found := asked(one)) is not None]
        current = [found for one in rows if (found := asked(one, era=False)) is not None]
        asks = [found for one in rows if (found := asked(one)) is not None]
        REPORT.write_text(
            "# Accuracy of the speed model\n\n"
            "Written by `python benchmarks/accuracy.py speed --write`; what the rows are and "
            "which are left out is in [speed.md](speed.md).\n\n![predicted against measured](accuracy-speed.svg)\n\n"
            "## Each row predicted without its GPU model\n\n"
            "Rows that use the host are predicted without the rows of that processor.\n\n"
            f"{table(results)}\n\n## The shipped constants\n\n{table(asks)}\n\n"
            f"## The same without knowing the age of the build\n\n{table(current)}\n\n"
            f"## With the rows that are not fitted\n\n{table(kept)}\n"
        )
        PLOT.write_text(plot(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
