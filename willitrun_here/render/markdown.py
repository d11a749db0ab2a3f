"""The answer as Markdown, for an issue, a wiki or a README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from willitrun_estimator.plan import Answer
from willitrun_here.render import tables
from willitrun_here.render.breakdown import bars
from willitrun_here.render.facts import facts
from willitrun_here.render.faq import questions
from willitrun_here.render.wording import (
    ENGINE_WORDS,
    GRADE_WORDS,
    MODE_WORDS,
    STATUS_WORDS,
    current_mode,
    gain,
    printable,
    runs,
    summary,
    title,
    tokens_per_s,
    verdict,
)
from willitrun_probe.units import format_bytes

# An underscore inside a word (Q4_K_M) emphasises nothing; elsewhere it does.
_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~$]|(?<![^\W_])_|_(?![^\W_]))")


def escape(text: str) -> str:
    """Return text with every sign that Markdown or HTML in it would read escaped."""
    return _SPECIAL.sub(r"\\\1", printable(text).replace("&", "&amp;"))


def render(answer: Answer) -> str:
    """Return the whole answer."""
    grade = f" Grade {answer.grade} ({GRADE_WORDS[answer.grade].lower()}), score {answer.score} of 100."
    status = STATUS_WORDS[answer.fit.status]
    out = [
        f"# {escape(title(answer))}",
        f"**{verdict(answer)}: {status.lower()}.**{grade if runs(answer) else ''}",
        escape(summary(answer)),
    ]
    if answer.tags is not None:
        out.append(
            _list(
                f"**{name}** {escape(tag.value)}: {escape(tag.reason)}"
                for name, tag in (
                    ("runtime", answer.tags.runtime),
                    ("capacity", answer.tags.capacity),
                    ("bandwidth", answer.tags.bandwidth),
                    ("stack", answer.tags.stack),
                    ("bottleneck", answer.tags.bottleneck),
                )
            )
        )
    word, meaning = MODE_WORDS[current_mode(answer)]
    out.append(f"Mode: **{word}**. {meaning}")
    rows = tuple(tables.Row(cells=row) for row in facts(answer))
    if rows:
        columns = (tables.Column(name=""), tables.Column(name="Value", numeric=True), tables.Column(name=""))
        out.append(table(tables.Table(title="Figures", columns=columns, rows=rows)))
    out += _memory(answer)
    out += [
        "## What limits this setup",
        _list(escape(limit.message) for limit in answer.limits) or "Nothing stands out.",
    ]
    if answer.improvements:
        changes = (f"**{gain(change.gain)}** {escape(change.message)}" for change in answer.improvements)
        out += ["## Best ways to improve it", _list(changes)]
    serving = tables.serving_table(answer)
    curve = tables.curve_table(answer)
    shown = (
        tables.quant_table(answer) if answer.quants else None,
        tables.workload_table(answer) if answer.workloads else None,
        tables.mode_table(answer) if answer.modes else None,
        serving,
        curve,
    )
    out += [table(shape) for shape in shown if shape is not None]
    out += _commands(answer)
    out += _score(answer)
    out.append("## Questions")
    out += [f"**{escape(question)}**\n\n{escape(reply)}" for question, reply in questions(answer)]
    out += [f"> {escape(finding)}" for finding in answer.findings]
    return "\n\n".join(out) + "\n"


def render_recommendations(answers: Sequence[Answer]) -> str:
    """Return the ranked models as one table."""
    return table(tables.recommendation_table(answers)) + "\n"


def render_comparison(answers: Sequence[Answer]) -> str:
    """Return one model on several machines as one table."""
    return table(tables.comparison_table(answers)) + "\n"


def table(shape: tables.Table) -> str:
    """Return a table in GitHub's form under its heading; marked rows are bold."""
    lines = [
        "| " + " | ".join(escape(column.name) for column in shape.columns) + " |",
        "| " + " | ".join("---:" if column.numeric else "---" for column in shape.columns) + " |",
    ]
    for row in shape.rows:
        cells = [f"**{escape(cell)}**" if row.marked and cell.strip() else escape(cell) for cell in row.cells]
        lines.append("| " + " | ".join(cells) + " |")
    body = "\n".join(lines)
    return f"## {escape(shape.title)}\n\n{body}" + (f"\n\n{escape(shape.note)}" if shape.note else "")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _memory(answer: Answer) -> list[str]:
    drawn = bars(answer)
    if not drawn:
        return []
    rows = tuple(
        tables.Row(cells=(bar.name, segment.label, format_bytes(segment.bytes)))
        for bar in drawn
        for segment in bar.segments
    )
    columns = (tables.Column(name="Device"), tables.Column(name="Part"), tables.Column(name="Size", numeric=True))
    return [table(tables.Table(title="Memory", columns=columns, rows=rows))]


def _commands(answer: Answer) -> list[str]:
    if not answer.commands:
        return []
    out = ["## Run it"]
    for name, command in answer.commands.items():
        out.append(f"### {escape(ENGINE_WORDS.get(name, name))}")
        out += [f"`{escape(file)}`:\n\n{_fenced(text)}" for file, text in command.files.items()]
        out.append(_fenced(command.shell, "sh"))
        out += [escape(note) for note in command.notes]
    return out


def _fenced(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _score(answer: Answer) -> list[str]:
    if not answer.score_parts:
        return []
    formula = " \u00d7 ".join(f"{part.name} {part.value:.2f}^{part.weight:.2f}" for part in answer.score_parts)
    reasons = _list(f"{part.name}: {escape(part.reason)}" for part in answer.score_parts)
    out = ["## Score", f"{answer.score} = 100 \u00d7 {escape(formula)}", reasons]
    measured = answer.speed.measured if answer.speed else ()
    if measured:
        out.append(
            _list(f"{tokens_per_s(row.tokens_per_s)}: {escape(row.test)} ({escape(row.source)})" for row in measured)
        )
    return out
