from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_here.render import markdown, wording
from willitrun_here.render.faq import questions


@pytest.mark.parametrize(
    ("value", "words"),
    [(1480.4, "1,480"), (74.1, "74"), (19.96, "20.0"), (16.7, "16.7"), (1.0, "1.0"), (0.354, "0.35"), (0, "0.00")],
)
def test_rates_carry_the_digits_they_deserve(value, words):
    assert wording.number(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(49_122_675_072, "49.1B"), (494_032_768, "494M"), (1.04e12, "1.04T"), (12, "12")]
)
def test_parameters_are_written_as_in_model_names(value, words):
    assert wording.count(value) == words


@pytest.mark.parametrize(("value", "words"), [(0, "0 %"), (0.001, "<1 %"), (0.104, "10 %"), (1.0, "100 %")])
def test_shares(value, words):
    assert wording.percent(value) == words


@pytest.mark.parametrize(("value", "words"), [(0.62, "+62 %"), (1.0, "\u00d72.0"), (3.5, "\u00d74.5")])
def test_gains(value, words):
    assert wording.gain(value) == words


@given(st.text())
def test_printable_keeps_length_and_loses_every_control_character(text):
    shown = wording.printable(text)
    assert len(shown) == len(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text(alphabet="ab\\`*_{}[]<>#|~$&!\n", max_size=60))
def test_escaped_markdown_holds_no_live_sign(text):
    shown = markdown.escape(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}\[\]<>#|~$]", shown)
    assert "\n" not in shown


def test_the_summary_names_what_was_counted(answers):
    text = wording.summary(answers.mi100())
    assert text == (
        "Kimi Linear 48B A3B Instruct in Q4_K_M takes 25.9 GiB of the 31.7 GiB free on AMD Instinct MI100 32GB, with a "
        "context of 32K tokens. 10 % of the weights stay in host memory. Expect about 36 tok/s (25\u201347 tok/s)."
    )
    assert wording.hardware(answers.two_gpus()) == "2\u00d7 NVIDIA GeForce RTX 3090"


def test_a_no_is_a_no_everywhere(answers):
    answer = answers.too_large()
    assert wording.verdict(answer) == "NO"
    assert questions(answer)[0][1].startswith("No. ")
    assert "**NO: does not fit.**" in markdown.render(answer)


@pytest.mark.parametrize("name", ["a100", "mi100", "too_large", "two_gpus"])
def test_markdown_looks_as_recorded(answers, golden, name):
    golden(f"{name}.md", markdown.render(getattr(answers, name)()))


def test_markdown_of_hostile_names_has_no_markup(answers):
    text = markdown.render(answers.hostile())
    outside = re.sub(r"(?s)```.*?```", "", text)
    assert not re.search(r"(?<!\\)<", outside)


def test_markdown_tables_have_as_many_cells_as_columns(answers):
    rows = [answers.a100(), answers.mi100()]
    for text in (markdown.render_recommendations(rows), markdown.render_comparison(rows), markdown.render(rows[0])):
        for block in re.findall(r"(?m)(?:^\|.*\n?)+", text):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
