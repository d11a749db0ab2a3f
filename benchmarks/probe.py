"""How long the probe takes: over a bare interpreter, over its own start-up, and with a vendor child.

    python benchmarks/probe.py [RUNS]

Prints the fastest of the runs in milliseconds (other work on the machine only adds) with the median, and the bars.
The NVML child loads the compiled fake library through the real bindings where there is a C compiler, and replays the
same spec otherwise; no GPU is needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINE = ROOT / "tests" / "machines" / "rtx3090-shared"
RUN = "import sys; from willitrun_here.__main__ import main; sys.exit(main(sys.argv[1:]))"
IMPORTS = "import sys, msgspec, willitrun_here.__main__, willitrun_here.cli.probe"
BARS_MS = {"over a bare interpreter": 150.0, "work over start-up": 60.0, "with an NVML child": 250.0}


def milliseconds(argv: list[str], environment: dict[str, str], runs: int) -> tuple[float, float]:
    """Return the fastest and the median wall time of a command."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *argv], check=False, stdout=subprocess.DEVNULL, env=environment)
        times.append(1000 * (time.perf_counter() - start))
    return min(times[1:]), statistics.median(times[1:])


def library(folder: Path) -> str:
    """Compile the fake NVML, or name the spec to replay."""
    spec = importlib.util.spec_from_file_location("build_fakes", ROOT / "tests" / "fakes" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return str(build.build_nvml(folder)) if build.compiler() else str(MACHINE / "nvml.spec")


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    plain = {k: v for k, v in os.environ.items() if not k.startswith("WILLITRUN_")}
    with tempfile.TemporaryDirectory() as folder:
        nvml = library(Path(folder))
        injected = {**plain, "WILLITRUN_NVML": nvml, "WILLITRUN_FAKE_NVML": str(MACHINE / "nvml.spec")}
        both = {
            "bare interpreter": milliseconds(["-c", "pass"], plain, runs),
            "start-up (imports)": milliseconds(["-c", IMPORTS], plain, runs),
            "probe --json": milliseconds(["-c", RUN, "probe", "--json"], plain, runs),
            "probe --json, NVML child": milliseconds(["-c", RUN, "probe", "--json"], injected, runs),
        }
    for name, (fastest, median) in both.items():
        print(f"{name:28} {fastest:7.1f} ms   median {median:.1f}")
    measured = {name: fastest for name, (fastest, _) in both.items()}
    results = {
        "over a bare interpreter": measured["probe --json"] - measured["bare interpreter"],
        "work over start-up": measured["probe --json"] - measured["start-up (imports)"],
        "with an NVML child": measured["probe --json, NVML child"],
    }
    for name, value in results.items():
        print(f"{name:28} {value:7.1f} ms   bar {BARS_MS[name]:.0f}   {value / BARS_MS[name]:.2f} of it")
    print(json.dumps({"milliseconds": {k: round(v, 1) for k, v in {**measured, **results}.items()}}))


if __name__ == "__main__":
    main()
