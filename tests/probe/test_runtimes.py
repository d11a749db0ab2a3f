"""Installed engines: found on PATH, asked at the same time, never waited for too long, remembered."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from willitrun_probe.roots import Roots
from willitrun_probe.runtimes import read_engines


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    install.folder = folder
    return install


def read(programs, cache=None, seconds: float = 5.0):
    environment = {"PATH": f"relative:{programs.folder}:/nonexistent"}
    return read_engines(Roots(), environment, cache=cache, deadline=time.monotonic() + seconds)


def test_versions_as_the_engines_write_them(programs):
    programs("llama-server", "echo 'ggml_cuda_init: found 1 device' >&2; echo 'version: 6543 (abc1234)' >&2")
    programs("ollama", "echo 'Warning: could not connect'; echo 'ollama version is 0.12.3'")
    programs("vllm", "echo 0.11.0rc2")
    programs("docker", "echo 'Docker version 28.2.2, build e6534b4'")
    engines, findings = read(programs)
    assert {engine.name: engine.version for engine in engines} == {
        "llama.cpp": "6543", "ollama": "0.12.3", "vllm": "0.11.0rc2", "docker": "28.2.2",
    }  # fmt: skip
    assert engines[0].path == str(programs.folder / "llama-server")
    assert findings == []


@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
def test_a_python_engine_is_not_started_for_its_version(programs, tmp_path, packages):
    (tmp_path / "lib" / "python3.12" / packages / "vllm-0.14.1+cu128.dist-info").mkdir(parents=True)
    (tmp_path / "lib" / "python3.12" / packages / "vllm_flash_attn-9.9.dist-info").mkdir()
    programs("vllm", f"echo 9.9; touch {tmp_path}/started")
    (engine,), findings = read(programs)
    assert (engine.version, findings) == ("0.14.1+cu128", [])
    assert not (tmp_path / "started").exists()


def test_engine_that_hangs_is_listed_without_a_version(programs):
    programs("ollama", "sleep 60")
    programs("docker", "echo version 1.2.3")
    start = time.monotonic()
    engines, findings = read(programs, seconds=0.4)
    assert time.monotonic() - start < 1.5
    assert {engine.name: engine.version for engine in engines} == {"ollama": None, "docker": "1.2.3"}
    assert [found.code for found in findings] == ["engine-version-unknown"]
    assert not psutil.Process().children()


def test_versions_are_remembered_until_the_program_changes(programs, tmp_path):
    cache = tmp_path / "cache" / "engines.json"
    programs("ollama", f"echo x >> {tmp_path}/asked; echo version is 1.0")
    for _ in range(3):
        engines, _ = read(programs, str(cache))
        assert engines[0].version == "1.0"
    assert (tmp_path / "asked").read_text() == "x\n"
    programs("ollama", "echo version is 2.0.0")
    assert read(programs, str(cache))[0][0].version == "2.0.0"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 5}'])
def test_broken_memory_is_ignored(programs, tmp_path, text):
    cache = tmp_path / "engines.json"
    cache.write_text(text)
    programs("docker", "echo version 1.2.3")
    assert read(programs, str(cache))[0][0].version == "1.2.3"
    assert "1.2.3" in json.loads(cache.read_text()).values()


def test_unwritable_memory_is_no_error(programs):
    programs("docker", "echo version 1.2.3")
    assert read(programs, "/proc/nowhere/engines.json")[0][0].version == "1.2.3"


def test_programs_that_cannot_run(programs):
    path = programs.folder / "docker"
    path.write_bytes(b"\x7fELF garbage")
    path.chmod(0o755)
    engines, findings = read(programs)
    assert [(engine.name, engine.version) for engine in engines] == [("docker", None)]
    assert len(findings) == 1
