"""Hold predictions before and after `calibrate` against llama-bench on this machine.

    python benchmarks/calibrate.py [--rounds 3] [--folder FOLDER] [--keep FILE.jsonl]

`calibrate` sees one type at a time in a shape of its own; judged are mixes of types in the shapes of known models, with
made-up weights, so nothing is downloaded (7 GB of disk while it runs). Every round calibrates anew and then measures
every model; leave the machine alone meanwhile. llama-bench is looked for as the product does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibrated import OUTPUT, PROMPT, predicted  # noqa: E402 benchmarks are not installed
from willitrun_catalog import shipped  # noqa: E402
from willitrun_catalog.quant import tensor_types  # noqa: E402
from willitrun_estimator.calibration import Corrections  # noqa: E402
from willitrun_estimator.hardware import host  # noqa: E402
from willitrun_estimator.tensors import tensors  # noqa: E402
from willitrun_here.calibrate import store  # noqa: E402
from willitrun_here.calibrate.kernels import bench  # noqa: E402
from willitrun_here.calibrate.made_up import Value, metadata_of, write  # noqa: E402
from willitrun_here.calibrate.measure import measure as measured  # noqa: E402
from willitrun_here.cli.calibrate import llama_bench  # noqa: E402
from willitrun_probe.collect import here  # noqa: E402
from willitrun_probe.machine import Machine  # noqa: E402

MODELS = (
    ("llama-3.2-1b-instruct", "Q4_K_M"),
    ("llama-3.2-1b-instruct", "Q8_0"),
    ("llama-3.2-1b-instruct", "IQ4_XS"),
    ("smollm2-360m-instruct", "F16"),
    ("smollm2-1.7b-instruct", "Q5_K_M"),
    ("qwen3-0.6b", "Q8_0"),
    ("qwen2.5-1.5b-instruct", "Q3_K_M"),
    ("granite-3.1-1b-a400m-instruct", "Q4_K_M"),
)
MORE: dict[str, dict[str, Value]] = {
    "granitemoe": {
        "granitemoe.attention.scale": 0.0156, "granitemoe.embedding_scale": 12.0, "granitemoe.residual_scale": 0.22,
        "granitemoe.logit_scale": 6.0,
    },
}  # fmt: skip
"""What an architecture asks for besides shapes (llama.cpp, src/models/granite.cpp)."""


class Row(Struct, frozen=True, kw_only=True):
    """One model in one round: tokens per second, measured and predicted."""

    round: int
    model: str
    quant: str
    test: str
    measured: float
    before: float
    after: float
    load: float


class Round(Struct, frozen=True, kw_only=True):
    """What `calibrate` found before a round's rows."""

    cpu: str
    threads: int
    flags: tuple[str, ...]
    corrections: Corrections


def model_file(name: str, quant: str, folder: Path) -> Path:
    """Write a model of a known shape with made-up weights, in the types that llama-quantize would choose."""
    path = folder / f"{name}-{quant}.gguf"
    if not path.exists():
        spec = shipped.model(name)
        listed = tensors(spec)
        types = tensor_types(quant, listed, spec)
        rows = [(one.name, one.shape, kind) for one, kind in zip(listed, types, strict=True)]
        write(path, metadata_of(spec) | MORE.get(spec.architecture, {}), rows)
    return path


def measure(machine: Machine, program: str, folder: Path, number: int) -> tuple[Round, list[Row]]:
    """Calibrate once, then run every model."""
    known = measured(
        machine, say=lambda text: print(text, file=sys.stderr), now=str(number), program=program, folder=folder
    )
    after = store.with_measurements(machine, known)
    threads = machine.cpu.usable_threads or 1
    rows = []
    for name, quant in MODELS:
        path = model_file(name, quant, folder)
        found = bench(
            program, path, gpu_layers=0, threads=threads, prompt=PROMPT, output=OUTPUT, more=("-nopo", "1"), limit_s=300
        )
        first, then = (predicted(name, quant, host(one)) for one in (machine, after))
        rows += [
            Row(
                round=number, model=name, quant=quant, test=test, measured=found[test], before=first[test],
                after=then[test], load=os.getloadavg()[0],
            )
            for test in ("decode", "prefill")
            if test in found
        ]  # fmt: skip
        time.sleep(PAUSE_S)
    cpu = machine.cpu
    return Round(cpu=cpu.name or "", threads=threads, flags=cpu.flags, corrections=known), rows


PAUSE_S = 0.0
"""Rest after every model, for machines that others use too."""


def table(rows: list[Row]) -> str:
    """Return the medians over the rounds as a Markdown table."""
    lines = ["| model | test | measured | before | off by | after | off by |", "| --- " * 7 + "|"]
    errors: dict[tuple[str, str], list[float]] = {}
    for test in ("decode", "prefill"):
        for key in dict.fromkeys((row.model, row.quant) for row in rows):
            mine = [row for row in rows if (row.model, row.quant, row.test) == (*key, test)]
            if not mine:
                continue
            measured = median(row.measured for row in mine)
            cells = [f"{key[0]} {key[1]}", test, f"{measured:.1f}"]
            for when in ("before", "after"):
                off = median(getattr(row, when) / row.measured - 1 for row in mine)
                errors.setdefault((test, when), []).append(abs(off))
                cells += [f"{median(getattr(row, when) for row in mine):.1f}", f"{off:+.1%}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| median (largest) error | before | after |", "| --- | --- | --- |"]
    lines += [
        f"| {test} | " + " | ".join(f"{median(errors[test, when]):.1%} ({max(errors[test, when]):.1%})" for when in
                                    ("before", "after")) + " |"
        for test in ("decode", "prefill") if (test, "before") in errors
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 2 without llama-bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models are written, and stay")
    parser.add_argument("--keep", type=Path, help="also write every calibration and every row, a JSON object a line")
    options = parser.parse_args()
    program = llama_bench()
    if program is None:
        print("no llama-bench is installed", file=sys.stderr)
        return 2
    machine = here(timeout_s=20.0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        for number in range(options.rounds):
            found, more = measure(machine, program, folder, number)
            rows += more
            if options.keep:
                with options.keep.open("ab") as file:
                    for one in (found, *more):
                        file.write(msgspec.json.encode(one) + b"\n")
            print(table(more), "\n", file=sys.stderr)
    print(f"{machine.cpu.name}, {machine.cpu.usable_threads} threads, {options.rounds} rounds\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
