"""Timing whole processes side by side, and the sections of docs/performance.md that benchmarks write."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"


class Run(NamedTuple):
    """One process."""

    wall_s: float
    cpu_s: float
    """Of the process and the children it waited for."""
    peak_bytes: int


class Timing(NamedTuple):
    """Several runs of one command."""

    runs: tuple[Run, ...]

    @property
    def fastest_s(self) -> float:
        """The fastest run: other work on the machine only ever adds."""
        return min(run.wall_s for run in self.runs)

    @property
    def median_s(self) -> float:
        """The median by the clock."""
        return statistics.median(run.wall_s for run in self.runs)

    @property
    def cpu_s(self) -> float:
        """Least processor time."""
        return min(run.cpu_s for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """Most memory of any run."""
        return max(run.peak_bytes for run in self.runs)


def run_once(argv: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run a command to its end, its output thrown away; raises RuntimeError when it fails."""
    start = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}")
    return Run(took, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def alternate(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], runs: int) -> dict[str, Timing]:
    """Run all commands in turn, as often as asked, after a first round that fills caches and is not counted."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for counted in range(runs + 1):
        for name, argv in commands.items():
            one = run_once(argv, environment)
            if counted:
                found[name].append(one)
    return {name: Timing(tuple(timed)) for name, timed in found.items()}


def this_machine() -> str:
    """Return the date, the machine and how busy it is, as one sentence."""
    model = "an unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        model = match[1].strip()
    load = os.getloadavg()[0]
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return (
        f"{today}, {len(os.sched_getaffinity(0))} cores of {model}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} when it ended."
    )


def write_section(name: str, text: str) -> None:
    """Replace one section of docs/performance.md, which stands between two comments."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = DOCUMENT.read_text(encoding="utf-8")
    section = f"{opening}\n{text.strip()}\n{closing}"
    pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    DOCUMENT.write_text(pattern.sub(lambda _: section, whole), encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(value: float, bar: float, *, least: bool = False) -> str:
    """Say whether a bar is met."""
    return "met" if (value >= bar if least else value <= bar) else "missed"


def environment_with_home(home: Path) -> dict[str, str]:
    """Return this process's environment with a home of its own, so that nothing kept there counts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WILLITRUN", "XDG_", "PYTHON"))}
    return {**kept, "HOME": str(home)}


def python_venv(folder: Path, requirements: Sequence[str], *, refresh: bool) -> Path:
    """Install into a virtual environment of its own, which holds nothing else; returns its `bin`."""
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        refresh = True
    if refresh:
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--upgrade"]
        subprocess.run([*pip, *requirements], check=True, stderr=subprocess.DEVNULL)
    return folder / "bin"


def installed_bytes(folder: Path) -> int:
    """Return what a virtual environment takes on disk, without the interpreter's own files."""
    own = ("python", "activate", "Activate", "pip")
    files = [*(folder / "lib").rglob("*"), *(one for one in (folder / "bin").iterdir() if not one.name.startswith(own))]
    return sum(file.lstat().st_blocks * 512 for file in files if not file.is_dir())


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """Return the least processor time of some repeats, in seconds."""
    took = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)
