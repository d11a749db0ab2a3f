"""Nothing is imported that a command does not need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from willitrun_here.cli import COMMANDS

HEAVY = {
    "rich", "jinja2", "sqlalchemy", "starlette", "uvicorn", "alembic", "asyncio", "pynvml", "amdsmi", "psutil", "numpy",
    "huggingface_hub", "urllib3", "urllib.request", "http.client", "ssl", "prometheus_client", "ray", "multiprocessing",
    "concurrent.futures", "opentelemetry", "platformdirs", "importlib.resources", "dataclasses", "statistics",
    "shutil", "subprocess", "tempfile", "unittest", "email", "tomllib", "pkg_resources", "importlib.metadata",
}  # fmt: skip
"""Libraries for one purpose each, and parts of the standard library that take milliseconds to import."""
FIRST = {"click", "msgspec", "platformdirs", "pathlib", "re", "willitrun_probe", "willitrun_catalog"}
SCRIPT = """
import sys
from willitrun_here.__main__ import main
code = main(sys.argv[1:])
sys.stderr.write("LOADED " + " ".join(sorted(sys.modules)))
sys.exit(code)
"""
GPU = ("--machine", "RTX 3090, 64 GiB RAM")
HOST = ("--machine", "64 GiB RAM, 8 cores")
CASES: dict[tuple[str, ...], set[str]] = {
    ("probe", "--json"): set(),
    ("doctor", "--json"): set(),
    ("check", "llama-3.1-8b", *GPU, "--json"): {"shutil", "subprocess"},  # an installed vLLM is looked for
    ("check", "llama-3.1-8b", *HOST, "--json"): set(),
    ("recommend", *HOST, "--limit", "1", "--json"): set(),
    ("compare", "llama-3.1-8b", *GPU, "--machine", "RTX 3060, 32 GiB RAM", "--json"): set(),
    ("gpus", "show", "RTX 3090", "--json"): set(),
    ("gpus", "list", "--json"): set(),
    ("models", "show", "llama-3.1-8b", "--json"): set(),
    ("models", "list", "--json"): set(),
    ("batch", "--jobs", "1"): set(),
    ("calibrate", "--show", "--json"): {"shutil"},
    ("report", "--print"): set(),
    # What these make needs one library more: containers and units are looked for, pages are templates, an
    # inventory is a database, and a recording looks like a program.
    ("launch", "llama-3.1-8b", *GPU, "--json"): {"shutil", "subprocess"},
    ("feel", "llama-3.1-8b", *GPU, "--json"): set(),
    ("record", "DIR/recording"): set(),
    ("site", "DIR/site", "--model", "llama-3.1-8b", *GPU, "--json"): {"jinja2", "shutil", "subprocess", "tempfile"},
    ("fleet", "token", "--db", "DIR/fleet.db"): {"sqlalchemy", "alembic"},
}
WITH_DATABASE = {"fleet"}
"""A database library brings along what it likes; what stays forbidden is the rest of ours."""


def loaded(*arguments: str, folder: object) -> set[str]:
    # A measured child would import the coverage tool and what that needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "WILLITRUN", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(text.replace("DIR", str(folder)) for text in arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**env, "HOME": str(folder)},
        input='{"model": "llama-3.1-8b", "machine": "RTX 3090, 64 GiB RAM", "sections": ["plan", "speed"]}\n',
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("-h",)], ids=" ".join)
def test_version_and_help_import_no_dependency_at_all(arguments, tmp_path):
    # `re` and `pathlib` come with the interpreter where its site packages have path files of their own.
    own = loaded(*arguments, folder=tmp_path) - loaded_by_the_interpreter()
    assert not own & (HEAVY | FIRST)


def loaded_by_the_interpreter() -> set[str]:
    code = "import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_command_has_a_case():
    assert {arguments[0] for arguments in CASES} == set(COMMANDS)


@pytest.mark.parametrize("arguments", [case for case in CASES if case[0] not in WITH_DATABASE], ids=" ".join)
def test_answers_in_json_need_no_terminal_server_or_vendor_library(arguments, tmp_path):
    found = loaded(*arguments, folder=tmp_path) - loaded_by_the_interpreter()
    assert sorted((found & HEAVY) - CASES[arguments]) == []


@pytest.mark.parametrize("arguments", [case for case in CASES if case[0] in WITH_DATABASE], ids=" ".join)
def test_a_token_needs_no_server_nor_terminal(arguments, tmp_path):
    found = loaded(*arguments, folder=tmp_path)
    assert CASES[arguments] <= found
    assert not found & {"starlette", "uvicorn", "jinja2", "prometheus_client", "pynvml", "numpy", "ray", "psutil"}


@pytest.mark.parametrize(
    "arguments", [("probe", "--json"), ("recommend", *HOST, "--json"), ("check", "llama-3.1-8b", *HOST, "--json")]
)
def test_plain_lines_need_no_click(arguments, tmp_path):
    assert "click" not in loaded(*arguments, folder=tmp_path)


def test_a_probe_needs_neither_the_estimator_nor_the_catalog(tmp_path):
    found = loaded("probe", "--json", folder=tmp_path)
    assert not any(name.startswith(("willitrun_estimator", "willitrun_catalog")) for name in found)
