"""The real parts of the engine tests: llama-server, memory-limited RPC devices, real and made-up models."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent


def cache() -> Path:
    base = os.environ.get("WILLITRUN_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "willitrun-here"


@pytest.fixture(scope="session")
def engine() -> Path:
    """The folder of the llama.cpp programs."""
    found = sorted((cache() / "engines").glob("llama.cpp-*/llama-server"))
    if not found:
        pytest.skip("no llama-server was built; run: python scripts/build_engine.py")
    return found[-1].parent


@pytest.fixture(scope="session")
def gemma() -> Path:
    """A real model."""
    path = cache() / "models" / "gemma-3-270m-q4_k_m.gguf"
    if not path.exists():
        pytest.skip("the test model is not there; run: python scripts/fetch_test_model.py")
    return path


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder for made-up models."""
    return cache() / "models"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RpcDevice(NamedTuple):
    """A device of its own process, whose address space is its memory."""

    address: str
    pid: int

    def mapped_bytes(self, peak: bool = False) -> int:
        """What the process has mapped now, or had at most: the figure that its limit is held against."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmPeak:" if peak else "VmSize:")[1].split()[0]) * 1024


@pytest.fixture
def rpc_device(engine: Path) -> Iterator[Callable[[int | None], RpcDevice]]:
    """Start devices with so many bytes of memory beyond what an idle one has mapped; None is without a limit."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is missing; run: apt-get install util-linux")
    started: list[subprocess.Popen[bytes]] = []
    # glibc raises its own threshold for mapping with every large block it frees (mallopt(3), M_MMAP_THRESHOLD), and
    # would keep up to 32 MiB of received tensors on its heap; fixed, they go back to the kernel.
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"}

    def process(limit: str) -> RpcDevice:
        port = free_port()
        argv = ["prlimit", f"--as={limit}", str(engine / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
        argv += ["-t", "1"]  # every further thread would map a stack
        started.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return RpcDevice(f"127.0.0.1:{port}", started[-1].pid)
            time.sleep(0.05)
        pytest.fail("the RPC server did not start")

    idle: list[int] = []

    def start(memory_bytes: int | None) -> RpcDevice:
        if memory_bytes is None:
            return process("unlimited")
        if not idle:
            idle.append(process("unlimited").mapped_bytes())
        return process(str(idle[0] + memory_bytes))

    yield start
    for one in started:
        one.kill()
        one.wait()
