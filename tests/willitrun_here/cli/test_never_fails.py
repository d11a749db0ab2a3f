"""Any argument values: an exit code and a message, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.willitrun_here.cli.command import typed
from willitrun_here.cli.question import QUESTION

WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12) | st.sampled_from(
    [
        "auto",
        "all",
        "0",
        "1",
        "-1",
        "nan",
        "inf",
        "1e400",
        "8k",
        "9" * 25,
        "Q4_K_M",
        "cuda",
        "vllm",
        "q8_0",
        "1.5",
        "64GiB",
    ]
)
NAMES = [option.flag for option in QUESTION]
SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.lists(st.tuples(st.sampled_from(NAMES), WORDS), max_size=4), st.booleans())
@SOME
def test_any_option_values(capfdbinary, options, as_json):
    line = ["check", "llama-3.2-1b", "--machine", "RTX 3060 12GB, 16 GiB RAM", *(["--json"] if as_json else [])]
    line += [word for name, value in options for word in (name, value)]
    done = typed(capfdbinary, line)
    assert done.code in {0, 1, 2, 4}
    assert done.out or done.err


@given(st.text(max_size=40) | st.lists(st.sampled_from(
    ["2x", "RTX 3090", "64 GiB RAM", "0 cores", "16 cores", ",", "+", "(3 GiB free)", "1.2.3 GiB RAM", "9" * 30,
     "RAM: 8G", "x", "MI300X", "no GPU", "900 GB/s", "\0"]), max_size=6).map(" ".join))  # fmt: skip
@SOME
def test_any_machine(capfdbinary, words):
    done = typed(capfdbinary, ["check", "llama-3.2-1b", "--quant", "Q4_K_M", "--json", f"--machine={words}x"])
    assert done.code in {0, 1, 2, 4}


@given(st.text(max_size=40))
@SOME
def test_any_model(capfdbinary, words):
    done = typed(capfdbinary, ["check", "--machine", "RTX 3060 12GB", "--quant", "Q4_K_M", "--json", "--", "@" + words])
    assert done.code in {0, 1, 2, 4}
    assert done.out or done.err


def test_words_longer_than_a_file_name(capfdbinary):
    assert typed(capfdbinary, ["check", "llama-3.2-1b", "--machine", "x" * 300]).code == 4
    assert typed(capfdbinary, ["check", "llama-3.2-1b", "--machine", "x" * 5000]).code == 2


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "willitrun_here", *arguments],
        env={**os.environ, **environment}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", ["check llama-3.2-1b --machine RTX3090", "--help", "--version", "gpus list --json"]
)
def test_a_closed_pipe_ends_it_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "willitrun_here", *arguments.split()],
        stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 0


@pytest.mark.parametrize("home", ["/nonexistent/home", "/proc", ""])
def test_a_home_that_cannot_be_written(home, tmp_path):
    line = ["check", "llama-3.2-1b", "--machine", "RTX3090", "--quant", "Q4_K_M", "--json"]
    done = process(*line, HOME=home, XDG_CACHE_HOME="", XDG_DATA_HOME="", XDG_CONFIG_HOME="")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_no_home_at_all():
    line = [sys.executable, "-m", "willitrun_here", "launch", "llama-3.2-1b", "--machine", "RTX3090"]
    done = subprocess.run(line, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_terminal_without_unicode():
    done = process("check", "llama-3.2-1b", "--machine", "RTX3090", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
