"""Laws over answers with any part missing: no renderer stumbles, and none invents what is not there."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from willitrun_here.render import card, lists, markdown, page, text

ABSENT = {
    "speed": None, "tags": None, "serving": None, "quants": (), "workloads": (), "limits": (), "improvements": (),
    "runner_up": None, "score_parts": (), "findings": (), "commands": {}, "request": None, "curve": (), "modes": (),
}  # fmt: skip
NO_SPEEDS = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "ttft_cold_s", "load_s")


def load_answers():
    if "render_answers" not in sys.modules:
        spec = importlib.util.spec_from_file_location("render_answers", Path(__file__).parent / "answers.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["render_answers"] = module
        spec.loader.exec_module(module)
    return sys.modules["render_answers"]


@st.composite
def partial_answers(draw):
    samples = load_answers()
    answer = getattr(samples, draw(st.sampled_from(["a100", "mi100", "too_large", "two_gpus"])))()
    if answer.speed is not None:
        unknown = draw(st.sets(st.sampled_from(NO_SPEEDS)))
        answer = replace(answer, speed=replace(answer.speed, **dict.fromkeys(unknown)))
    answer = replace(answer, **{name: ABSENT[name] for name in draw(st.sets(st.sampled_from(sorted(ABSENT))))})
    name = draw(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
    answer = replace(answer, model=replace(answer.model, title=name), machine=replace(answer.machine, name=name))
    if draw(st.booleans()):
        answer = replace(answer, machine=replace(answer.machine, gpus=()))
    return replace(answer, plan=None) if draw(st.booleans()) else answer


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data):
        self.words.append(data)


def shown(html: str) -> str:
    parser = Words()
    parser.feed(html.split("<main>")[1].split("</main>", maxsplit=1)[0])
    return re.sub(r"\s+", " ", " ".join(parser.words))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(partial_answers(), st.sampled_from([20, 60, 80, 120, 300]))
def test_every_renderer_takes_every_answer(answer, width):
    html = page.render(answer)
    assert "None" not in shown(html).replace(answer.model.title, "").replace(answer.machine.name, "")
    assert "Undefined" not in html
    json.loads(html.split('id="data">')[1].split("</script>")[0])
    console = Console(file=io.StringIO(), width=width)
    text.render_answer(answer, console, explain=True)
    text.render_recommendations([answer], console)
    assert "None" not in console.file.getvalue().replace(answer.model.title, "")
    assert markdown.render(answer).endswith("\n")
    assert card.render_svg(answer).endswith("</svg>")
    assert "<table>" in lists.render_comparison([answer, answer])


@settings(max_examples=25, deadline=None)
@given(partial_answers())
def test_what_is_absent_has_no_section(answer):
    words = shown(page.render(answer))
    for field, heading in (
        ("quants", "Quantization options"),
        ("workloads", "Performance by workload"),
        ("commands", "Get started"),
        ("modes", "Operating mode"),
        ("improvements", "Best ways to improve it"),
        ("serving", "Serving several at once"),
    ):
        if not getattr(answer, field):
            assert heading not in words
