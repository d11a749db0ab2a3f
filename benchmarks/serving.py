"""Hold load time, time to first token and slots against llama-server on this machine's processor.

    python benchmarks/serving.py [--repeats 3] [--keep FILE.jsonl]

Uses what `calibrate` knows of this machine, models with made-up weights in known shapes (nothing is downloaded; 2 GB
of disk while it runs) and the llama-server that the product would use. A model's pages are dropped before a cold start.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, structs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibrated import SERVED, host_of, served  # noqa: E402 benchmarks are not installed
from willitrun_catalog import shipped  # noqa: E402
from willitrun_catalog.quant import tensor_types  # noqa: E402
from willitrun_estimator.calibration import Corrections  # noqa: E402
from willitrun_estimator.tensors import tensors  # noqa: E402
from willitrun_here.ask import llama_server  # noqa: E402
from willitrun_here.calibrate.made_up import byte_vocabulary, metadata_of, write  # noqa: E402
from willitrun_here.calibrate.measure import disk_read  # noqa: E402
from willitrun_here.calibrate.store import read  # noqa: E402
from willitrun_probe.collect import here  # noqa: E402
from willitrun_probe.machine import Machine  # noqa: E402

MODELS = (("llama-3.2-1b-instruct", "Q4_K_M"), ("llama-3.2-1b-instruct", "Q8_0"), ("qwen3-0.6b", "Q8_0"))
SLOTS = (1, 2, 4, 8)
PROMPTS = (16, 128, 512)


class Row(Struct, frozen=True, kw_only=True):
    """One measured figure."""

    what: str
    model: str
    quant: str
    count: int
    measured: float


class Conditions(Struct, frozen=True, kw_only=True):
    """The machine and what was known of it while a model was measured."""

    cpu: str
    threads: int
    flags: tuple[str, ...]
    corrections: Corrections


def model_file(name: str, quant: str, folder: Path) -> Path:
    """Write a model that a server can start: with a vocabulary."""
    spec = shipped.model(name)
    listed = tensors(spec)
    types = tensor_types(quant, listed, spec)
    rows = [(one.name, one.shape, kind) for one, kind in zip(listed, types, strict=True)]
    return write(folder / f"{name}-{quant}.gguf", metadata_of(spec) | byte_vocabulary(spec.vocab_size), rows)


def forget(path: Path) -> None:
    """Drop a file's pages from memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Server:
    """A running llama-server."""

    def __init__(self, url: str, started_s: float) -> None:
        self.url, self.started_s = url, started_s

    def complete(self, tokens: int, output: int) -> dict[str, float]:
        """Let the server answer a prompt of so many tokens, and return its timings."""
        body = {
            "prompt": [(number * 7919) % 20_000 + 300 for number in range(tokens)],
            "n_predict": output, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0,
        }  # fmt: skip
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            found: dict[str, dict[str, float]] = json.load(answer)
        return found["timings"]


@contextmanager
def serving(program: str, path: Path, *, slots: int, threads: int) -> Iterator[Server]:
    """Start llama-server and wait until it answers; the time that took is the load time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program, "-m", str(path), "-c", str(2048 * slots), "-np", str(slots), "-t", str(threads), "--port", str(port),
        "--no-webui", "-ngl", "0",
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{program} stopped with exit code {process.returncode}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310
                    break
            except OSError:
                time.sleep(0.01)
        yield Server(url, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait()


def measured_rows(
    program: str, machine: Machine, known: Corrections, name: str, quant: str, folder: Path, repeats: int
) -> tuple[Conditions, list[Row]]:
    """Measure one model in every way."""
    path = model_file(name, quant, folder)
    threads = machine.cpu.usable_threads or 1
    disk = disk_read(folder, limit_bytes=1 << 40)
    known = structs.replace(known, disk_read_bytes_per_s={"models": disk} if disk else {})
    cpu = machine.cpu
    conditions = Conditions(cpu=cpu.name or "", threads=threads, flags=cpu.flags, corrections=known)
    found: list[tuple[str, int, float]] = []
    cold, warm = [], []
    for _ in range(repeats):
        forget(path)
        with serving(program, path, slots=1, threads=threads) as server:
            cold.append(server.started_s)
        time.sleep(PAUSE_S)
        with serving(program, path, slots=1, threads=threads) as server:
            warm.append(server.started_s)
        time.sleep(PAUSE_S)
    found += [("load cold s", 1, min(cold)), ("load warm s", 1, min(warm))]
    with serving(program, path, slots=max(SLOTS), threads=threads) as server:
        for tokens in PROMPTS:
            found.append(("ttft s", tokens, min(first_token_s(server.complete(tokens, 2)) for _ in range(repeats))))
            time.sleep(PAUSE_S)
        for count in SLOTS:
            found.append(("slots tok/s", count, max(together(server, count) for _ in range(repeats))))
            time.sleep(PAUSE_S)
    path.unlink()
    return conditions, [
        Row(what=what, model=name, quant=quant, count=count, measured=figure) for what, count, figure in found
    ]


PAUSE_S = 0.0
"""Rest after every measurement, for machines that others use too."""


def first_token_s(timings: dict[str, float]) -> float:
    """Return the seconds of the prompt and of one token."""
    return (timings["prompt_ms"] + timings["predicted_per_token_ms"]) / 1e3


def together(server: Server, count: int) -> float:
    """Return the output tokens per second of so many requests at once."""
    with ThreadPoolExecutor(count) as pool:
        timings = list(pool.map(lambda _: server.complete(4, SERVED), range(count)))
    return sum(one["predicted_per_second"] for one in timings)


def main() -> int:
    """Measure and print; 2 without llama-server or a calibration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="also write every row, a JSON object a line")
    options = parser.parse_args()
    program = llama_server()
    if program is None:
        print("no llama-server is installed", file=sys.stderr)
        return 2
    machine = here(timeout_s=20.0)
    known = read(machine.shape_hash)
    if known is None:
        print("run `willitrun-here calibrate` first", file=sys.stderr)
        return 2
    print(f"{machine.cpu.name}, {machine.cpu.usable_threads} threads\n")
    print("| model | what | count | measured | predicted | off by |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as made:
        for name, quant in MODELS:
            where, rows = measured_rows(program, machine, known, name, quant, Path(made), options.repeats)
            host = host_of(where.cpu, where.threads, where.flags, where.corrections)
            for one in rows:
                told = served(one.what, one.model, one.quant, one.count, host) or 0.0
                cells = (f"{name} {quant}", one.what, one.count, f"{one.measured:.3g}", f"{told:.3g}")
                print("| " + " | ".join(map(str, cells)) + f" | {told / one.measured - 1:+.0%} |", flush=True)
            if options.keep:
                with options.keep.open("ab") as file:
                    file.writelines(msgspec.json.encode(one) + b"\n" for one in (where, *rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
