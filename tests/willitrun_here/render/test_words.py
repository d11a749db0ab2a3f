from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from willitrun_estimator.plan import Context, ExpertsApart
from willitrun_estimator.request import Request
from willitrun_here.render import markdown, wording
from willitrun_here.render.breakdown import bars
from willitrun_here.render.facts import facts
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


@pytest.mark.parametrize(("value", "words"), [(0, "0%"), (0.001, "<1%"), (0.104, "10%"), (1.0, "100%")])
def test_shares(value, words):
    assert wording.percent(value) == words


@pytest.mark.parametrize(("value", "words"), [(0.62, "+62%"), (1.0, "\u00d72.0"), (3.5, "\u00d74.5")])
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
    assert not re.search(r"(?<!\\)(?:\\\\)*(?:[`*{}\[\]<>#|~$]|(?<![ab_\\])_|_(?![ab_]))", shown)
    assert "\n" not in shown


def test_the_summary_names_what_was_counted(answers):
    text = wording.summary(answers.mi100())
    assert text == (
        "Kimi Linear 48B A3B Instruct in Q4_K_M takes 25.9 GiB of the 31.7 GiB free on AMD Instinct MI100 32GB, with a "
        "context of 32K tokens. 10% of the weights stay in host memory. Expect about 36 tok/s (25\u201347 tok/s)."
    )
    assert wording.hardware(answers.two_gpus()) == "2\u00d7 NVIDIA GeForce RTX 3090"


def test_a_plan_is_told_in_the_terms_of_its_engine(answers):
    (plan,) = [row for row in facts(answers.vllm()) if row[0] == "Plan"]
    assert plan[2] == (
        "vLLM, tensor parallel 2, up to 32 requests at once, marlin (weight-only), KV cache auto, context 256K"
    )
    (plan,) = [row for row in facts(answers.mi100()) if row[0] == "Plan"]
    assert "28 of 28 layers on the GPU, experts of 3 in host memory" in plan[2]
    asked = replace(answers.a100(), request=Request(prompt_tokens=3000))
    assert "prompt of 3000" in next(row[2] for row in facts(asked) if row[0] == "First token")


def test_devices_without_use_have_no_bar(answers):
    assert [bar.name for bar in bars(answers.vllm())] == [
        "GPU 0: NVIDIA GeForce RTX 3090",
        "GPU 1: NVIDIA GeForce RTX 3090",
    ]


def test_unknown_speed_is_said_and_the_whole_context_too(answers):
    answer = answers.a100()
    pairs = dict(questions(replace(answer, speed=None, context=Context(safe_tokens=1 << 20, max_tokens=1 << 20))))
    assert "Too little is known" in pairs["How fast is Kimi Linear 48B A3B Instruct on NVIDIA A100 40GB?"]
    assert "All of the model's 1M tokens." in pairs.values()


@pytest.mark.parametrize(("value", "words"), [(8192, "8K"), (132864, "129K"), (6000, "6000"), (1 << 20, "1M")])
def test_token_counts_are_round_and_never_too_high(value, words):
    assert wording.tokens(value) == words


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


def test_layers_that_are_cut_in_two_are_counted(answers):
    answer = answers.mi100()
    cut = ExpertsApart(block=3, tensors=("ffn_down_exps",), device=None)
    for apart, words in (((cut,), "1 layer cut in two"), ((cut, replace(cut, block=9)), "2 layers cut in two")):
        shown = replace(answer, plan=replace(answer.plan, experts_apart=apart))
        assert any(words in value for row in facts(shown) for value in row)
    assert not any("cut in two" in value for row in facts(answer) for value in row)
