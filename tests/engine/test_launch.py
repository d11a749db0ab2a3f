"""The printed command on a real llama-server: it loads, answers, and its log agrees with the plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine import random_model
from tests.engine.bars import hold
from tests.engine.conftest import free_port
from tests.willitrun_here.launch.targets import on_recorded, on_words
from willitrun_here.calibrate.busy import MOST_BUSY
from willitrun_here.launch import llama_cpp
from willitrun_here.launch import run as runner
from willitrun_here.launch.log import Compared
from willitrun_here.launch.target import Target

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def environment(engine: Path, tmp_path: Path) -> dict[str, str]:
    """The engine that was built, and a state of its own for what is measured."""
    own = {"STATE_DIRECTORY": str(tmp_path / "agent"), "WILLITRUN_STATE": str(tmp_path / "state")}
    return {**os.environ, "WILLITRUN_LLAMA_SERVER": str(engine / "llama-server"), **own}


@pytest.fixture
def odd_file(models: Path, tmp_path: Path) -> Path:
    """A small model under a name that a shell would take apart."""
    folder = tmp_path / 'it\'s "a $HOME"; b'
    folder.mkdir()
    path = folder / "m x.gguf"
    path.symlink_to(random_model.write(random_model.SMALL, models))
    return path


def willitrun(
    environment: dict[str, str], *arguments: object, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "willitrun_here", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip


def servers(port: int) -> list[str]:
    """The llama-servers that run on a port."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"llama-server") and str(port).encode() in words:
            found.append(process.name)
    return found


def test_exec_on_this_machine_loads_answers_agrees_and_is_kept(
    environment: dict[str, str], gemma: Path, tmp_path: Path
) -> None:
    port = free_port()
    asked = ("--context", 4096, "--port", port, "--exec", "--check-only", "--json")
    done = willitrun(environment, "launch", gemma, *asked)
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)["comparison"]
    hold([Compared(**row) for row in compared["buffers"]])
    assert compared["probe"]["decode_tokens_per_s"] > 0
    assert compared["probe"]["output_tokens"] == 48
    assert compared["tries"] == 1
    assert not servers(port)

    kept = list((tmp_path / "state").glob("calibration-*.json"))
    if (compared["others_share"] or 0.0) > MOST_BUSY:
        assert kept == [], "others slowed the launch down"
        return
    (corrections,) = kept
    runs = {run["test"]: run for run in json.loads(corrections.read_text())["runs"]}
    decode = compared["probe"]["decode_tokens_per_s"]
    assert runs["decode"]["measured_tokens_per_s"] == pytest.approx(decode)
    assert runs["prefill"]["measured_tokens_per_s"] == pytest.approx(compared["probe"]["prefill_tokens_per_s"])
    checked = willitrun(environment, "check", gemma, "--context", 4096, "--json")
    speed = json.loads(checked.stdout)["speed"]["decode_tokens_per_s"]
    assert speed["basis"] == "measured-here"
    assert speed["expected"] == pytest.approx(decode, rel=0.25)

    report = json.loads(willitrun(environment, "report", "--print").stdout)
    (measured,) = report["measured"]
    assert measured["decode_tokens_per_s"] == pytest.approx(decode)
    assert measured["memory_bytes"] == pytest.approx(measured["expected_memory_bytes"], rel=0.1)


def test_the_printed_line_works_in_a_shell(environment: dict[str, str], odd_file: Path) -> None:
    port = free_port()
    printed = willitrun(environment, "launch", odd_file, "--context", 2048, "--port", port, "--", "--alias", "it's $x")
    assert printed.returncode == 0, printed.stderr
    heard: list[str] = []
    line = ["sh", "-c", "exec " + printed.stdout.strip()]
    with runner.Server(line, environment, host="127.0.0.1", port=port, heard=heard.append) as server:
        assert server.wait_until_ready(120) is not None, "".join(heard[-20:])
        probe = server.probe()
        (model,) = server._request("GET", "/v1/models")["data"]
    assert model["id"] == "it's $x"
    assert probe.output_tokens == 48
    assert server.process.returncode is not None
    assert not servers(port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ctrl_c_leaves_nothing_running(environment: dict[str, str], odd_file: Path, number: signal.Signals) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "willitrun_here", "launch", str(odd_file), "--context", "2048", "--port", str(port)]
    serving = subprocess.Popen(
        [*argv, "--exec"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert serving.stderr is not None
    said = ""
    while "serving on" not in said:
        line = serving.stderr.readline()
        assert line, said
        said += line
    assert len(servers(port)) == 1
    serving.send_signal(number)
    _, rest = serving.communicate(timeout=30)
    assert (serving.returncode, "Traceback" in rest) == (0, False), rest
    assert not servers(port)


def test_a_failure_is_told_in_the_engine_s_own_words(environment: dict[str, str], odd_file: Path) -> None:
    asked = ("--context", 2048, "--exec", "--check-only")
    unknown = willitrun(environment, "launch", odd_file, *asked, "--port", free_port(), "--", "--frobnicate")
    assert unknown.returncode == 1
    assert "invalid argument: --frobnicate" in unknown.stderr
    assert "next plan" not in unknown.stderr

    lacking = odd_file.with_name("lacking.gguf")
    lacking.write_bytes(odd_file.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight", 1))
    refused = willitrun(environment, "launch", lacking, *asked, "--port", free_port())
    assert refused.returncode == 1
    assert "error loading model" in refused.stderr
    assert "blk.1.ffn_d" in refused.stderr
    assert "The command was: " in refused.stderr
    assert "Traceback" not in unknown.stderr + refused.stderr


@pytest.mark.parametrize(
    ("make", "has"),
    [
        (lambda: on_recorded("h100x8-nvlink", "llama-3.3-70b", quant="F16", context=8192), "-ts"),
        (lambda: on_recorded("rtx3090-shared", "qwen3-30b-a3b", quant="Q8_0", context=8192), "--n-cpu-moe"),
        (lambda: on_recorded("epyc-two-nodes", "gpt-oss-20b", context=8192, kv_type="q8_0"), "--numa"),
        (lambda: on_recorded("container-limits", "llama-3.2-3b", context=8192, parallel=4), "-kvu"),
        (lambda: on_words(backend="cpu"), "-dev"),
        (lambda: on_words("no GPU, 12 GiB RAM", "gemma-3-4b", context=4096), "-cram"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_real_parser_takes_every_flag(make: Callable[[], Target], has: str, engine: Path) -> None:
    """The model is not there, so that a command whose flags are understood ends at once."""
    target = make()
    arguments = [*llama_cpp.model_arguments(target)[2:], *llama_cpp.server_arguments(target)]
    assert has in arguments
    argv = [str(engine / "llama-server"), "-m", "/nowhere.gguf", *arguments, "--port", str(free_port())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert "error while handling argument" not in said
    assert "invalid argument" not in said
    assert "/nowhere.gguf" in said
    assert done.returncode != 0
