"""The real parts of the engine tests: llama-server, memory-limited RPC devices, real and made-up models."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture
def rpc_device(engine: Path) -> Iterator[Callable[[int], str]]:
    """Start devices with a real memory limit; returns their addresses."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is missing; run: apt-get install util-linux")
    started: list[subprocess.Popen[bytes]] = []

    def start(limit_bytes: int) -> str:
        port = free_port()
        argv = ["prlimit", f"--as={limit_bytes}", str(engine / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
        started.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"127.0.0.1:{port}"
            time.sleep(0.05)
        pytest.fail("the RPC server did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()
