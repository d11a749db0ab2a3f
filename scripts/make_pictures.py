"""Make the pictures of the README: the terminal and the card as SVG, the page as PNG.

    python scripts/make_pictures.py [FOLDER]

The page is taken by a Chromium on PATH through Playwright (`apt-get install chromium`, `pip install playwright`).
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from willitrun_estimator.request import Request
from willitrun_here.ask import ask, open_model
from willitrun_here.machines import open_machine
from willitrun_here.rank import rank
from willitrun_here.render import card, page, text

MACHINE = "NVIDIA A100 40GB, 128 GiB RAM"
MODEL = "kimi-linear"
SHOTS = (
    ("page-light.png", 1200, 1420, "light"),
    ("page-dark.png", 1200, 1420, "dark"),
    ("page-phone.png", 390, 1420, "light"),
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def terminal_svg(title: str, show: Callable[[Console], object], *, width: int = 100, until: str = "") -> str:
    """Return what `show` prints as an SVG that loads no font from elsewhere."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    show(console)
    if until:
        kept = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        for line in Text.from_ansi(console.export_text(styles=True)).split():
            if line.plain.startswith(until):
                break
            kept.print(line)
        console = kept
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "DejaVu Sans Mono")


def browser_shots(folder: Path, url: str) -> None:
    """Take the page in a real browser, light, dark and at phone width."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an extra only this needs

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium on PATH: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        for name, width, height, scheme in SHOTS:
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab.goto(url)
            tab.screenshot(path=folder / name)
        browser.close()


def main() -> None:
    """Write every picture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    machine = open_machine(MACHINE)
    answer = ask(machine, open_model(MODEL), Request())
    ranked = rank(machine, Request(), limit=10)
    check = f'willitrun-here check {MODEL} --machine "{MACHINE}"'
    written = {
        "check.svg": terminal_svg(check, lambda console: text.render_answer(answer, console), until="Workloads"),
        "recommend.svg": terminal_svg(
            "willitrun-here recommend", lambda console: text.render_recommendations(ranked, console)
        ),
        "card.svg": card.render_svg(answer),
    }
    for name, content in written.items():
        (folder / name).write_text(content, encoding="utf-8")
    whole = folder / "page.html"
    whole.write_text(page.render(answer), encoding="utf-8")
    try:
        browser_shots(folder, whole.resolve().as_uri())
    finally:
        whole.unlink()
    print("\n".join(f"{file.name} {file.stat().st_size / 1000:.0f} kB" for file in sorted(folder.iterdir())))


if __name__ == "__main__":
    main()
