"""Answers to render, and golden files that `WILLITRUN_UPDATE_GOLDEN=1` rewrites."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "golden" / "render"


def load_answers() -> ModuleType:
    if "render_answers" not in sys.modules:
        spec = importlib.util.spec_from_file_location("render_answers", HERE / "answers.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["render_answers"] = module
        spec.loader.exec_module(module)
    return sys.modules["render_answers"]


@pytest.fixture(scope="session")
def answers() -> ModuleType:
    return load_answers()


@pytest.fixture(scope="session")
def golden():
    """Compare text with a file of tests/golden/render; trailing blanks do not count."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        if os.environ.get("WILLITRUN_UPDATE_GOLDEN") == "1":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: set WILLITRUN_UPDATE_GOLDEN=1 once and look at what it writes"
        assert text == path.read_text(encoding="utf-8")

    return check
