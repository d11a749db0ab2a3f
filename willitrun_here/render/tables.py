"""The tables of an answer as plain text cells; terminal, Markdown and page each draw them their way."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from willitrun_estimator.plan import Answer
from willitrun_here.render.breakdown import device_names
from willitrun_here.render.wording import (
    ENGINE_WORDS,
    LEVEL_WORDS,
    MODE_WORDS,
    SHORT_STATUS,
    WORKLOAD_WORDS,
    hardware,
    needed_bytes,
    number,
    percent,
    rate_range,
    tokens,
    tokens_per_s,
)
from willitrun_probe.units import format_bytes, format_rate, format_seconds


class Column(Struct, frozen=True, kw_only=True):
    """A heading, whether its cells are numbers, and whether a narrow terminal can do without it."""

    name: str
    numeric: bool = False
    optional: bool = False
    wraps: bool = False
    """Cells may be broken over lines."""


class Row(Struct, frozen=True, kw_only=True):
    """Cells in column order. `marked` rows stand out: the best quantization, the current mode."""

    cells: tuple[str, ...]
    marked: bool = False


class Table(Struct, frozen=True, kw_only=True):
    """A titled table with an optional note below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


def _text(name: str, *, optional: bool = False, wraps: bool = False) -> Column:
    return Column(name=name, optional=optional, wraps=wraps)


def _number(name: str, *, optional: bool = False) -> Column:
    return Column(name=name, numeric=True, optional=optional)


def quant_table(answer: Answer) -> Table:
    """Return every quantization with its size, quality, fit and speed."""
    several = len({option.engine for option in answer.quants}) > 1
    rows = tuple(
        Row(
            cells=(
                option.quant,
                *((ENGINE_WORDS.get(option.engine, option.engine),) if several else ()),
                f"{option.bits_per_weight:.2f}",
                format_bytes(option.file_bytes),
                format_bytes(option.memory_bytes),
                LEVEL_WORDS[option.quality.level],
                "-" if option.quality.kl_divergence is None else f"{option.quality.kl_divergence:.3f}",
                SHORT_STATUS[option.status],
                tokens_per_s(option.decode_tokens_per_s),
                f"{option.grade} {option.score}",
            ),
            marked=option.best,
        )
        for option in answer.quants
    )
    columns = (
        _text("Quant"),
        *((_text("Engine", optional=True),) if several else ()),
        _number("Bits"),
        _number("File", optional=True),
        _number("Memory"),
        _text("Quality"),
        _number("KL", optional=True),
        _text("Fit", wraps=True),
        _number("Decode"),
        _text("Grade"),
    )
    return Table(
        title="Quantizations",
        columns=columns,
        rows=rows,
        note="Marked: the best here. Bits: per weight. Memory: on all devices. KL: divergence from the full model.",
    )


def workload_table(answer: Answer) -> Table:
    """Return how the plan does for each kind of work."""
    rows = tuple(
        Row(
            cells=(
                WORKLOAD_WORDS.get(row.workload, row.workload),
                f"{row.grade} {row.score}" if row.score else row.grade,
                SHORT_STATUS[row.status],
                tokens_per_s(row.decode_tokens_per_s),
                format_seconds(row.ttft_s),
                tokens(row.context_tokens),
                f"{tokens(row.prompt_tokens)} \u2192 {tokens(row.output_tokens)}",
            ),
            marked=answer.request is not None and row.workload == answer.request.workload,
        )
        for row in answer.workloads
    )
    return Table(
        title="Workloads",
        columns=(
            _text("Workload"),
            _text("Grade"),
            _text("Fit", wraps=True),
            _number("Decode"),
            _number("First token"),
            _number("Context"),
            _number("Tokens", optional=True),
        ),
        rows=rows,
        note="Tokens: length of the prompt and of the output the row is worked out for.",
    )


def mode_table(answer: Answer) -> Table:
    """Return the best plan under each operating mode."""
    current = answer.request.mode if answer.request is not None else None
    rows = tuple(
        Row(
            cells=(
                MODE_WORDS[row.mode][0],
                f"{row.grade} {row.score}",
                row.quant,
                SHORT_STATUS[row.status],
                tokens(row.context_tokens),
                tokens_per_s(row.decode_tokens_per_s.expected if row.decode_tokens_per_s else None),
                format_seconds(row.ttft_s),
                "-"
                if row.output_tokens_per_s is None
                else f"{tokens_per_s(row.output_tokens_per_s)} at {row.concurrency}",
            ),
            marked=row.mode == current,
        )
        for row in answer.modes
    )
    return Table(
        title="Operating modes",
        columns=(
            _text("Mode"),
            _text("Grade"),
            _text("Quant"),
            _text("Fit", optional=True, wraps=True),
            _number("Context", optional=True),
            _number("Decode"),
            _number("First token"),
            _number("Total"),
        ),
        rows=rows,
        note="Total: tokens of all requests together, at that many requests at once.",
    )


def serving_table(answer: Answer) -> Table | None:
    """Return aggregate speed against concurrency, None when nothing is known."""
    serving = answer.serving
    if serving is None:
        return None
    rows = []
    for index, concurrency in enumerate(serving.concurrency):
        low, high = serving.low_tokens_per_s, serving.high_tokens_per_s
        bounds = f"{number(low[index])}\u2013{number(high[index])}" if low and high else "-"
        each = serving.time_per_token_s[index] if serving.time_per_token_s else None
        cells = (
            f"{concurrency}",
            tokens_per_s(serving.output_tokens_per_s[index]),
            bounds,
            format_seconds(serving.ttft_s[index]),
            "-" if not each else tokens_per_s(1 / each),
        )
        rows.append(Row(cells=cells, marked=concurrency == serving.max_concurrency))
    most = serving.max_concurrency
    note = "" if most is None else f"Up to {most} at once keep the targets." if most else "Nobody gets the targets."
    return Table(
        title="Serving",
        columns=(
            _number("Requests"),
            _number("Total"),
            _number("Range"),
            _number("First token"),
            _number("Each"),
        ),
        rows=tuple(rows),
        note=note,
    )


def curve_table(answer: Answer) -> Table | None:
    """Return memory and speed over context, None when the answer has no curve."""
    plan = answer.plan
    if plan is None or not answer.curve:
        return None
    rows = tuple(
        Row(
            cells=(
                tokens(point.context_tokens),
                *(format_bytes(size) for size in point.device_bytes),
                tokens_per_s(point.decode_tokens_per_s.expected if point.decode_tokens_per_s else None),
                rate_range(point.decode_tokens_per_s),
            ),
            marked=point.context_tokens == plan.context_tokens,
        )
        for point in answer.curve
    )
    return Table(
        title="Memory and speed over context",
        columns=(
            _number("Context"),
            *(_number(name) for name in device_names(plan.devices)),
            _number("Decode, filled"),
            _number("Range", optional=True),
        ),
        rows=rows,
    )


def recommendation_table(answers: Sequence[Answer], *, title: str = "Best models for this machine") -> Table:
    """Return one row per model, as ranked."""
    weighed = any(answer.rank_score is not None for answer in answers)
    rows = tuple(
        Row(
            cells=(
                f"{rank}",
                answer.model.title,
                *((("-" if answer.rank_score is None else f"{answer.rank_score:.0f}"),) if weighed else ()),
                f"{answer.grade} {answer.score}",
                *_plan_cells(answer),
            )
        )
        for rank, answer in enumerate(answers, start=1)
    )
    overall = (_number("Overall"),) if weighed else ()
    columns = (_number("#"), _text("Model", wraps=True), *overall, _text("Grade"), *PLAN_COLUMNS)
    note = "Overall: the grade's score, weighed with the ability that size and age let expect." if weighed else ""
    return Table(title=title, columns=columns, rows=rows, note=note)


PLAN_COLUMNS = (
    _text("Quant"),
    _text("Fit", wraps=True),
    _number("Memory", optional=True),
    _number("Context"),
    _number("Decode"),
    _number("First token", optional=True),
)


def comparison_table(answers: Sequence[Answer]) -> Table:
    """Return one row per machine for the same model."""
    rows = tuple(
        Row(
            cells=(
                hardware(answer),
                "-"
                if not answer.machine.gpus
                else format_rate(sum(gpu.bandwidth_bytes_per_s or 0.0 for gpu in answer.machine.gpus) or None),
                f"{answer.grade} {answer.score}",
                *_plan_cells(answer),
            )
        )
        for answer in answers
    )
    columns = (_text("Machine", wraps=True), _number("Bandwidth", optional=True), _text("Grade"), *PLAN_COLUMNS)
    return Table(
        title=f"{answers[0].model.title} on each machine" if answers else "Machines", columns=columns, rows=rows
    )


def _plan_cells(answer: Answer) -> tuple[str, ...]:
    plan, speed = answer.plan, answer.speed
    decode = speed.decode_tokens_per_s if speed else None
    fit = SHORT_STATUS[answer.fit.status]
    if plan is not None and plan.offloaded_fraction > 0 and answer.machine.gpus:
        fit += f", {percent(plan.offloaded_fraction)}"
    return (
        plan.quant if plan else "-",
        fit,
        format_bytes(needed_bytes(answer)),
        tokens(plan.context_tokens) if plan else "-",
        tokens_per_s(decode.expected if decode else None),
        format_seconds(speed.ttft_s.expected if speed and speed.ttft_s else None),
    )
