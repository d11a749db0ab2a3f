"""Size of the fit page and time to render it after the answer, against the bars of 200 kB and 150 ms.

    python benchmarks/page.py

Each page is rendered by three fresh processes, so that importing the template engine and compiling the templates
counts. The best of the three is held against the bar, in processor time, because other work on the machine only ever
adds; the time by the clock stands beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here.ask import ask, open_model
from willitrun_here.machines import open_machine

MOST_BYTES = 200_000
MOST_S = 0.150
QUESTIONS = (
    ("kimi-linear", "NVIDIA A100 40GB, 128 GiB RAM"),
    ("kimi-linear", "AMD Instinct MI100 32GB, 64 GiB RAM"),
    ("llama-3.3-70b", "4x NVIDIA GeForce RTX 3090, 256 GiB RAM"),
)


def render_once(file: Path) -> None:
    """Render the answer of a file in this fresh process; prints processor and clock time, a later time, and bytes."""
    answer = msgspec.json.decode(file.read_bytes(), type=Answer)
    start, start_cpu = time.perf_counter(), time.process_time()
    from willitrun_here.render import page  # noqa: PLC0415 - importing it is part of what is measured

    html = page.render(answer)
    first_s, first_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    start = time.perf_counter()
    page.render(answer)
    print(first_cpu_s, first_s, time.perf_counter() - start, len(html.encode()))


def measure(model: str, machine: str, folder: Path) -> bool:
    """Answer once, render three times, and print the ratios; returns whether both bars are kept."""
    file = folder / "answer.json"
    file.write_bytes(msgspec.json.encode(ask(open_machine(machine), open_model(model), Request())))
    command = [sys.executable, __file__, str(file)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
    first_cpu_s, first_s, again_s = (min(float(run[index]) for run in runs) for index in range(3))
    size = int(runs[0][3])
    print(f"{model} on {machine}")
    print(f"  page          {size / 1000:6.0f} kB  {size / MOST_BYTES:5.2f} of the bar")
    clock = f"by the clock {first_s * 1000:.0f} ms"
    print(f"  first render  {first_cpu_s * 1000:6.0f} ms  {first_cpu_s / MOST_S:5.2f} of the bar, {clock}")
    print(f"  again         {again_s * 1000:6.1f} ms  {again_s / MOST_S:5.2f} of the bar")
    return size <= MOST_BYTES and first_cpu_s <= MOST_S


def main() -> int:
    """Measure every standing question; with a file, render that answer once."""
    if len(sys.argv) == 2:
        render_once(Path(sys.argv[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if min(measure(*question, Path(folder)) for question in QUESTIONS) else 1


if __name__ == "__main__":
    sys.exit(main())
