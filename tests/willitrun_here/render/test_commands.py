"""`feel` and `site` as commands, with real answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

RTX_3090 = "NVIDIA GeForce RTX 3090, 64 GiB RAM"
A100 = "NVIDIA A100 40GB, 128 GiB RAM"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "willitrun_here", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, encoding="utf-8")


def test_feel_says_what_it_would_play():
    done = run("feel", "llama-3.2-1b", "--machine", RTX_3090, "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    rate = said["decode_tokens_per_s"]
    assert 0 < rate["low"] < rate["expected"] < rate["high"]
    assert said["turns"][-1]["tokens"] > 100


def test_feel_plays_at_the_speed_it_says():
    rate = json.loads(run("feel", "llama-3.2-1b", "--machine", RTX_3090, "--json").stdout)["decode_tokens_per_s"]
    start = time.monotonic()
    done = run("feel", "llama-3.2-1b", "--machine", RTX_3090, "--warm", "--pace", "high")
    took_s = time.monotonic() - start
    tokens, played = re.search(r"(\d+) tokens at ([\d.,]+) tok/s", done.stdout).groups()
    # Never faster than it says; a busy machine may play slower.
    assert rate["high"] * 0.5 < float(played.replace(",", "")) <= rate["high"] * 1.05
    assert took_s > int(tokens) / rate["high"]
    assert "It now takes any iterable" in done.stdout
    assert "--pace low" in done.stderr


def test_feel_of_an_unknown_model_is_an_error_with_advice():
    done = run("feel", "no-such-model-at-all", "--machine", RTX_3090)
    assert done.returncode == 4
    assert done.stdout == ""
    assert "no-such-model-at-all" in done.stderr


def test_site_writes_linked_pages_of_real_answers(tmp_path):
    folder = tmp_path / "pages"
    done = run(
        "site", str(folder), "--model", "llama-3.2-1b", "--model", "qwen3-4b",
        "--machine", RTX_3090, "--machine", A100, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    # The index, two machines, two models, four answers with a card each.
    assert len(files) == 1 + 2 + 2 + 2 * 4
    for file in folder.iterdir():
        for href in re.findall(r'href="([^"]+)"', file.read_text(encoding="utf-8")):
            assert (folder / href).is_file()
        assert file.stat().st_size <= 200_000
