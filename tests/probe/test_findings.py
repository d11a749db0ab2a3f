"""The codes are stable, documented and all in use."""

from __future__ import annotations

import re
from pathlib import Path

import willitrun_probe
from willitrun_probe.findings import CODES, page

ROOT = Path(__file__).parents[2]
SOURCES = {path: path.read_text() for path in Path(willitrun_probe.__file__).parent.rglob("*.py")}


def test_the_page_is_written_from_the_table():
    assert (ROOT / "docs" / "findings.md").read_text() == page(), (
        "run: python -m willitrun_probe.findings > docs/findings.md"
    )


def test_every_code_in_the_source_is_in_the_table():
    used = {code for text in SOURCES.values() for code in re.findall(r"finding\(\s*\"([a-z-]+)\"", text)}
    assert used <= set(CODES)


def test_every_code_of_the_table_is_used():
    text = "".join(text for path, text in SOURCES.items() if path.name != "findings.py")
    assert {code for code in CODES if f'"{code}"' not in text} == set()


def test_codes_are_kebab_case_and_meanings_are_sentences():
    for code, entry in CODES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert entry.meaning.endswith(".")
        assert not entry.broken or entry.advice
