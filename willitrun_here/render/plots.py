"""Line plots and bars as SVG text, drawn by this module alone. Colours are classes: the page's style sheet has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from msgspec import Struct

from willitrun_estimator.plan import Answer, Serving
from willitrun_here.render.breakdown import Bar
from willitrun_here.render.wording import number, tokens
from willitrun_probe.units import GIB, format_bytes

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 36
LEAST_GAP = 44
"""Between the middles of two labels of the x axis."""


class Line(Struct, frozen=True, kw_only=True):
    """One curve with its optional band of low and high; `name` labels its end."""

    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Axes(Struct, frozen=True, kw_only=True):
    """What a plot is about. x is spaced by its logarithm; y starts at 0."""

    title: str
    description: str
    x_name: str
    x: tuple[float, ...]
    x_words: Callable[[float], str]
    y_words: Callable[[float], str]
    y_unit: float = 1.0
    """Ticks fall on round multiples of this."""


def memory_plot(answer: Answer) -> str | None:
    """Return memory needed over context on the fullest GPU (or the host), with what is free as a rule."""
    plan = answer.plan
    if plan is None or len(answer.curve) < 2:  # noqa: PLR2004 - a line needs two points
        return None
    gpus = [index for index, use in enumerate(plan.devices) if use.kind == "gpu"] or range(len(plan.devices))
    last = answer.curve[-1].device_bytes
    fullest = max(gpus, key=lambda index: last[index] / max(1, plan.devices[index].free_bytes))
    device = plan.devices[fullest]
    values = tuple(float(point.device_bytes[fullest]) for point in answer.curve)
    axes = Axes(
        title=f"Memory over context on {device.name}",
        description=f"From {format_bytes(int(values[0]))} to {format_bytes(int(values[-1]))}; "
        f"{format_bytes(device.free_bytes)} are free.",
        x_name="context, tokens",
        x=tuple(float(point.context_tokens) for point in answer.curve),
        x_words=lambda value: tokens(int(value)),
        y_words=lambda value: f"{value / GIB:.3g} GiB",
        y_unit=float(GIB),
    )
    return line_plot(
        axes,
        Line(values=values),
        rule=(float(device.free_bytes), f"{format_bytes(device.free_bytes)} free"),
        mark=float(plan.context_tokens),
    )


def speed_plot(answer: Answer) -> str | None:
    """Return decode speed over filled context with its interval."""
    if answer.plan is None:
        return None
    points = [point for point in answer.curve if point.decode_tokens_per_s is not None]
    rates = [point.decode_tokens_per_s for point in points if point.decode_tokens_per_s is not None]
    if len(points) < 2:  # noqa: PLR2004 - a line needs two points
        return None
    axes = Axes(
        title="Decode speed over filled context",
        description=f"Expected {number(rates[0].expected)} tokens/s at {tokens(points[0].context_tokens)}, "
        f"{number(rates[-1].expected)} at {tokens(points[-1].context_tokens)}.",
        x_name="tokens in the context",
        x=tuple(float(point.context_tokens) for point in points),
        x_words=lambda value: tokens(int(value)),
        y_words=lambda value: f"{value:.3g}",
    )
    line = Line(
        values=tuple(rate.expected for rate in rates),
        low=tuple(rate.low for rate in rates),
        high=tuple(rate.high for rate in rates),
    )
    return line_plot(axes, line, mark=float(answer.plan.context_tokens))


def serving_plot(serving: Serving) -> str | None:
    """Return the total output rate over concurrency with its interval."""
    if len(serving.concurrency) < 2:  # noqa: PLR2004 - a line needs two points
        return None
    axes = Axes(
        title="Total output rate over concurrent requests",
        description=f"Expected {number(serving.output_tokens_per_s[-1])} tokens/s at {serving.concurrency[-1]}.",
        x_name="requests at once",
        x=tuple(float(value) for value in serving.concurrency),
        x_words=lambda value: f"{value:.0f}",
        y_words=lambda value: f"{value:,.0f}",
    )
    line = Line(values=serving.output_tokens_per_s, low=serving.low_tokens_per_s, high=serving.high_tokens_per_s)
    return line_plot(axes, line, mark=None if serving.max_concurrency is None else float(serving.max_concurrency))


def line_plot(axes: Axes, line: Line, *, rule: tuple[float, str] | None = None, mark: float | None = None) -> str:
    """Draw one line; `rule` is a horizontal limit with its label, `mark` the x of the current plan."""
    top = max((*line.values, *line.high, rule[0] if rule else 0.0))
    ticks = nice_ticks(top / axes.y_unit)
    highest = ticks[-1] * axes.y_unit
    least, most = math.log(axes.x[0]), math.log(axes.x[-1])

    def across(value: float) -> float:
        return LEFT + (math.log(value) - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)

    label = escape(f"{axes.title}. {axes.description}")
    out = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in ticks:
        y = up(tick * axes.y_unit)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = escape(axes.y_words(tick * axes.y_unit))
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    below, last = HEIGHT - BOTTOM + 16, float(WIDTH) + LEAST_GAP
    for value in axes.x[::-1]:
        x = across(value)
        if last - x >= LEAST_GAP:
            out.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{escape(axes.x_words(value))}</text>')
            last = x
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axes.x_name)}</text>')
    if line.low and line.high:
        there = [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(axes.x, line.high, strict=True)]
        back = [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(axes.x, line.low, strict=True)]
        out.append(f'<polygon class="band" points="{" ".join(there + back[::-1])}"/>')
    points = [(across(x), up(y)) for x, y in zip(axes.x, line.values, strict=True)]
    out.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    if rule is not None:
        y = up(rule[0])
        out.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="rule-name" x="{LEFT + 6}" y="{y - 5:.1f}">{escape(rule[1])}</text>')
    if mark is not None and axes.x[0] <= mark <= axes.x[-1]:
        x, y = across(mark), up(_at(axes.x, line.values, mark))
        out.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    out.append("</svg>")
    return "".join(out)


def nice_ticks(top: float) -> tuple[float, ...]:
    """Return 4 to 7 round values from 0 to at least `top` (steps of 1, 2, 2.5 or 5 times a power of ten)."""
    if top <= 0:
        return (0.0, 1.0)
    rough = top / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return tuple(step * index for index in range(math.ceil(top / step - 1e-9) + 1))


def bar_rects(bar: Bar, longest_bytes: int) -> tuple[tuple[str, str, str, float, float], ...]:
    """Return each segment as (key, label, size in words, x, width), both in per cent of the longest bar."""
    rects, start = [], 0
    for segment in bar.segments:
        x, width = start / longest_bytes * 100, segment.bytes / longest_bytes * 100
        rects.append((segment.key, segment.label, format_bytes(segment.bytes), round(x, 3), round(width, 3)))
        start += segment.bytes
    return tuple(rects)


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Return the drawn line's height at `x` (straight between points on the logarithmic axis)."""
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if x0 <= x <= x1:
            share = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0)) if x1 > x0 else 0.0
            return y0 + share * (y1 - y0)
    return ys[-1]
