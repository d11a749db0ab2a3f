"""The printed command on a real llama-server: it loads, answers, and its log agrees with the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from tests.engine import random_model
from tests.engine.conftest import free_port
from willitrun_estimator.plan import Plan
from willitrun_estimator.request import Request
from willitrun_here.ask import ask, open_model, target_of
from willitrun_here.errors import LaunchError
from willitrun_here.launch import run as runner
from willitrun_here.launch.log import Compared
from willitrun_here.machines import here
from willitrun_probe.machine import Gpu, Machine

pytestmark = pytest.mark.engine
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


def hold(rows: list[Compared]) -> None:
    """Assert the bars: cache, state and output exact (the log rounds to 10 kB), the rest within a few percent."""
    assert rows
    for row in rows:
        off = abs(row.actual_bytes - row.planned_bytes)
        if row.kind in {"kv_cache", "recurrent", "output"}:
            assert off <= 0.02 * MIB, row
        elif row.kind == "compute" and row.device.startswith("RPC"):
            # An RPC device computes no batches of weights that stay on the host, so it needs no copies of them.
            assert row.actual_bytes <= row.planned_bytes + 8 * MIB, row
        elif row.kind == "compute":
            assert off <= max(8 * MIB, 0.1 * row.planned_bytes), row
        elif row.device.startswith("RPC"):
            assert off <= 0.005 * row.planned_bytes, row
        else:
            # The host's line is the mapped range of the file, alignment and pages included.
            assert off <= max(2 * MIB, 0.07 * row.planned_bytes), row


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


def device(name: str, free_bytes: int) -> Gpu:
    """An RPC device as the planner sees it: the vendor only chooses the rules of its buffers."""
    return Gpu(
        vendor="nvidia", name=name, memory_total_bytes=free_bytes, memory_free_bytes=free_bytes,
        memory_bandwidth_bytes_per_s=900e9, compute_capability="8.6", multiprocessors=0,
    )  # fmt: skip


def address_space(pid_of: str) -> int:
    """What an idle device's process has mapped already."""
    port = pid_of.rpartition(":")[2]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().split(b"\0")
            if b"-p" in line and port.encode() in line and b"ggml-rpc-server" in line[0]:
                status = (process / "status").read_text()
        except OSError:
            continue
        else:
            if b"-p" in line and port.encode() in line and b"ggml-rpc-server" in line[0]:
                return int(status.split("VmSize:")[1].split()[0]) * 1024
    raise AssertionError(pid_of)


def planned(model: Path, gpus: tuple[Gpu, ...], engine: Path, addresses: list[str], monkeypatch: pytest.MonkeyPatch):
    """Plan for made-up devices and turn the plan into a command that uses them."""
    monkeypatch.setenv("WILLITRUN_LLAMA_SERVER", str(engine / "llama-server"))
    machine: Machine = structs.replace(here(), gpus=gpus)
    asked = Request(context=4096, kv_type="f16", ubatch=256, margin_bytes=0)
    spec = open_model(str(model))
    result = ask(machine, spec, asked, commands=False)
    target = target_of(result, spec, machine, extra=("--rpc", ",".join(addresses), "--no-warmup"))
    return structs.replace(target, port=free_port()), result, asked


def no_replan(*_: object) -> tuple[Plan | None, object]:
    return None, None


@pytest.mark.parametrize("model", [random_model.DENSE, random_model.MOE], ids=lambda model: model.name)
def test_a_model_too_large_for_a_device_runs_with_the_planned_share(
    model, engine: Path, models: Path, rpc_device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_model.write(model, models)
    free = round(path.stat().st_size * 0.55)
    idle = address_space(rpc_device(1 << 34))
    address = rpc_device(idle + free + TRANSFER_BYTES)
    target, result, asked = planned(path, (device("RPC0", free),), engine, [address], monkeypatch)
    plan = target.plan
    assert 0 < plan.offloaded_fraction < 1
    server, comparison, _ = runner.start(target, result, asked, replan=no_replan, say=lambda _: None)
    with server:
        assert comparison.probe is not None
        assert comparison.probe.output_tokens == 48
    hold([row for row in comparison.buffers if row.device == "RPC0"])
    if plan.cpu_moe_layers:
        more = structs.replace(plan, cpu_moe_layers=max(0, plan.cpu_moe_layers - 8))
    else:
        more = structs.replace(plan, gpu_layers=plan.layers + 1)
    full = structs.replace(
        target, plan=more, port=free_port(), extra=(*target.extra[:1], rpc_device(idle + free), "--no-warmup")
    )
    with pytest.raises(LaunchError, match=r"out of memory|did not start"):
        runner.start(full, result, asked, replan=no_replan, say=lambda _: None)


def test_two_unequal_devices_share_the_layers(
    engine: Path, models: Path, rpc_device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_model.write(random_model.DENSE, models)
    size = path.stat().st_size
    free = (round(size * 0.75) + 400 * MIB, round(size * 0.45) + 250 * MIB)
    addresses = [rpc_device(1 << 34), rpc_device(1 << 34)]
    target, result, asked = planned(
        path, (device("RPC0", free[0]), device("RPC1", free[1])), engine, addresses, monkeypatch
    )
    assert target.plan.gpu_layers == target.plan.layers + 1
    assert target.plan.tensor_split[0] > target.plan.tensor_split[1] > 0
    server, comparison, _ = runner.start(target, result, asked, replan=no_replan, say=lambda _: None)
    with server:
        assert comparison.probe is not None
    hold([row for row in comparison.buffers if row.device.startswith("RPC") and row.kind != "compute"])


def test_running_out_of_memory_takes_the_next_plan(
    engine: Path, models: Path, rpc_device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_model.write(random_model.DENSE, models)
    size = path.stat().st_size
    idle = address_space(rpc_device(1 << 34))
    address = rpc_device(idle + round(size * 0.6))
    target, result, asked = planned(
        path, (device("RPC0", round(size * 1.4) + 512 * MIB),), engine, [address], monkeypatch
    )
    assert target.plan.offloaded_fraction == 0
    said: list[str] = []
    server, comparison, last = runner.start(target, result, asked, replan=runner.replan_here, say=said.append)
    with server:
        assert comparison.probe is not None
    assert comparison.tries > 1
    assert last.plan.gpu_layers < target.plan.gpu_layers
    assert any("out of memory" in text for text in said)
