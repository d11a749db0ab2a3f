from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from willitrun_here.render import card, page
from willitrun_here.render.environment import Link, json_text
from willitrun_here.render.faq import questions

VOID = {"meta", "link", "input", "br", "img", "rect", "line", "circle", "path", "polygon", "polyline", "hr"}
NAMES = ["a100", "mi100", "too_large", "two_gpus", "vllm", "hostile"]


class Reader(HTMLParser):
    """Collects tags, texts and ids, and insists that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def inside(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_well_formed_small_and_quick(answers, name):
    answer = getattr(answers, name)()
    page.render(answer)
    start = time.perf_counter()
    html = page.render(answer)
    assert time.perf_counter() - start < 0.15
    assert len(html.encode()) <= 200_000
    reader = read(html)
    ids = [attributes["id"] for _, attributes in reader.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for attributes in reader.inside("section")]
    assert set(named) <= set(ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_nothing_and_runs_only_its_own_script(answers, name):
    html = page.render(getattr(answers, name)())
    reader = read(html)
    for tag, attributes in reader.tags:
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        assert not {"src", "srcset", "style", "background"} & set(attributes), (tag, attributes)
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "audio", "video"}
    policy = next(row["content"] for row in reader.inside("meta") if row.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for kind, opening in (("style", "<style>"), ("script", "<script>")):
        text = html.split(opening)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"url\(|@import", html.split("<style>")[1].split("</style>")[0])


def test_hostile_names_are_text_everywhere(answers):
    answer = answers.hostile()
    reader = read(page.render(answer))
    assert "<img src=x onerror=alert(1)>" in "".join(reader.text)
    assert len(reader.inside("script")) == 2
    picture = read(card.render_svg(answer))
    assert {tag for tag, _ in picture.tags} == {"svg", "rect", "text"}
    assert {tag for tag, _ in read(card.render_html(answer)).tags} <= {
        "html", "head", "meta", "title", "body", "svg", "rect", "text",
    }  # fmt: skip


def test_embedded_json_cannot_end_its_element():
    text = str(json_text({"a": "</script><!--\u2028&"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


@pytest.mark.parametrize("name", ["a100", "mi100"])
def test_a_page_shows_everything_the_answer_has(answers, name):
    answer = getattr(answers, name)()
    text = re.sub(r"\s+", " ", "".join(read(page.render(answer)).text).replace("\u2060", ""))
    assert f"Can {answer.machine.gpus[0].name} run {answer.model.title}?" in text
    assert "YES" in text
    for option in answer.quants:
        assert option.quant in text
        assert option.quality.basis in text
    for row in (*answer.limits, *answer.improvements):
        assert row.message in text
    for command in answer.commands.values():
        assert command.shell in text
        assert all(note in text for note in command.notes)
    for tag in ("runtime", "capacity", "bandwidth", "stack", "bottleneck"):
        assert getattr(answer.tags, tag).reason in text
    for question, reply in questions(answer):
        assert question in text
        assert reply in text
    for part in answer.score_parts:
        assert part.reason in text
    for word in ("Balanced", "Interactive", "Light API", "Scale-out", "Chat", "Agentic coding", "Reasoning", "RAG"):
        assert word in text
    assert all(finding in text for finding in answer.findings)
    assert answer.runner_up.reason in text
    assert answer.speed.measured[0].source in text


def test_the_embedded_data_is_what_the_controls_need(answers):
    answer = answers.mi100()
    html = page.render(answer)
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert [row["quant"] for row in data["options"]] == [option.quant for option in answer.quants]
    assert [row["key"] for row in data["modes"]] == ["balanced", "interactive", "light-api", "scale-out"]
    assert data["decode"]["low"] < data["decode"]["expected"] < data["decode"]["high"]
    cold, warm = data["turns"]
    assert cold["wait"]["high"] < cold["wait"]["expected"] < cold["wait"]["low"]
    assert warm["wait"]["expected"] == pytest.approx(answer.speed.ttft_s.expected)
    keys = [key for key, _, _ in data["options"][0]["tiles"]]
    assert all([key for key, _, _ in row["tiles"]] == keys or row["planned"] for row in data["options"])
    planned = next(row for row in data["options"] if row["planned"])
    assert {key for key, _, _ in planned["tiles"]} <= set(keys)


def test_the_plan_is_picked_by_quantization_and_engine(answers):
    html = page.render(answers.vllm())
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert [(row["quant"], row["planned"]) for row in data["options"]] == [("FP8", True), ("FP8", False)]


def test_an_answer_without_extras_still_makes_a_page(answers):
    answer = answers.a100()
    bare = replace(
        answer, speed=None, tags=None, serving=None, quants=(), workloads=(), limits=(), improvements=(), curve=(),
        modes=(), commands={}, runner_up=None, score_parts=(), findings=(), request=None,
    )  # fmt: skip
    text = "".join(read(page.render(bare)).text)
    assert "No red flags" in text
    assert "How fast it feels" not in text
    no_plan = replace(bare, plan=None, fit=replace(answer.fit, status="too-large", headroom_bytes=-1))
    assert "NO" in "".join(read(page.render(no_plan)).text)
    no_gpu = replace(
        bare, machine=replace(answer.machine, gpus=()), plan=replace(answer.plan, devices=answer.plan.devices[1:])
    )
    assert answer.machine.cpu in "".join(read(page.render(no_gpu)).text)


def test_links_lead_to_the_pages_given(answers):
    html = page.render(answers.a100(), links=(Link(href="on-a100.html", text="All <results>"),))
    assert '<a href="on-a100.html">All &lt;results&gt;</a>' in html
