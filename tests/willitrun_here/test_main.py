from __future__ import annotations

import gc
import io
import sys

import click
import pytest

from willitrun_here import __main__
from willitrun_here.cli import group
from willitrun_here.errors import AgentError, DoesNotRunError, LaunchError, UnreadableError, UsageError, known_errors


def raising(error):
    def main(*_: object, **__: object) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("both", "drop one"), 2, "willitrun-here: both\n  drop one\n"),
        (DoesNotRunError("too large"), 1, "willitrun-here: too large\n"),
        (LaunchError("stopped"), 1, "stopped"),
        (UnreadableError("no file"), 4, "no file"),
        (AgentError("x"), 4, "x"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 4, "/a/b: No such file or directory"),
        (OSError("odd"), 4, "odd"),
        (click.Abort(), 130, "stopped"),
        (click.UsageError("what"), 2, "what"),
        (click.exceptions.Exit(3), 3, ""),
    ],
)
def test_errors_become_a_message_and_a_code(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(group.cli, "main", raising(error))
    assert __main__.main(["check"]) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert not shown.out


def test_a_defect_is_not_hidden(monkeypatch):
    monkeypatch.setattr(group.cli, "main", raising(ZeroDivisionError("x")))
    with pytest.raises(ZeroDivisionError):
        __main__.main(["check"])


@pytest.mark.parametrize("result", [0, 1, None])
def test_a_command_s_result_is_the_exit_code(monkeypatch, result):
    monkeypatch.setattr(group.cli, "main", lambda *_, **__: result)
    assert __main__.main(["check"]) == (result or 0)


@pytest.fixture
def collector():
    """Leave the garbage collector as it was: the program of a whole process changes it."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_arguments_default_to_those_of_the_process(monkeypatch, capsys, collector):
    monkeypatch.setattr(sys, "argv", ["willitrun-here", "--version"])
    assert __main__.main() == 0
    assert capsys.readouterr().out.startswith("willitrun-here ")
    assert gc.get_freeze_count() > 0  # nothing is left to collect while the interpreter ends


def test_a_call_within_a_process_leaves_its_collector_alone(capsys):
    before = gc.get_threshold(), gc.get_freeze_count()
    assert __main__.main(["--version"]) == 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    assert capsys.readouterr().out


def test_what_the_terminal_lacks_is_replaced(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    __main__.never_fail_to_print()
    stream.write("·")
    stream.flush()
    assert stream.buffer.getvalue() == b"?"


def test_every_known_error_has_an_advice_and_a_code():
    assert all(issubclass(kind, Exception) for kind in known_errors())
    assert {kind.exit_code for kind in AgentError.__subclasses__()} == {1, 2, 4}
