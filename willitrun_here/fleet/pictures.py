"""Small pictures as SVG text: horizontal bars with their numbers, readable without colour and by a screen reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

ROW, LABEL, BAR, VALUE = 24, 240, 360, 120


def bars(rows: Sequence[tuple[str, int]], unit: str, write: Callable[[int], str] = str) -> Markup:
    """Draw one bar a row, to scale with the largest; an empty list is an empty text."""
    if not rows:
        return Markup("")
    largest = max(1, *(value for _, value in rows))
    lines = []
    for number, (label, value) in enumerate(rows):
        top = number * ROW
        width = round(BAR * value / largest, 1)
        text = f"{write(value)} {unit}".strip()
        lines.append(
            Markup(
                '<text class="label" x="{end}" y="{base}" text-anchor="end">{label}</text>'
                '<rect class="bar" x="{left}" y="{top}" width="{width}" height="16" rx="2"/>'
                '<text class="value" x="{after}" y="{base}">{text}</text>'
            ).format(
                end=LABEL - 8,
                base=top + 16,
                label=_short(label),
                left=LABEL,
                top=top + 4,
                width=width,
                after=LABEL + width + 8,
                text=text,
            )
        )
    words = escape("; ".join(f"{label}: {write(value)} {unit}".strip() for label, value in rows))
    height, width = len(rows) * ROW + 4, LABEL + BAR + VALUE
    opening = Markup('<svg role="img" viewBox="0 0 {width} {height}" aria-label="{words}">')
    return opening.format(width=width, height=height, words=words) + Markup("").join(lines) + Markup("</svg>")


def _short(text: str) -> str:
    return text if len(text) <= 34 else text[:33] + "…"  # noqa: PLR2004 - what the label column holds
