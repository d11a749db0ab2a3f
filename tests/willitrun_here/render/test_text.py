from __future__ import annotations

import io
import re
import time

import pytest
from msgspec.structs import replace
from rich.console import Console

from willitrun_here.render import text
from willitrun_here.render.terminal import progress


def printed(width: int, show, *, encoding: str = "utf-8", **console) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    show(Console(file=stream, width=width, **console))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["a100", "mi100", "too_large", "two_gpus", "vllm"])
def test_an_answer_looks_as_recorded(answers, golden, name, width):
    answer = getattr(answers, name)()
    golden(f"{name}-{width}.txt", printed(width, lambda console: text.render_answer(answer, console)))


@pytest.mark.parametrize("width", [80, 120])
def test_the_explanation_looks_as_recorded(answers, golden, width):
    shown = printed(width, lambda console: text.render_answer(answers.a100(), console, explain=True))
    golden(f"explained-{width}.txt", shown)


@pytest.mark.parametrize("width", [80, 120])
def test_lists_look_as_recorded(answers, golden, width):
    rows = [answers.a100(), answers.mi100(), answers.too_large()]
    golden(f"recommend-{width}.txt", printed(width, lambda console: text.render_recommendations(rows, console)))
    golden(f"compare-{width}.txt", printed(width, lambda console: text.render_comparison(rows, console)))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", ["a100", "mi100", "too_large", "two_gpus"])
def test_no_line_but_a_command_is_wider_than_the_terminal(answers, name, width):
    answer = getattr(answers, name)()
    commands = {command.shell for command in answer.commands.values()}
    for line in printed(width, lambda console: text.render_answer(answer, console)).splitlines():
        assert len(line.rstrip()) <= width or line.strip() in commands


def test_a_command_stays_one_line_for_copying(answers):
    answer = answers.a100()
    lines = printed(80, lambda console: text.render_answer(answer, console)).splitlines()
    assert [line for line in lines if line.strip() == answer.commands["docker"].shell]


def test_a_pipe_gets_no_escape_codes_and_a_terminal_does(answers):
    answer = answers.a100()
    assert "\x1b" not in printed(80, lambda console: text.render_answer(answer, console))
    coloured = printed(80, lambda console: text.render_answer(answer, console), force_terminal=True, color_system="256")
    assert "\x1b[" in coloured


def test_a_colour_does_not_spread_over_its_neighbours(answers):
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="256")
    text.render_answer(answers.a100(), console)
    shown = console.export_text(styles=True).splitlines()
    for first, second in ((" YES ", "Tight fit"), ("+62%", "With 48 GiB")):
        line = next(line for line in shown if first in line and second in line)
        between = line[line.index(first) : line.index(second)]
        assert "\x1b[0m" in between


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_unicode_gets_ascii(answers, encoding):
    shown = printed(80, lambda console: text.render_answer(answers.mi100(), console, explain=True), encoding=encoding)
    assert shown.isascii()
    assert "####" in shown
    assert "> Q4_K_M" in shown
    assert "25-47 tok/s" in shown


def test_a_spinner_comes_only_to_a_terminal_and_only_when_it_takes_long():
    def show(pause_s):
        def run(console):
            with progress("thinking [bold]", console, after_s=0.05):
                time.sleep(pause_s)

        return run

    assert printed(80, show(0.2)) == ""
    assert "thinking [bold]" in printed(80, show(0.3), force_terminal=True)
    assert "thinking" not in printed(80, show(0.0), force_terminal=True)


def test_names_cannot_move_the_cursor_or_use_markup(answers):
    answer = answers.hostile()
    answer = replace(answer, model=replace(answer.model, title="\x1b[2J\x07evil\r[bold]x[/bold]\u202eabc"))
    shown = printed(120, lambda console: text.render_answer(answer, console, explain=True))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold]" in shown


def test_a_ranking_shows_what_it_is_ranked_by(answers):
    rows = [replace(answers.mi100(), rank_score=81.4), replace(answers.a100(), rank_score=79.6)]
    shown = printed(80, lambda console: text.render_recommendations(rows, console))
    assert re.search(r"1 +Kimi.* 81 +C 51", shown)
    assert re.search(r"2 +Kimi.* 80 +A 83", shown)
    assert "Overall: " in shown


def test_nothing_recommended_says_so():
    assert "Nothing" in printed(80, lambda console: text.render_recommendations([], console))


def test_the_memory_bar_is_as_long_as_the_memory_it_shows(answers):
    shown = printed(100, lambda console: text.render_answer(answers.a100(), console)).splitlines()
    line = next(line for line in shown if line.startswith("\u2573"))
    answer = answers.a100()
    use, total = answer.plan.devices[0], answer.machine.gpus[0].memory_total_bytes
    assert len(line) == 98
    assert line.count("\u2588") == pytest.approx(use.weights_bytes / total * 98, abs=1)
    assert line.count("\u2591") == pytest.approx((use.free_bytes - use.total_bytes) / total * 98, abs=1)
