"""Answers to render, and golden files of what is printed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


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


@pytest.fixture
def golden(golden):
    """Compare text with a file of tests/golden/render; trailing blanks do not count."""

    def check(name: str, text: str) -> None:
        golden(f"render/{name}", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")

    return check
