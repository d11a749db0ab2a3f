"""The fit page in a real Chromium: what it shows, what its controls do, and who can use it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from willitrun_estimator.request import Request
from willitrun_here.ask import ask, open_model
from willitrun_here.machines import open_machine
from willitrun_here.render import card, lists, machine_page, page, site
from willitrun_probe.machine import Cpu, Gpu, Machine, Memory

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ANSWERS = Path(__file__).parents[1] / "willitrun_here" / "render" / "answers.py"
SEEDS = {"real-a100": "NVIDIA A100 40GB, 128 GiB RAM", "real-mi100": "AMD Instinct MI100 32GB, 64 GiB RAM"}
BY_HAND = ("a100", "mi100", "too_large", "two_gpus", "hostile")
PAGES = (*BY_HAND, *SEEDS, "machine", "models", "machines", "card")


def load_answers():
    if "render_answers" not in sys.modules:
        spec = importlib.util.spec_from_file_location("render_answers", ANSWERS)
        module = importlib.util.module_from_spec(spec)
        sys.modules["render_answers"] = module
        spec.loader.exec_module(module)
    return sys.modules["render_answers"]


def sample_machine() -> Machine:
    gpus = tuple(
        Gpu(
            vendor="nvidia", name="NVIDIA A100", uuid=f"GPU-{i}", memory_total_bytes=40 << 30, memory_free_bytes=i << 34
        )
        for i in (1, 2)
    )
    memory = Memory(total_bytes=128 << 30, available_bytes=100 << 30)
    return Machine(
        name="<script>alert(1)</script>",
        observed_at="2026-11-22T00:00:00Z",
        gpus=gpus,
        cpu=Cpu(name="EPYC"),
        memory=memory,
    )


@pytest.fixture(scope="module")
def answers():
    return load_answers()


@pytest.fixture(scope="module")
def folder(answers, tmp_path_factory):
    """Return a folder with every kind of page."""
    place = tmp_path_factory.mktemp("pages")
    several = [answers.a100(), answers.mi100(), answers.too_large()]
    texts = {name: page.render(getattr(answers, name)()) for name in BY_HAND}
    for name, words in SEEDS.items():
        texts[name] = page.render(ask(open_machine(words), open_model("kimi-linear"), Request()))
    texts["machine"] = machine_page.render(sample_machine())
    texts["models"] = lists.render_recommendations(several)
    texts["machines"] = lists.render_comparison(several)
    texts["card"] = card.render_html(answers.a100())
    for name, text in texts.items():
        (place / f"{name}.html").write_text(text, encoding="utf-8")
    site.write(place / "site", several)
    return place


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright", exc_type=ImportError)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, folder):
    """Open a page by name in a fresh profile; whatever it complains about or tries to load fails the test."""
    contexts, complaints = [], []

    def opened(name: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
        )
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.on(
            "request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None
        )
        tab.goto((folder / f"{name}.html").as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("name", ["a100", "mi100"])
def test_the_answer_is_the_first_thing_on_the_page(visit, answers, name):
    answer = getattr(answers, name)()
    tab = visit(name, viewport={"width": 1200, "height": 900})
    heading = tab.get_by_role("heading", level=1)
    assert heading.inner_text() == f"Can {answer.machine.gpus[0].name} run {answer.model.title}?"
    verdict = tab.locator(".verdict")
    assert verdict.inner_text().startswith("YES")
    assert verdict.bounding_box()["y"] < 400
    assert tab.locator(".grade b").inner_text() == answer.grade


@pytest.mark.parametrize("name", ["a100", "mi100"])
def test_choosing_a_quantization_shows_its_own_plan(visit, answers, name):
    answer = getattr(answers, name)()
    tab = visit(name)
    decode, note = tab.locator("[data-tile=decode]"), tab.locator("#quant-note")
    planned, bars_before = decode.inner_text(), tab.locator("#bars").inner_html()
    for option in answer.quants:
        if option.quant == answer.plan.quant:
            continue
        tab.get_by_role("radio", name=option.quant).check(force=True)
        assert decode.inner_text().split()[0] == f"{page.number(option.decode_tokens_per_s)}"
        assert note.inner_text().startswith(f"{option.quant}: ")
        assert f"--quant {option.quant}" in note.inner_text()
        drawn = tab.locator("#bars svg.bar").first
        widths = drawn.locator("rect").evaluate_all("rects => rects.map(r => parseFloat(r.getAttribute('width')))")
        assert sum(widths) == pytest.approx(100, abs=0.1)
    assert tab.locator("#bars").inner_html() != bars_before
    tab.get_by_role("radio", name=answer.plan.quant).check(force=True)
    assert decode.inner_text() == planned


@pytest.mark.parametrize("name", SEEDS)
def test_a_real_answer_works_in_every_control(visit, name):
    tab = visit(name)
    assert "Kimi Linear" in tab.get_by_role("heading", level=1).inner_text()
    data = json.loads(tab.locator("#data").text_content())
    assert len(data["options"]) >= 8
    assert len(data["modes"]) == 4
    for index, option in enumerate(data["options"]):
        tab.locator(f"input[name=quant][value='{index}']").check(force=True)
        shown = {key: (value, sub) for key, value, sub in option["tiles"]}
        assert tab.locator("[data-tile=decode]").inner_text() == shown["decode"][0]
        assert tab.locator("#bars svg.bar").count() == len(option["bars"])
    for mode in data["modes"]:
        tab.locator(f"input[name=mode][value='{mode['key']}']").check(force=True)
        assert mode["plan"] in tab.locator("#mode-panel").inner_text()
    assert tab.locator("svg.plot").count() >= 2


def test_choosing_a_mode_changes_the_lens(visit, answers):
    tab = visit("a100")
    for row in answers.a100().modes[::-1]:
        word = page.MODE_WORDS[row.mode][0]
        tab.get_by_role("radio", name=word).check(force=True)
        panel = tab.locator("#mode-panel").inner_text()
        assert panel.startswith(word)
        assert row.quant in panel
        if row.concurrency > 1:
            assert f"together at {row.concurrency} requests" in panel


def test_the_keyboard_reaches_and_moves_the_pickers(visit, answers):
    tab = visit("a100")
    tab.get_by_role("radio", name="Q5_K_M").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#quant-note").inner_text().startswith("Q6_K: ")
    outline = tab.evaluate(
        "getComputedStyle(document.querySelector('input[name=quant]:checked').nextElementSibling).outlineStyle"
    )
    assert outline == "solid"


@pytest.mark.parametrize(("pace", "wait_s", "per_s"), [("Expected", 1.4, 74.1), ("High end", 1.0, 96.33)])
def test_the_feel_demo_keeps_time(visit, pace, wait_s, per_s):
    tab = visit("a100")
    tab.get_by_role("radio", name=pace).check(force=True)
    tab.get_by_role("button", name="Second prompt, warm").click()
    tab.wait_for_selector("#screen[data-done]", timeout=15000)
    played = json.loads(tab.locator("#screen").get_attribute("data-done"))
    assert played["first"] == pytest.approx(wait_s, abs=0.1)
    rate = (played["tokens"] - 1) / (played["total"] - played["first"])
    assert rate == pytest.approx(per_s, rel=0.05)
    assert "It now takes any iterable" in tab.locator("#screen").inner_text()
    assert f"after {played['first']:.2f} s" in tab.locator("#timing").inner_text()


def test_the_wait_of_a_cold_start_can_be_skipped(visit):
    tab = visit("a100")
    tab.get_by_role("button", name="First prompt, cold").click()
    tab.wait_for_function("document.querySelector('#timing').textContent.startsWith('waiting')")
    tab.get_by_role("button", name="Skip the wait").click()
    tab.wait_for_selector("#screen[data-done]", timeout=15000)
    assert json.loads(tab.locator("#screen").get_attribute("data-done"))["first"] < 5


def test_a_command_is_copied_exactly(visit, answers):
    tab = visit("a100", permissions=["clipboard-read", "clipboard-write"])
    for label, text in (
        ("Copy the llama.cpp command", answers.a100().commands["llama.cpp"].shell),
        ("Copy Modelfile for Ollama", answers.a100().commands["ollama"].files["Modelfile"].rstrip("\n")),
    ):
        button = tab.get_by_role("button", name=label)
        button.click()
        tab.wait_for_function("(node) => node.textContent === 'Copied'", arg=button.element_handle())
        assert tab.evaluate("navigator.clipboard.readText()").rstrip("\n") == text
    tab.get_by_role("button", name="Copy the card").click()
    tab.wait_for_timeout(100)
    assert tab.evaluate("navigator.clipboard.readText()") == card.render_svg(answers.a100())


def test_dark_follows_the_system_and_the_button(visit):
    tab = visit("a100", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    tab.get_by_role("button", name="Light").click()
    light = tab.evaluate(background)
    assert sum(map(int, dark[4:-1].split(","))) < 100
    assert sum(map(int, light[4:-1].split(","))) > 700
    tab.get_by_role("button", name="Dark").click()
    assert tab.evaluate(background) == dark


@pytest.mark.parametrize("name", PAGES[:-1])
def test_nothing_hangs_over_the_edge(visit, name):
    tab = visit(name)
    for width in (360, 768, 1280):
        tab.set_viewport_size({"width": width, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("name", [name for name in PAGES if name not in {"two_gpus", "mi100"}])
def test_accessibility_has_no_serious_finding(visit, name):
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-core is missing: pip install axe-playwright-python")
    rules = Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
    tab = visit(name, viewport={"width": 1200, "height": 900})
    tab.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    tab.evaluate(rules)
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        result = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            (rule["id"], node["target"], node.get("failureSummary", ""))
            for rule in result["violations"]
            for node in rule["nodes"]
            if rule["impact"] in {"serious", "critical"}
        ]
        assert serious == [], scheme
        assert len(result["passes"]) > 3


def test_hostile_names_are_shown_as_text(visit, answers):
    tab = visit("hostile")
    assert answers.HOSTILE in tab.get_by_role("heading", level=1).inner_text()
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2
    tab.get_by_role("radio", name="Q2_K").check(force=True)
    assert answers.HOSTILE in tab.locator("#bars").inner_text()
    assert tab.locator("img").count() == 0


def test_without_its_script_the_page_says_everything(visit, answers):
    tab = visit("mi100", java_script_enabled=False)
    text = tab.locator("main").text_content()
    for words in ("It now takes any iterable", "Q8_0", "Scale-out", answers.mi100().commands["docker"].shell):
        assert words in text
    assert tab.locator("button:visible, input:visible").count() == 0


def test_a_print_has_no_controls_and_fits_the_paper(visit):
    tab = visit("a100")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.locator("button:visible, input:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf(format="A4", print_background=True).startswith(b"%PDF")


def test_a_site_leads_from_the_index_to_an_answer_and_back(visit):
    tab = visit("site/index")
    tab.get_by_role("link", name="NVIDIA A100 40GB").click()
    tab.get_by_role("link", name="Kimi Linear").first.click()
    assert tab.get_by_role("heading", level=1).inner_text().startswith("Can NVIDIA A100 40GB run")
    tab.get_by_role("link", name="All hardware for").click()
    tab.get_by_role("link", name="MI100").click()
    tab.get_by_role("link", name="All machines and models").click()
    assert tab.get_by_role("heading", level=1).inner_text() == "What runs where"
