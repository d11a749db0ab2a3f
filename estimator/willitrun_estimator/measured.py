"""Published measurements of the same GPU, model, quantization and engine, shown beside the estimate.

The rows are `data/measured_speeds.csv`: what the speed model was fitted to, each with its source. Rows that carry a
reason in `skip` are not shown: their conditions were not those of a plan. An accuracy check must not pass through here.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Literal

from msgspec import Struct

from willitrun_estimator.plan import Interval, MeasuredRow

NEAR_TOKENS = 1024
"""Rows measured with more context than this say nothing about an empty one."""
SCATTER = 0.11
"""Half the width, in logarithm, of 80 % of the differences between published rows of the same GPU, model and format:
builds, hosts and power limits."""
MOST_ROWS = 8


class Row(Struct, frozen=True):
    """One published measurement."""

    gpu: str
    gpus: int
    backend: str
    engine: str
    model: str
    quant: str
    test: str
    tokens: int
    tok_s: float
    date: str
    source: str


@cache
def shipped_lines() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines of the table, its head first, and the sources that they number."""
    from pathlib import Path  # noqa: PLC0415 - only where a GPU is planned for

    folder = Path(__file__).parent / "data"
    lines = folder.joinpath("measured_speeds.csv").read_text(encoding="utf-8").splitlines()
    sources = folder.joinpath("measured_speeds_sources.txt").read_text(encoding="utf-8").splitlines()
    return tuple(lines), tuple(sources)


@lru_cache(maxsize=512)
def rows(gpu: str) -> dict[str, tuple[Row, ...]]:
    """Return the shipped rows of a GPU by model: one stream, all on GPUs, little context.

    The whole table takes longer to read than a plan to make, so only lines with the GPU's name are.
    """
    import csv  # noqa: PLC0415 - not needed before an answer is shown

    (head, *lines), sources = shipped_lines()
    if not gpu:
        return {}  # rows of processors
    found: dict[str, list[Row]] = {}
    for line in csv.DictReader([head, *(one for one in lines if gpu in one)]):
        near = float(line["depth"] or 0) <= NEAR_TOKENS and line["slots"] == "1"
        if line["skip"] or line["gpu_layers"] != "all" or line["cpu_moe"] != "0" or line["gpu"] != gpu or not near:
            continue
        row = Row(
            line["gpu"],
            int(line["gpus"]),
            line["backend"].lower(),
            line["engine"],
            line["model"],
            line["quant"],
            "decode" if line["test"] == "tg" else "prefill",
            int(float(line["tokens"] or 0)),
            float(line["tok_s"]),
            line["date"],
            sources[int(line["source"])],
        )
        found.setdefault(row.model, []).append(row)
    return {model: tuple(value) for model, value in found.items()}


def measured_alike(
    *,
    gpu: str,
    gpus: int,
    backend: str,
    model: str,
    quant: str,
    engine: str = "llama.cpp",
    test: Literal["decode", "prefill"] = "decode",
) -> tuple[MeasuredRow, ...]:
    """Return the published rows of the same GPUs, back end, model, quantization and engine, the newest first.

    `gpu` and `model` are catalog names. Ollama runs llama.cpp and counts as the same engine.
    """
    engines = {"llama.cpp", "ollama"} if engine in {"llama.cpp", "ollama"} else {engine}
    found = [
        row
        for row in rows(gpu).get(model, ())
        if (row.gpus, row.quant, row.test) == (gpus, quant, test)
        and row.engine in engines
        and row.backend in {backend, ""}
    ]
    found.sort(key=lambda row: row.date, reverse=True)
    return tuple(
        MeasuredRow(
            tokens_per_s=row.tok_s, test=f"{row.test} {row.tokens}".strip(), source=row.source, date=row.date or None
        )
        for row in found[:MOST_ROWS]
    )


def towards(interval: Interval, measured: tuple[MeasuredRow, ...]) -> Interval:
    """Move an estimate towards published rows; unchanged without any, or where a better basis is known.

    The rows' mean logarithm is believed by n / (n + 1): one row may be an odd host, many are the truth about that GPU.
    """
    if not measured or interval.basis != "estimated":
        return interval
    belief = len(measured) / (len(measured) + 1)
    mean = sum(math.log(row.tokens_per_s) for row in measured) / len(measured)
    expected = math.exp(belief * mean + (1 - belief) * math.log(interval.expected))
    low = math.exp(-SCATTER) ** belief * (interval.low / interval.expected) ** (1 - belief)
    high = math.exp(SCATTER) ** belief * (interval.high / interval.expected) ** (1 - belief)
    return Interval(expected=expected, low=expected * low, high=expected * high, basis="measured-alike")
