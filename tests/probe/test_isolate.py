"""The child runner: lines come back whatever the child does, and it never outlives its deadline."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from willitrun_probe.isolate import ask

HEAD = 'sys nvmlDeviceGetCount_v2 = 3\ngpu0-2 nvmlDeviceGetName = "X"\n'


@pytest.fixture
def run(tmp_path):
    def call(text: str, timeout_s: float = 10.0):
        spec = tmp_path / "nvml.spec"
        spec.write_text(HEAD + text)
        start = time.monotonic()
        arguments = {"vendor": "nvidia", "library": str(spec), "root": "/"}
        reply = ask(arguments, timeout_s=timeout_s, environment=os.environ)
        return reply, time.monotonic() - start

    yield call
    assert not psutil.Process().children()


def devices(reply) -> list[int]:
    return [line["device"] for line in reply.lines if line["kind"] == "device"]


def test_complete_answers(run):
    reply, seconds = run("")
    assert (reply.ending, reply.reason, devices(reply)) == ("complete", "", [0, 1, 2])
    assert reply.lines[-1]["kind"] == "pairs"
    assert reply.seconds <= seconds + 0.001


def test_hang_costs_half_of_the_time_and_one_device(run):
    reply, seconds = run("gpu1 nvmlDeviceGetName = HANG\n", 2.0)
    assert devices(reply) == [0, 2]
    assert list(reply.lost) == [1]
    assert "no answer in time" in reply.lost[1]
    assert 0.9 < seconds < 2.5


def test_crash_is_named_and_costs_one_device(run):
    reply, _ = run("gpu0 nvmlDeviceGetName = SEGV\ngpu2 nvmlDeviceGetName = EXIT\n")
    assert devices(reply) == [1]
    assert reply.lost == {0: "crashed with SIGSEGV", 2: "ended the process with status 77"}
    assert reply.ending == "complete"


def test_deadline_holds_when_nothing_answers(run):
    reply, seconds = run("sys nvmlInitWithFlags = HANG\n", 0.4)
    assert (reply.lines, reply.ending) == ([], "timeout")
    assert 0.4 <= seconds < 1.4


def test_every_device_hangs(run):
    reply, seconds = run("gpu0-2 nvmlDeviceGetName = HANG\n", 1.2)
    assert devices(reply) == []
    assert seconds < 2.0
    assert reply.ending == "timeout"


def test_interpreter_that_cannot_start(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    reply = ask({"vendor": "nvidia", "library": None, "root": "/"}, timeout_s=5, environment=dict(os.environ))
    assert reply.ending in {"unstartable", "exited"}
    assert reply.lines == []


def test_child_sees_only_the_given_environment(tmp_path):
    library = tmp_path / "not-a-library.so"
    library.write_text("no ELF")
    reply = ask({"vendor": "nvidia", "library": str(library), "root": "/"}, timeout_s=10, environment={})
    assert reply.lines[0]["start"] == 12
    assert "not-a-library.so" in reply.lines[0]["load_error"]


def test_descriptors_do_not_leak(run):
    before = len(list(Path("/proc/self/fd").iterdir()))
    run("")
    run("gpu1 nvmlDeviceGetName = SEGV\n")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
