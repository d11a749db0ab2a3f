from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from willitrun_here.fleet.agent import Setup, compose
from willitrun_here.fleet.auth import create_token
from willitrun_here.fleet.carry import import_reports
from willitrun_here.fleet.database import open_database
from willitrun_here.fleet.document import Fingerprint, encode
from willitrun_here.fleet.identity import Agent
from willitrun_probe.machine import Cpu, Gpu, Machine, Memory

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GIB = 1024**3
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def machine(name, gpus, free, model="NVIDIA GeForce RTX 3090", total=24):
    return Machine(
        name=name,
        observed_at=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        gpus=tuple(
            Gpu(vendor="nvidia", name=model, pci_address=f"0000:0{number}:00.0", index=number,
                memory_total_bytes=total * GIB, memory_free_bytes=free * GIB, compute_capability="8.6")
            for number in range(gpus)
        ),
        cpu=Cpu(name="CPU", physical_cores=8, usable_threads=8),
        memory=Memory(total_bytes=64 * GIB, available_bytes=60 * GIB),
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The real server as a program, with four machines; returns its address and a read token."""
    folder = tmp_path_factory.mktemp("fleet")
    database = f"sqlite:///{folder / 'fleet.db'}"
    engine = open_database(database)
    machines = [machine("alpha", 1, 22), machine("beta", 2, 3), machine("gamma", 0, 0), machine(HOSTILE, 1, 9)]
    bodies = []
    for number, one in enumerate(machines, start=1):
        setup = Setup(directory=Path("/nonexistent"), labels={"site": HOSTILE}, fingerprint=Fingerprint())
        agent = Agent(agent_id=uuid.UUID(int=number))
        bodies.append((one.name, encode(compose(one, setup, agent, sequence=1, with_facts=True))))
    assert import_reports(engine, bodies, clock=time.time).stored == 4
    token = create_token(engine, "read", now=time.time())
    engine.dispose()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "willitrun_here", "fleet", "serve", "--db", database, "--port", str(port)]
    serving = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield url, token
    serving.terminate()
    serving.wait(20)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, site):
    """A page that is logged in; it fails the test for any dialog, script error or blocked content."""
    url, token = site
    context = browser.new_context(base_url=url, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    trouble: list[str] = []
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if "Content Security" in message.text else None)
    page.goto("/login")
    page.get_by_label("Read token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/")
    yield page
    context.close()
    assert trouble == []


def names(page):
    return page.locator("tbody th").all_inner_texts()


def test_without_a_token_there_is_only_the_login(browser, site):
    page = browser.new_page()
    answer = page.goto(site[0] + "/")
    assert answer.status == 401
    assert page.get_by_label("Read token").is_visible()
    page.get_by_label("Read token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    assert page.locator("table").count() == 0
    page.close()


def test_the_table_is_filtered_and_sorted_and_the_view_is_a_link(page):
    assert sorted(names(page)) == sorted(["alpha", "beta", "gamma", HOSTILE])
    page.get_by_label("Free GPU memory").fill("6GiB")
    page.get_by_label("GPU", exact=True).fill("3090")
    page.get_by_role("button", name="Filter").click()
    assert sorted(names(page)) == sorted(["alpha", "beta", HOSTILE])
    page.get_by_role("link", name="GPU memory").click()
    assert names(page)[-1] == "beta"
    assert page.locator("th[aria-sort=ascending]").inner_text() == "GPU memory"
    page.get_by_role("link", name="GPU memory").click()
    assert names(page)[0] == "beta"
    assert "gpu=3090" in page.url
    assert "sort=-vram" in page.url
    again = page.context.new_page()
    again.goto(page.url)
    assert names(again) == names(page)
    assert again.get_by_label("Free GPU memory").input_value() == "6GiB"
    again.close()


def test_a_mistake_in_the_form_is_said_beside_it(page):
    page.get_by_label("Free GPU memory").fill("a lot")
    page.get_by_role("button", name="Filter").click()
    assert "is not a size" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Free GPU memory").input_value() == "a lot"


def test_the_model_question_is_answered_with_a_command_to_copy(page):
    page.get_by_role("link", name="Which runs a model?").click()
    page.get_by_label("Model").fill("llama-3.1-8b")
    page.get_by_label("Context").fill("8192")
    page.get_by_role("button", name="Ask").click()
    row = page.locator("tr", has=page.get_by_role("link", name="alpha"))
    assert "runs now" in row.inner_text()
    command = row.locator("pre").inner_text()
    assert command.startswith("llama-server")
    row.get_by_role("button", name="Copy").click()
    row.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_hostile_names_are_text_everywhere(page):
    for path in ("/", f"/machines/{uuid.UUID(int=4)}", "/ask?model=llama-3.1-8b", "/totals"):
        page.goto(path)
        assert page.locator("img").count() == 0
        assert page.title() != "owned"
        assert page.locator("script:not([src='/static/fleet.js'])").count() == 0
    page.goto("/")
    assert page.get_by_text(HOSTILE, exact=True).first.is_visible()


def test_everything_can_be_done_with_the_keyboard_alone(page):
    page.goto("/ask")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    for _ in range(12):
        if page.evaluate("document.activeElement.name") == "model":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("llama-3.1-8b")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ask?model=llama-3.1-8b*")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "copy":
            break
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").first.wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("llama-server")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_pages_are_complete_without_javascript(browser, site):
    url, token = site
    context = browser.new_context(base_url=url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/login")
    page.get_by_label("Read token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.goto("/ask?model=llama-3.1-8b")
    assert page.locator("pre.command").first.inner_text().startswith("llama-server")
    assert page.get_by_role("button", name="Copy").count() == 0
    page.goto("/")
    page.get_by_label("Name").fill("alpha")
    page.get_by_role("button", name="Filter").click()
    assert names(page) == ["alpha"]
    context.close()


def test_one_machine_shows_its_hardware_and_history(page):
    page.get_by_role("link", name="beta").click()
    assert page.get_by_role("heading", name="beta").is_visible()
    assert page.locator("tbody tr").count() == 2
    assert "Nothing was measured here yet." in page.inner_text("main")


def test_every_field_has_a_label_and_every_table_its_headers(page):
    for path in ("/", "/ask?model=llama-3.1-8b", f"/machines/{uuid.UUID(int=2)}", "/totals"):
        page.goto(path)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]),select,button')]"
            ".filter(e => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).length"
        )
        assert unnamed == 0, path
        assert page.evaluate("[...document.querySelectorAll('thead th')].filter(e => !e.scope).length") == 0
        assert page.evaluate("document.querySelectorAll('h1').length") == 1
        assert page.evaluate("document.documentElement.lang") == "en"
        assert (
            page.evaluate("[...document.querySelectorAll('svg')].filter(e => !e.getAttribute('aria-label')).length")
            == 0
        )
