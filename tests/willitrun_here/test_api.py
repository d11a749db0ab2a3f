"""The examples of the documents run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_api_page_run(number, capsys):
    exec(compile(EXAMPLES[number], f"docs/api.md, example {number + 1}", "exec"), {"__name__": "example"})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_api_page_has_examples():
    assert len(EXAMPLES) == 3
