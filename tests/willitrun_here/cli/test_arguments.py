"""Command lines read without click mean what click reads, or are left to it."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from willitrun_here.__main__ import main
from willitrun_here.cli import COMMANDS, PLAIN, probe
from willitrun_here.cli.arguments import Option, read_plainly
from willitrun_here.cli.options import command

PARAMETERS = {name: importlib.import_module(COMMANDS[name][0]).PARAMETERS for name in sorted(PLAIN)}
FLAGS = sorted({one.flag for parameters in PARAMETERS.values() for one in parameters if isinstance(one, Option)})
WORDS = st.sampled_from(
    ["llama-3.1-8b", "auto", "all", "8k", "0", "1", "7", " 5", "1_0", "²", "12", "-1", "nan", "1e3", "inf", "on",
     "json", "html", "64GiB", "1e400", "", "-", "--", "--help", "-h", "--jso", "RTX 3090, 64 GiB RAM",
     "q8_0", "balanced", "9" * 20, "9" * 5000, "=", "x=y"]
)  # fmt: skip
LINE = st.lists(
    st.one_of(
        st.sampled_from(FLAGS),
        WORDS,
        st.tuples(st.sampled_from(FLAGS), WORDS).map("=".join),
        st.text(max_size=4),
    ),
    max_size=6,
)


@given(st.sampled_from(sorted(PARAMETERS)), LINE)
@settings(max_examples=1500, deadline=None)
def test_click_reads_the_same(name, words):
    values = read_plainly(PARAMETERS[name], words)
    if values is None:
        return
    made = command(name, lambda **_: 0, PARAMETERS[name])
    read = made.make_context(name, list(words)).params
    assert {key: repr(value) for key, value in read.items()} == {key: repr(value) for key, value in values.items()}


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("probe", ["--json"], {"as_json": True, "form": "text", "timeout_s": 20.0}),
        ("probe", ["--timeout", "3", "--format=json"], {"timeout_s": 3.0, "form": "json"}),
        ("recommend", [], {"limit": 10, "machine": "here", "everything": False, "context": None}),
        ("recommend", ["--limit", "5", "--all", "--context=32k"], {"limit": 5, "everything": True, "context": 32768}),
        ("check", ["m", "--gpu-layers", "all", "--margin", "1GiB"], {"gpu_layers": "all", "margin_bytes": 1 << 30}),
        ("check", ["--ubatch", "64", "m", "--min-decode", "2.5"], {"ubatch": 64, "min_decode": 2.5, "model": "m"}),
    ],
)
def test_lines_that_are_read_without_click(name, words, told):
    values = read_plainly(PARAMETERS[name], words)
    assert values is not None
    assert {key: values[key] for key in told} == told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("probe", ["--help"]),
        ("probe", ["--root", "/"]),
        ("probe", ["--save", "x"]),
        ("probe", ["--timeout", "nan"]),
        ("probe", ["--timeout", "0"]),
        ("probe", ["--json=yes"]),
        ("probe", ["word"]),
        ("check", []),
        ("check", [""]),
        ("check", ["a", "b"]),
        ("check", ["a", "--context"]),
        ("check", ["a", "--context", "--json"]),
        ("check", ["a", "--context", "some"]),
        ("check", ["a", "--margin", "9" * 400]),
        ("check", ["a", "--margin", "99999999TiB"]),
        ("check", ["a", "--gpu-layers", "some"]),
        ("check", ["a", "--mode", "fast"]),
        ("check", ["a", "--ubatch", "0"]),
        ("check", ["a", "--", "--json"]),
    ],
)
def test_lines_that_are_left_to_click(name, words):
    assert read_plainly(PARAMETERS[name], words) is None


def test_a_plain_command_can_be_stopped(monkeypatch, capsys):
    def stopped(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "probe", stopped)
    assert main(["probe", "--json"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"
