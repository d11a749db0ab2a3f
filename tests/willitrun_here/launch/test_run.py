"""`launch --exec` against a small fake engine: what is said, what is compared, and that nothing stays running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from tests.willitrun_here.launch.targets import on_words
from willitrun_estimator.request import Request
from willitrun_here.ask import ask
from willitrun_here.calibrate.busy import Processor
from willitrun_here.calibrate.store import read
from willitrun_here.errors import LaunchError, UsageError
from willitrun_here.fleet import agent
from willitrun_here.fleet.document import MeasuredRun
from willitrun_here.fleet.spool import Spool
from willitrun_here.launch import numa, process, run, visible
from willitrun_here.launch.flags import parse_help
from willitrun_here.machines import open_machine

HERE = Path(__file__).parent
FLAGS = parse_help((HERE / "help_new.txt").read_text())
ASKED = Request(quant="Q4_K_M", context=8192)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def program(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "llama-server"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_engine.py"} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("FAKE_STARTED", str(tmp_path / "started"))
    return path


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where this user keeps things."""
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "agent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def started(tmp_path):
    def read() -> list[tuple[int, list[str]]]:
        path = tmp_path / "started"
        rows = path.read_text().splitlines() if path.exists() else []
        return [(int(row.split(" ", 1)[0]), json.loads(row.split(" ", 1)[1])) for row in rows]

    yield read
    for pid, _ in read():
        assert not running(pid), f"the engine {pid} is left running"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def target_and_answer(program, **fields):
    target = structs.replace(on_words(), program=str(program), flags=FLAGS, port=free_port(), **fields)
    return target, ask(target.machine, target.spec, ASKED, sections=frozenset({"plan", "speed"}), commands=False)


def begin(program, monkeypatch, mode, said=None, replan=run.replan_here):
    monkeypatch.setenv("FAKE_ENGINE", mode)
    target, result = target_and_answer(program)
    return run.start(target, result, ASKED, replan=replan, say=(said if said is not None else []).append)


def test_plan_and_reality_are_compared(program, monkeypatch, started):
    said: list[str] = []
    server, comparison, target = begin(program, monkeypatch, "", said)
    with server:
        assert comparison.probe is not None
        assert comparison.probe.decode_tokens_per_s == 61.5
        assert comparison.probe.output_tokens == 48
        assert comparison.planned_decode_tokens_per_s is not None
        assert comparison.tries == 1
        kinds = {(row.device, row.kind): row.actual_bytes for row in comparison.buffers}
        assert kinds[target.plan.devices[0].name, "kv_cache"] == 1024 << 20
    assert any("loading the weights" in text for text in said)
    ((_, argv),) = started()
    assert argv[-2:] == ["-lv", "4"], "buffers are only named when asked"


def test_an_unknown_argument_is_told_in_the_engine_s_words(program, monkeypatch, started):
    with pytest.raises(LaunchError, match="unknown argument: --frobnicate") as caught:
        begin(program, monkeypatch, "unknown-argument")
    assert str(program) in caught.value.advice
    assert len(started()) == 1, "not a question of memory: no second plan"


def test_the_second_plan_works(program, monkeypatch, started):
    said: list[str] = []
    server, comparison, target = begin(program, monkeypatch, "no-memory-once", said)
    with server:
        assert comparison.tries == 2
        assert target.machine.gpus[0].memory_free_bytes == on_words().machine.gpus[0].memory_free_bytes - run.STEP_BYTES
    assert any("cudaMalloc failed: out of memory" in text for text in said)
    assert len(started()) == 2


def test_no_plan_left(program, monkeypatch, started):
    with pytest.raises(LaunchError, match="every plan"):
        begin(program, monkeypatch, "no-memory")
    assert len(started()) == run.MOST_TRIES
    with pytest.raises(LaunchError, match="every plan"):
        begin(program, monkeypatch, "no-memory", replan=lambda *_: (None, None))
    assert len(started()) == run.MOST_TRIES + 1


def test_a_second_plan_counts_what_is_free(program, monkeypatch, started):
    seen: list[Request] = []

    def replan(machine, asked, spec):
        seen.append(asked)
        return None, None

    monkeypatch.setenv("FAKE_ENGINE", "no-memory")
    target, result = target_and_answer(program)
    with pytest.raises(LaunchError):
        run.start(target, result, structs.replace(ASKED, assume_idle=True), replan=replan, say=lambda _: None)
    assert not seen[0].assume_idle
    assert len(started()) == 1


def test_less_is_free_where_the_plan_is():
    target = on_words("2x RTX 3090, 64 GiB RAM")
    before = target.machine.gpus[0].memory_free_bytes
    assert run.shrunk(target, 1 << 30).gpus[0].memory_free_bytes == before - (1 << 30)
    assert run.shrunk(target, 1 << 60).gpus[0].memory_free_bytes == 0
    cpu = on_words("no GPU, 64 GiB RAM")
    assert run.shrunk(cpu, 1 << 30).memory.available_bytes == 63 << 30


@pytest.mark.parametrize("mode", ["no-timings", "half-timings", "no-http"])
def test_an_engine_without_timings_still_serves(program, monkeypatch, started, mode):
    server, comparison, _ = begin(program, monkeypatch, mode)
    with server:
        assert comparison.probe is None
        assert comparison.buffers
    assert len(started()) == 1


def test_odd_answers_while_loading_are_not_ready(program, monkeypatch, started):
    server, _, _ = begin(program, monkeypatch, "odd-health")
    server.stop()
    assert len(started()) == 1


def test_time_runs_out(program, monkeypatch, started):
    monkeypatch.setattr(run, "READY_S", 0.5)
    with pytest.raises(LaunchError, match="did not start"):
        begin(program, monkeypatch, "never-ready")
    assert len(started()) == 1


def test_an_engine_that_ignores_the_request_to_end_is_killed(program, monkeypatch, started):
    monkeypatch.setattr(process, "STOP_S", 0.5)
    server, _, _ = begin(program, monkeypatch, "stubborn")
    server.stop()
    assert server.process.returncode == -signal.SIGKILL
    assert len(started()) == 1


def test_a_wrapper_s_engine_is_stopped_too(program, monkeypatch, started):
    server, _, _ = begin(program, monkeypatch, "wrapper")
    server.stop()
    assert len(started()) == 2
    server.stop()


def test_failure_while_comparing_stops_the_engine(program, monkeypatch, started):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measured", fail)
    with pytest.raises(KeyboardInterrupt):
        begin(program, monkeypatch, "")
    assert len(started()) == 1


def test_execute_checks_shows_and_stops(program, started, capfd, state):
    target, result = target_and_answer(program)
    assert run.execute(target, result, ASKED, check_only=True, as_json=False) == 0
    shown = capfd.readouterr().out
    assert "61.5 tok/s" in shown
    assert "planned" in shown
    assert run.execute(target, result, ASKED, check_only=True, as_json=True) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["comparison"]["probe"]["decode_tokens_per_s"] == 61.5
    assert len(started()) == 2


@pytest.mark.parametrize(
    ("mode", "words"), [("dies-when-asked", "assertion failed"), ("stops-later", "lost the device")]
)
def test_an_engine_that_stops_by_itself_is_an_error(program, monkeypatch, started, mode, words, state):
    monkeypatch.setenv("FAKE_ENGINE", mode)
    target, result = target_and_answer(program)
    with pytest.raises(LaunchError, match=words):
        run.execute(target, result, ASKED, check_only=False, as_json=True)
    assert len(started()) == 1


def test_a_launch_teaches_this_machine_and_waits_for_the_fleet(program, monkeypatch, started, capfd, state):
    monkeypatch.setenv("FAKE_ENGINE", "")
    target, result = target_and_answer(program)
    shape = structs.replace(target.machine, shape_hash="abc")
    assert run.execute(structs.replace(target, machine=shape), result, ASKED, check_only=True, as_json=True) == 0
    buffers = json.loads(capfd.readouterr().out)["comparison"]["buffers"]
    corrections = read("abc", state / "state")
    assert corrections is not None
    assert {(one.test, one.measured_tokens_per_s) for one in corrections.runs} == {("decode", 61.5), ("prefill", 1500)}
    (kept,) = (state / "agent" / "runs").iterdir()
    measured = msgspec.json.decode(kept.read_bytes(), type=MeasuredRun)
    assert (measured.model, measured.quant, measured.engine) == (target.spec.name, "Q4_K_M", "llama.cpp")
    assert measured.decode_tokens_per_s == 61.5
    assert measured.memory_bytes == sum(row["actual_bytes"] for row in buffers)
    assert measured.expected_memory_bytes == sum(row["planned_bytes"] for row in buffers)
    setup = agent.Setup(directory=state / "agent")
    agent.keep(structs.replace(target.machine, observed_at="2026-01-02T03:04:05+00:00"), setup, now=0.0)
    (entry,) = Spool(setup.directory / "spool").entries()
    assert [one["run_id"] for one in json.loads(entry.body())["measured"]] == [str(measured.run_id)]
    assert len(started()) == 1


def test_speeds_of_a_machine_that_others_keep_busy_are_shown_and_not_kept(program, monkeypatch, started, capfd, state):
    monkeypatch.setenv("FAKE_ENGINE", "")
    taken = iter([Processor(0.0, 0.0, 0.0), Processor(9.0, 10.0, 2.0)])
    monkeypatch.setattr(run, "processor", lambda _engine: next(taken))
    target, result = target_and_answer(program)
    on_host = structs.replace(target.plan, offloaded_fraction=0.5)
    shape = structs.replace(target.machine, shape_hash="abc")
    target = structs.replace(target, plan=on_host, machine=shape)
    assert run.execute(target, result, ASKED, check_only=True, as_json=False) == 0
    assert "Other programs took 70% of the processor" in capfd.readouterr().out
    assert read("abc", state / "state") is None
    (kept,) = (state / "agent" / "runs").iterdir()
    measured = msgspec.json.decode(kept.read_bytes(), type=MeasuredRun)
    assert (measured.decode_tokens_per_s, measured.prefill_tokens_per_s) == (None, None)
    assert measured.memory_bytes is not None
    assert len(started()) == 1


@pytest.mark.parametrize(
    ("backend", "offloaded", "share", "crowded"),
    [
        ("cpu", 0.0, 0.5, True),
        ("cuda", 0.0, 0.5, False),
        ("cuda", 0.1, 0.5, True),
        ("cpu", 0.0, 0.05, False),
        ("cpu", 0.0, None, False),
    ],
)
def test_the_processor_counts_where_it_takes_part(program, backend, offloaded, share, crowded):
    target, _ = target_and_answer(program)
    comparison = run.Comparison(
        load_s=1.0, buffers=(), planned_decode_tokens_per_s=None, planned_prefill_tokens_per_s=None, probe=None,
        others_share=share,
    )  # fmt: skip
    plan = structs.replace(target.plan, backend=backend, offloaded_fraction=offloaded)
    assert run.crowded(comparison, plan) is crowded


def test_what_cannot_be_kept_is_lost_and_nothing_else(program, monkeypatch, started, state):
    (state / "agent").write_text("a file, not a folder")
    (state / "state").write_text("a file, not a folder")
    monkeypatch.setenv("FAKE_ENGINE", "")
    target, result = target_and_answer(program)
    assert run.execute(target, result, ASKED, check_only=True, as_json=True) == 0
    assert len(started()) == 1


def test_nothing_measured_is_nothing_kept(program, monkeypatch, started, state):
    monkeypatch.setenv("FAKE_ENGINE", "no-timings")
    target, result = target_and_answer(program)
    assert run.execute(target, result, ASKED, check_only=True, as_json=True) == 0
    assert not (state / "agent").exists()
    assert len(started()) == 1


def test_the_user_s_own_address_is_where_the_engine_is_asked(program, monkeypatch, started, state):
    monkeypatch.setenv("FAKE_ENGINE", "")
    target, result = target_and_answer(program)
    own = structs.replace(target, extra=("--port", str(free_port()), "--host", "localhost"), port=1, host="10.0.0.1")
    assert (run.reached(own).host, run.reached(own).port) == ("localhost", int(own.extra[1]))
    assert run.reached(structs.replace(own, extra=("--port", "x"))).port == 1
    there = structs.replace(own, extra=("--port", str(target.port)), port=free_port(), host="127.0.0.1")
    with socket.create_server(("127.0.0.1", target.port)), pytest.raises(LaunchError, match=f"port {target.port}"):
        run.execute(there, result, ASKED, check_only=True, as_json=False)
    assert not started()


def test_numactl_is_left_out_where_it_is_not_installed(program, monkeypatch, started, tmp_path):
    monkeypatch.setenv("FAKE_ENGINE", "")
    target, result = target_and_answer(program)
    bound = ["numactl", "--cpunodebind=0", "--preferred=0"]
    monkeypatch.setattr(numa, "prefix", lambda _: bound)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    server, comparison, _ = run.start(target, result, ASKED, replan=run.replan_here, say=said.append)
    with server:
        assert comparison.probe is not None
    assert any("numactl is not installed" in text for text in said)
    assert len(started()) == 1


def test_a_program_that_cannot_be_started_is_told(program, started):
    target, result = target_and_answer(program)
    program.write_bytes(b"not a program")
    with pytest.raises(LaunchError, match="cannot be started: Exec format error"):
        run.start(target, result, ASKED, replan=run.replan_here, say=lambda _: None)
    assert not started()


def test_a_port_in_use_is_not_taken_for_the_engine(program, started):
    target, result = target_and_answer(program)
    with socket.create_server(("127.0.0.1", target.port)), pytest.raises(LaunchError, match="in use"):
        run.execute(target, result, ASKED, check_only=True, as_json=False)
    assert not started()


def test_only_what_can_be_started_is(program):
    target, result = target_and_answer(program)
    for_vllm = structs.replace(target, plan=structs.replace(target.plan, engine="vllm"))
    with pytest.raises(UsageError, match="vllm"):
        run.execute(for_vllm, result, ASKED, check_only=True, as_json=False)
    assumed = structs.replace(target, flags=structs.replace(FLAGS, assumed=True))
    with pytest.raises(LaunchError, match="does not answer --help"):
        run.execute(assumed, result, ASKED, check_only=True, as_json=False)
    with pytest.raises(LaunchError, match="no llama-server"):
        run.execute(structs.replace(assumed, program="llama-server"), result, ASKED, check_only=True, as_json=False)


def test_the_free_memory_of_unknown_gpus_is_unknown():
    target = on_words()
    assert run.free_now(target) == ()
    named = structs.replace(target, plan=structs.replace(target.plan, gpu_uuids=("GPU-not-here",)))
    assert run.free_now(named) == (None,)


def test_remote_addresses_are_the_engine_s_own_argument():
    target = on_words()
    assert visible.remote_addresses(target) == ()
    assert visible.remote_addresses(structs.replace(target, extra=("--rpc", "a:1,b:2"))) == ("a:1", "b:2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_cleanly(program, started, tmp_path, number):
    model = tmp_path / "m.gguf"
    assert not model.exists()
    serving = subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "launch", "llama-3.2-1b", "--exec", "--quant", "Q4_K_M",
         "--context", "2048", "--backend", "cpu", "--engine", "llama.cpp", "--port", str(free_port())],
        env={**os.environ, "WILLITRUN_LLAMA_SERVER": str(program), "HOME": str(tmp_path), "FAKE_ENGINE": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert serving.stderr is not None
    said = ""
    while "serving on" not in said:
        line = serving.stderr.readline()
        assert line, said
        said += line
    ((pid, _),) = started()
    assert running(pid)
    serving.send_signal(number)
    _, rest = serving.communicate(timeout=20)
    assert serving.returncode == 0
    assert "Traceback" not in rest
    until = time.monotonic() + 2
    while running(pid) and time.monotonic() < until:
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading_leaves_nothing(program, started, tmp_path, number):
    loading = subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "launch", "llama-3.2-1b", "--exec", "--quant", "Q4_K_M",
         "--context", "2048", "--backend", "cpu", "--engine", "llama.cpp", "--port", str(free_port())],
        env={**os.environ, "WILLITRUN_LLAMA_SERVER": str(program), "HOME": str(tmp_path), "FAKE_ENGINE": "never-ready"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert loading.stderr is not None
    said = ""
    while "loading the weights" not in said:
        line = loading.stderr.readline()
        assert line, said
        said += line
    ((pid, _),) = started()
    loading.send_signal(number)
    _, rest = loading.communicate(timeout=30)
    assert loading.returncode == 130
    assert "Traceback" not in rest
    until = time.monotonic() + 2
    while running(pid) and time.monotonic() < until:
        time.sleep(0.05)


def test_an_engine_does_not_outlive_us_when_we_are_killed(program, started, tmp_path):
    serving = subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "launch", "llama-3.2-1b", "--exec", "--quant", "Q4_K_M",
         "--context", "2048", "--backend", "cpu", "--engine", "llama.cpp", "--port", str(free_port())],
        env={**os.environ, "WILLITRUN_LLAMA_SERVER": str(program), "HOME": str(tmp_path), "FAKE_ENGINE": ""},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert serving.stderr is not None
    while "serving on" not in serving.stderr.readline():
        assert serving.poll() is None
    ((pid, _),) = started()
    assert running(pid)
    serving.kill()
    serving.communicate(timeout=30)
    until = time.monotonic() + 10
    while running(pid) and time.monotonic() < until:
        time.sleep(0.05)


def test_replanning_for_less_memory_finds_another_plan_or_none():
    spec = on_words().spec
    plan, _ = run.replan_here(open_machine("RTX 3090 (3 GiB free), 64 GiB RAM"), ASKED, spec)
    assert plan is not None
    assert plan.offloaded_fraction > 0
