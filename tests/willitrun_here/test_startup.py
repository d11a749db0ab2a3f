"""Nothing is imported that a command does not need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = {
    "rich", "jinja2", "sqlalchemy", "starlette", "uvicorn", "alembic", "asyncio", "pynvml", "amdsmi", "psutil", "numpy",
    "huggingface_hub", "urllib3", "prometheus_client", "ray", "multiprocessing",
}  # fmt: skip
SCRIPT = """
import sys
from willitrun_here.__main__ import main
code = main(sys.argv[1:])
sys.stderr.write("LOADED " + " ".join(sorted(sys.modules)))
sys.exit(code)
"""


def loaded(*arguments: str) -> set[str]:
    # A measured child would import the coverage tool and what that needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)], ids=" ".join)
def test_version_and_help_import_no_dependency_at_all(arguments: tuple[str, ...]) -> None:
    found = loaded(*arguments)
    assert not found & (HEAVY | {"click", "msgspec", "platformdirs", "willitrun_probe", "willitrun_catalog"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("probe", "--json"),
        ("check", "llama-3.1-8b", "--machine", "RTX 3090, 64 GiB RAM", "--json"),
        ("gpus", "show", "RTX 3090", "--json"),
        ("recommend", "--machine", "64 GiB RAM, 8 cores", "--limit", "1", "--json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_answers_need_no_terminal_server_or_vendor_library(arguments: tuple[str, ...]) -> None:
    assert not loaded(*arguments) & HEAVY
