"""The `models` commands, as people run them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.catalog.readers import gguf_writer as w
from tests.catalog.readers.hub_server import Hub, serve
from tests.catalog.readers.test_hub import gguf as hub_gguf
from tests.catalog.readers.test_local import model, pull
from willitrun_here.__main__ import main

MACHINE = "NVIDIA GeForce RTX 3090, 32 GiB RAM"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with nothing in it."""
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME",
                 "XDG_CONFIG_HOME", "WILLITRUN_MODELS", "HF_TOKEN", "HF_HUB_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def run(capsysbinary):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["models", *arguments])
        sys.stdout.flush()
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def test_list_narrows_and_speaks_json(home, run):
    code, out, _ = run("list", "llama-3.2", "1b")
    assert code == 0
    assert "llama-3.2-1b-instruct" in out
    assert "llama-3.2-3b" not in out
    _, out, _ = run("list", "--json")
    rows = json.loads(out)["models"]
    assert len(rows) >= 250
    assert {"name", "params", "source", "date", "license"} <= set(rows[0])


def test_scan_lists_duplicates_and_problems(home, run):
    path = model(home / "models" / "tiny-Q8_0.gguf")
    pull(home / "ollama", "tiny", path)
    (home / "models" / "bad.gguf").write_bytes(b"nothing")
    code, out, err = run("scan", str(home / "models"), "--no-verdict")
    assert code == 0
    assert "ollama:tiny:latest" in out
    assert "to reclaim" in out
    assert "bad.gguf" in err
    code, out, _ = run("scan", str(home / "models"), "--machine", MACHINE, "--json")
    found = json.loads(out)
    assert len(found["models"]) == 2
    assert all(row["status"] in {"comfortable", "fits", "offload"} for row in found["models"])
    assert found["duplicates"][0]["reclaim_bytes"] == path.stat().st_size
    assert len(found["problems"]) == 1


def test_scan_of_an_empty_machine_says_so(home, run):
    code, _, err = run("scan", "--no-verdict")
    assert code == 1
    assert "No model" in err


def test_add_show_and_list_ones_own(home, run):
    path = model(home / "my-model-Q8_0.gguf")
    code, out, _ = run("add", str(path), "--name", "Mine", "--json")
    assert code == 0
    kept = json.loads(out)
    assert kept["name"] == "mine"
    assert Path(kept["path"]) == home / ".local/share/willitrun-here/models/mine.json"
    code, out, _ = run("show", "mine")
    assert code == 0
    assert "attention 4/1 heads of 64, whole context" in out
    _, out, _ = run("show", "mine", "--json")
    assert json.loads(out)["quant"] == "Q8_0"
    _, out, _ = run("list", "mine", "--json")
    assert [row["source"] for row in json.loads(out)["models"]] == [str(path)]
    code, _, err = run("add", str(home / "missing.gguf"))
    assert code == 4
    assert "missing.gguf" in err


def test_a_hub_is_shown_and_updated_from(home, run, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="pip install 'willitrun-here[hub]'")
    hub = Hub(repositories={"org/tiny": {"a-Q4_0.gguf": hub_gguf("Q4_0", file_type=2), "a-Q8_0.gguf": hub_gguf()}})
    server = serve(hub)
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, out, _ = run("show", "hf:org/tiny")
        assert code == 0
        assert "Q4_0" in out
        assert "Q8_0" in out
        code, _, err = run("update", "org", "--limit", "3")
        assert code == 0
        assert "hf:org/tiny" in err
        code, out, _ = run("update", "--json")
        assert [row["source"] for row in json.loads(out)["models"]] == ["hf:org/tiny"]
        hub.fail = {"org/tiny": [404] * 9}
        code, _, err = run("update")
        assert code == 4
        assert "does not exist" in err
    finally:
        server.shutdown()
        server.server_close()


def test_a_damaged_file_ends_with_four(home, run):
    path = w.write(home / "x.gguf", {"general.architecture": "llama"}, [("token_embd.weight", (32, 32), "F32")])
    code, out, err = run("show", str(path))
    assert (code, out) == (4, "")
    assert "block_count" in err
