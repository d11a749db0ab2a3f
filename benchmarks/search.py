"""How long a full search takes (all quantizations, one model, two GPUs), and commands beside a bare interpreter.

    python benchmarks/search.py

Prints the fastest of several repeats in one process, and ratios of whole processes to `python -c pass`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from willitrun_catalog.find import find_model
from willitrun_estimator.answer import quants_to_try, searched, winner
from willitrun_estimator.compute import model as layouts
from willitrun_estimator.hardware import devices
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

REPEATS = 9
CASES = (
    ("llama-3.1-8b", "2x RTX 3090, 64 GiB RAM"),
    ("llama-3.3-70b", "2x RTX 3090, 64 GiB RAM"),
    ("qwen3-30b-a3b", "RTX 3090, RTX 3060, 64 GiB RAM"),
    ("gpt-oss-120b", "2x RTX 4090, 128 GiB RAM"),
    ("qwen3-235b-a22b", "2x RTX 3090, 256 GiB RAM"),
)
COMMANDS = (
    ("--version",),
    ("probe", "--json"),
    ("check", "llama-3.1-8b", "--machine", "RTX 3090, 64 GiB RAM", "--json"),
    ("recommend", "--json"),
)


def one_search(model: str, machine: str) -> tuple[float, float]:
    """Return the least processor seconds of a search from nothing, and of one with exact memory of what it picks."""
    spec, request = find_model(model).spec, Request()
    plan_on = devices(open_machine(machine), request, sheet_of)
    seconds = []
    for _ in range(REPEATS):
        layouts._SHAPES.clear()  # noqa: SLF001 - layouts that were planned before would cost nothing
        start = time.process_time()
        question = Question(spec, plan_on, request)
        quants = quants_to_try(spec, request, plan_on)
        found = searched(question, quants, every=False)
        looked = time.process_time()
        winner(question, quants, found)
        seconds.append((looked - start, time.process_time() - start))
    return min(one for one, _ in seconds), min(one for _, one in seconds)


def process(arguments: list[str]) -> float:
    """Return the median seconds of a whole process."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(arguments, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> int:
    """Print the table."""
    for model, machine in CASES:
        quick, exact = one_search(model, machine)
        print(f"search {model:16} {machine:34} {quick * 1000:7.1f} ms, {exact * 1000:7.1f} ms with exact memory")
    bare = process([sys.executable, "-c", "pass"])
    print(f"bare interpreter {bare * 1000:.1f} ms")
    for command in COMMANDS:
        took = process([sys.executable, "-m", "willitrun_here", *command])
        print(f"{' '.join(command)[:60]:60} {took * 1000:7.1f} ms  {took / bare:5.1f} x bare")
    return 0


if __name__ == "__main__":
    sys.exit(main())
