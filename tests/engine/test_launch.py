"""The printed command on a real llama-server: it loads, answers, and its log agrees with the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.bars import hold
from tests.engine.conftest import free_port
from willitrun_here.launch import run as runner
from willitrun_here.launch.log import Compared

pytestmark = [pytest.mark.engine, pytest.mark.slow]
MIB = 1 << 20
TRANSFER_BYTES = 96 * MIB
"""What an RPC device holds beside its buffers: a tensor being received, thread stacks, the allocator's slack."""


def willitrun(engine: Path, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "willitrun_here", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "WILLITRUN_LLAMA_SERVER": str(engine / "llama-server")},
        check=False,
    )


def test_exec_on_this_machine_loads_answers_and_agrees(engine: Path, gemma: Path) -> None:
    done = willitrun(
        engine,
        "launch",
        str(gemma),
        "--context",
        "4096",
        "--port",
        str(free_port()),
        "--exec",
        "--check-only",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)["comparison"]
    hold([Compared(**row) for row in compared["buffers"]])
    assert compared["probe"]["decode_tokens_per_s"] > 1
    assert compared["probe"]["output_tokens"] == 48
    assert compared["tries"] == 1


def test_the_printed_command_works_as_it_is(engine: Path, gemma: Path) -> None:
    port = free_port()
    printed = willitrun(engine, "launch", str(gemma), "--context", "4096", "--port", str(port), "--json")
    assert printed.returncode == 0, printed.stderr
    command = json.loads(printed.stdout)
    heard: list[str] = []
    with runner.Server(command["argv"], command["env"], host="127.0.0.1", port=port, heard=heard.append) as server:
        assert server.wait_until_ready(120) is not None, "".join(heard[-20:])
        probe = server.probe()
    assert probe.output_tokens == 48
    assert server.process.returncode is not None
