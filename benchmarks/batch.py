"""Answers per second of `batch`, on lines as an operator would ask them: none, a third or most of them repeated.

    python benchmarks/batch.py [--lines 20000] [--jobs 2]

Models, GPUs, quantizations, contexts and cache types are drawn at random from the catalog's well-known ones. `distinct`
draws a context of its own for every line, so that hardly a line is asked twice; `fleet` asks about machines of 60
shapes, so that most are. Start-up and warm-up count. Prints JSON lines with the share of repeats and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = (
    "llama-3.1-8b", "llama-3.3-70b", "llama-3.2-3b", "qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b",
    "gemma-3-12b", "gemma-3-27b", "gpt-oss-20b", "phi-4", "mistral-small-3.2-24b",
)  # fmt: skip
GPUS = (
    "NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090",
    "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L40S", "NVIDIA L4",
    "AMD Radeon RX 7900 XTX", "NVIDIA RTX A6000", "Tesla T4",
)  # fmt: skip
QUANTS = ("Q4_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS")
BAR_PER_S = 4000.0


def lines(kind: str, count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Return requests with plan and speed: `distinct`, `mixed` (contexts of the usual sizes) or `fleet`."""
    shapes = [(draw.choice(GPUS), draw.choice((1, 1, 2)), draw.choice((32, 64, 128))) for _ in range(60)]
    out = []
    for number in range(count):
        gpu, cards, ram = draw.choice(shapes) if kind == "fleet" else (
            draw.choice(GPUS), draw.choice((1, 1, 1, 2)), draw.choice((32, 64, 128, 256))
        )  # fmt: skip
        sizes = (4096, 8192) if kind == "fleet" else (2048, 4096, 8192, 12288, 16384, 32768)
        out.append({
            "id": number, "model": draw.choice(MODELS[:4] if kind == "fleet" else MODELS),
            "machine": f"{cards}x {gpu}, {ram} GiB RAM", "quant": draw.choice(QUANTS),
            "context": draw.randint(8, 128) * 256 if kind == "distinct" else draw.choice(sizes),
            "kv_type": "f16" if kind == "fleet" else draw.choice(("f16", "f16", "q8_0")), "sections": ["plan", "speed"],
        })  # fmt: skip
    return out


def measure(kind: str, count: int, jobs: int) -> dict[str, Any]:
    """Return the figures of one run of the command."""
    asked = lines(kind, count, random.Random(1))
    seen = {json.dumps({name: value for name, value in line.items() if name != "id"}) for line in asked}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in asked))
        command = [sys.executable, "-m", "willitrun_here", "batch", str(path), "--jobs", str(jobs)]
        before = os.times()
        started = time.perf_counter()
        with (Path(folder) / "answers.jsonl").open("wb") as answers:
            subprocess.run(command, check=True, stdout=answers)
        elapsed_s = time.perf_counter() - started
        after = os.times()
        written = (Path(folder) / "answers.jsonl").read_bytes()
    failed = written.count(b'"error":')
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "lines": count, "kind": kind, "repeated_share": round(1 - len(seen) / count, 3), "failed": failed,
        "answers_per_s": round(count / elapsed_s), "answers_per_cpu_s": round(count / cpu_s), "bar_per_s": BAR_PER_S,
        "peak_mib_of_largest_process": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }  # fmt: skip


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", choices=("distinct", "mixed", "fleet"), action="append")
    options = parser.parse_args()
    for kind in options.kind or ("fleet", "mixed", "distinct"):
        print(json.dumps(measure(kind, options.lines, options.jobs)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
