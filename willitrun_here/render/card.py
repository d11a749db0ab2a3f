"""A small card of a result, as SVG to embed anywhere and as a tiny HTML file. It loads nothing."""

from __future__ import annotations

from html import escape

from willitrun_estimator.plan import Answer
from willitrun_here.render.wording import (
    GRADE_TONES,
    STATUS_WORDS,
    TONES,
    available_bytes,
    hardware,
    needed_bytes,
    printable,
    runs,
    summary,
    title,
    tokens,
    tokens_per_s,
    verdict,
)
from willitrun_probe.units import format_bytes

WIDTH, HEIGHT = 400, 180
COLOURS = {"good": ("#17693f", "#e5f3ea"), "fair": ("#855400", "#fbf0d9"), "bad": ("#ad2c22", "#fbe7e4")}
SANS = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"
LONGEST = {"title": 36, "hardware": 46}


def render_svg(answer: Answer) -> str:
    """Return the card as SVG; it needs no style sheet, so it can be pasted into any page."""
    ink, paper = COLOURS[TONES[answer.fit.status]]
    grade_ink = COLOURS[GRADE_TONES[answer.grade]][0]
    plan = answer.plan
    decode = answer.speed.decode_tokens_per_s if answer.speed else None
    facts = [("Missing", format_bytes(max(0, -answer.fit.headroom_bytes)))]
    if plan is not None:
        facts = [
            ("Memory", f"{format_bytes(needed_bytes(answer))} of {format_bytes(available_bytes(answer))}"),
            ("Decode", tokens_per_s(decode.expected if decode else None)),
            ("Context", tokens(plan.context_tokens)),
        ]
    status = f"{verdict(answer)} \u00b7 {STATUS_WORDS[answer.fit.status]}" + (f" \u00b7 {plan.quant}" if plan else "")
    pill = 20 + round(7.2 * len(status))
    label = escape(printable(f"{title(answer)} {summary(answer)}"))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}" font-family="{SANS}">',
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12" fill="#ffffff" stroke="#d9d5ce"/>',
        _line(20, 36, 17, "#1d2025", _short(answer.model.title, LONGEST["title"]), weight=650),
        _line(20, 58, 13, "#5a6068", _short(f"on {hardware(answer)}", LONGEST["hardware"])),
        f'<rect x="20" y="74" width="{pill}" height="26" rx="13" fill="{paper}"/>',
        _line(30, 91.5, 13, ink, status, weight=600),
    ]
    if runs(answer):
        out += [
            _line(380, 44, 34, grade_ink, answer.grade, weight=700, anchor="end"),
            _line(380, 62, 12, "#5a6068", f"{answer.score} of 100", anchor="end"),
        ]
    for (name, value), x in zip(facts, (20, 205, 310), strict=False):
        out += [_line(x, 126, 12, "#5a6068", name), _line(x, 145, 14, "#1d2025", value, weight=600)]
    out += [_line(20, 168, 11, "#5a6068", "willitrun-here"), "</svg>"]
    return "".join(out)


def render_html(answer: Answer) -> str:
    """Return the card as an HTML file of its own, to put into a frame."""
    page_title = escape(printable(title(answer)))
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{page_title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"></head>'
        f"<body>{render_svg(answer)}</body></html>\n"
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def _line(x: float, y: float, size: int, fill: str, text: str, *, weight: int = 400, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}">'
        f"{escape(printable(text))}</text>"
    )
