"""The answer in a terminal, by rich. Colour only helps: every mark also has a shape, and a pipe gets plain text.

This module brings rich with it: import it where something is printed, not where a command is declared.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from willitrun_estimator.plan import Answer, Status
from willitrun_here.render import tables
from willitrun_here.render.breakdown import Bar, bars
from willitrun_here.render.facts import facts
from willitrun_here.render.faq import questions
from willitrun_here.render.terminal import suited
from willitrun_here.render.wording import (
    ENGINE_WORDS,
    GRADE_WORDS,
    MODE_WORDS,
    STATUS_WORDS,
    count,
    current_mode,
    gain,
    number,
    printable,
    remark,
    runs,
    summary,
    title,
    tokens,
    tokens_per_s,
    verdict,
)
from willitrun_probe.units import format_bytes

WIDE = 110
"""Columns from which optional table columns are shown."""
STYLES: dict[Status, str] = {
    "comfortable": "green",
    "fits": "green",
    "tight": "yellow",
    "offload": "yellow",
    "paging": "red",
    "too-large": "red",
}
# Key of a segment to its glyph, its glyph without Unicode, and its colour.
GLYPHS = {
    "taken": ("\u2573", "x", "bright_black"),
    "weights": ("\u2588", "#", "blue"),
    "kv_cache": ("\u2593", "=", "cyan"),
    "recurrent": ("\u2593", "+", "magenta"),
    "compute": ("\u2592", "%", "yellow"),
    "output": ("\u2592", "o", "green"),
    "runtime": ("\u2592", "~", "bright_black"),
    "headroom": ("\u2591", ".", "bright_black"),
}


def render_answer(answer: Answer, console: Console, *, explain: bool = False) -> None:
    """Print the whole answer; `explain` adds the tags' inequalities, the score's parts and the questions."""
    console = suited(console)
    _headline(answer, console)
    _facts(answer, console)
    _memory(answer, console)
    _advice(answer, console)
    mode_rows = tables.mode_table(answer) if answer.modes else None
    serving = tables.serving_table(answer) if current_mode(answer) in {"light-api", "scale-out"} or explain else None
    shown = (
        tables.quant_table(answer) if answer.quants else None,
        tables.workload_table(answer) if answer.workloads else None,
        tables.curve_table(answer),
        mode_rows,
        serving,
    )
    for table in shown:
        if table is not None:
            render_table(table, console)
    _commands(answer, console)
    if explain:
        _explanation(answer, console)
    for finding in answer.findings:
        console.print(_text("Note: ", "bold") + _text(finding, "dim"))


def render_recommendations(answers: Sequence[Answer], console: Console) -> None:
    """Print one line per recommended model."""
    console = suited(console)
    if not answers:
        console.print("Nothing in the catalog runs here.")
        return
    render_table(tables.recommendation_table(answers), console)
    console.print(_text("Details: willitrun-here check MODEL   Command: willitrun-here launch MODEL", "dim"))


def render_comparison(answers: Sequence[Answer], console: Console) -> None:
    """Print one line per machine for the same model."""
    render_table(tables.comparison_table(answers), suited(console))


def render_table(table: tables.Table, console: Console) -> None:
    """Print a table, without its optional columns where the terminal is narrow."""
    wide = console.width >= WIDE
    keep = [index for index, column in enumerate(table.columns) if wide or not column.optional]
    grid = Table(
        title=printable(table.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1),
        pad_edge=False,
    )
    for index in keep:
        column = table.columns[index]
        grid.add_column(
            printable(column.name),
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=not column.wraps,
            # A column may break between words, never within one.
            min_width=max((len(word) for row in table.rows for word in row.cells[index].split()), default=0),
        )
    pointer = "> " if console.options.ascii_only else "\u25b8 "
    marks = any(row.marked for row in table.rows)
    for row in table.rows:
        cells = [row.cells[index] for index in keep]
        if marks:
            cells[0] = (pointer if row.marked else "  ") + cells[0]
        grid.add_row(*(_text(cell, "bold" if row.marked else "") for cell in cells))
    console.print(grid)
    if table.note:
        console.print(_text(table.note, "dim"))
    console.print()


def _text(text: str, style: str = "") -> Text:
    made = Text()
    # A span, not the base style: a base style would spread over whatever is added to this text.
    made.append(printable(text), style)
    return made


def _print_flow(items: Sequence[Text], console: Console) -> None:
    """Print items side by side, breaking lines between them only."""
    line = Text()
    for item in items:
        if line and line.cell_len + 3 + item.cell_len > console.width:
            console.print(line)
            line = Text()
        line += (_text("   ") if line else Text()) + item
    console.print(line)


def _headline(answer: Answer, console: Console) -> None:
    style = STYLES[answer.fit.status]
    console.print(_text(title(answer), "bold"))
    console.print()
    line = _text(f" {verdict(answer)} ", f"bold reverse {style}") + _text(f"  {STATUS_WORDS[answer.fit.status]}", style)
    if runs(answer):
        line += _text(
            f"   grade {answer.grade} ({GRADE_WORDS[answer.grade].lower()}), score {answer.score} of 100", "bold"
        )
    console.print(line)
    console.print()
    console.print(_text(summary(answer)))
    if remark(answer):
        console.print(_text(remark(answer), "dim"))
    if answer.tags is not None:
        tags = answer.tags
        pairs = (
            ("runtime", tags.runtime),
            ("capacity", tags.capacity),
            ("bandwidth", tags.bandwidth),
            ("stack", tags.stack),
            ("bottleneck", tags.bottleneck),
        )
        _print_flow([_text(f"{name} ", "dim") + _text(tag.value) for name, tag in pairs], console)
    word, meaning = MODE_WORDS[current_mode(answer)]
    console.print(_text("mode ", "dim") + _text(word) + _text(f"   {meaning}", "dim"))
    console.print()


def _facts(answer: Answer, console: Console) -> None:
    if answer.plan is None:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    for name, value, note in facts(answer):
        grid.add_row(_text(name, "dim"), _text(value, "bold"), _text(note, "dim"))
    console.print(grid)
    console.print()


def _memory(answer: Answer, console: Console) -> None:
    drawn = bars(answer)
    if not drawn:
        return
    ascii_only = console.options.ascii_only
    longest = max((bar.extent_bytes for bar in drawn if bar.kind == "gpu"), default=0)
    width = min(console.width, 100) - 2
    console.print(_text("Memory", "bold"))
    for bar in drawn:
        console.print(_text(f"{bar.name}  ", "") + _text(_bar_caption(bar), "dim"))
        scale = longest if bar.kind == "gpu" else bar.extent_bytes
        console.print(_bar_line(bar, width, scale, ascii_only=ascii_only))
        _print_flow(_legend(bar, ascii_only=ascii_only), console)
    console.print()


def _bar_caption(bar: Bar) -> str:
    spare = bar.free_bytes - bar.needed_bytes
    tail = f"{format_bytes(spare)} left" if spare >= 0 else f"{format_bytes(-spare)} too much"
    return f"{format_bytes(bar.needed_bytes)} of {format_bytes(bar.free_bytes)} free, {tail}"


def _bar_line(bar: Bar, width: int, longest: int, *, ascii_only: bool) -> Text:
    line = _text("")
    drawn, total = 0, 0
    for segment in bar.segments:
        total += segment.bytes
        until = round(total / longest * width)
        glyph, plain, style = GLYPHS[segment.key]
        line += _text((plain if ascii_only else glyph) * (until - drawn), style)
        drawn = until
    return line


def _legend(bar: Bar, *, ascii_only: bool) -> list[Text]:
    items = []
    for segment in bar.segments:
        glyph, plain, style = GLYPHS[segment.key]
        mark = _text(plain if ascii_only else glyph, style)
        items.append(mark + _text(f" {segment.label.lower()} ", "dim") + _text(format_bytes(segment.bytes)))
    return items


def _advice(answer: Answer, console: Console) -> None:
    console.print(_text("What limits this setup", "bold"))
    bullet = "*" if console.options.ascii_only else "\u2022"
    _print_list([(_text(bullet, "yellow"), _text(limit.message)) for limit in answer.limits], console)
    if not answer.limits:
        console.print(_text("  Nothing stands out.", "dim"))
    if answer.improvements:
        console.print(_text("Best ways to improve it", "bold"))
        rows = [(_text(gain(change.gain), "green"), _text(change.message)) for change in answer.improvements]
        _print_list(rows, console)
    if answer.runner_up is not None:
        other = answer.runner_up
        what = f"{other.quant}, context {tokens(other.context_tokens)}, score {number(other.score)}"
        console.print(_text("Runner-up ", "dim") + _text(f"{what}: {other.reason}"))
    console.print()


def _print_list(rows: Sequence[tuple[Text, Text]], console: Console) -> None:
    """Print marks and sentences; a long sentence hangs below its own beginning."""
    grid = Table.grid(padding=(0, 0, 0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    for mark, sentence in rows:
        grid.add_row(mark, sentence)
    if rows:
        console.print(grid)


def _commands(answer: Answer, console: Console) -> None:
    if not answer.commands:
        return
    console.print(_text("Run it", "bold"))
    for name, command in answer.commands.items():
        console.print(_text(ENGINE_WORDS.get(name, name), "dim"))
        for file, text in command.files.items():
            console.print(_text(f"  {file}:", "dim"))
            for row in text.splitlines():
                console.print(_text(row), soft_wrap=True)
        # Neither wrapped nor indented, so that what is copied is what was meant.
        for row in command.shell.splitlines():
            console.print(_text(row, "bold"), soft_wrap=True)
        for note in command.notes:
            console.print(_text(f"  {note}", "dim"))
    console.print()


def _explanation(answer: Answer, console: Console) -> None:
    if answer.tags is not None:
        console.print(_text("Why these words", "bold"))
        tags = answer.tags
        for tag in (tags.runtime, tags.capacity, tags.bandwidth, tags.stack, tags.bottleneck):
            console.print(_text(f"  {tag.value}: ") + _text(tag.reason, "dim"))
        console.print()
    if answer.score_parts:
        formula = " \u00d7 ".join(f"{part.name} {part.value:.2f}^{part.weight:.2f}" for part in answer.score_parts)
        console.print(_text("Score", "bold"))
        console.print(_text(f"  {answer.score} = 100 \u00d7 {formula}"))
        for part in answer.score_parts:
            console.print(_text(f"  {part.name}: ") + _text(part.reason, "dim"))
        console.print()
    for row in answer.speed.measured if answer.speed else ():
        console.print(_text(f"Measured elsewhere: {tokens_per_s(row.tokens_per_s)}, {row.test} ({row.source})", "dim"))
    model = answer.model
    console.print(_text(f"{model.title}: {count(model.params)} parameters, {count(model.active_params)} active", "dim"))
    console.print()
    console.print(_text("Questions", "bold"))
    for question, reply in questions(answer):
        console.print(_text(question))
        console.print(_text(f"  {reply}", "dim"))
    console.print()
