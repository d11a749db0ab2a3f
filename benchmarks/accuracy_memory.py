"""Predicted against measured memory: every row of tests/truth/llamacpp_memory.csv, per architecture and term.

`python benchmarks/accuracy.py memory [--write] [--worst N]` prints the tables; `--write` also puts them and a plot
into docs/.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct, structs

from willitrun_catalog.shipped import model
from willitrun_estimator.compute.build import build_of
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import weight_profile

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "tests" / "truth" / "llamacpp_memory.csv"
LOADS = ROOT / "tests" / "truth" / "real_gpu_loads.csv"
MIB = 1 << 20


class Case(Struct, frozen=True, kw_only=True):
    """One measured plan: what was asked, and bytes per device (GPUs in order, the host last)."""

    model: str
    quant: str
    placement: Placement
    settings: Settings
    gpus: int
    weights: tuple[int, ...]
    cache: tuple[int, ...]
    compute: tuple[int, ...]

    @property
    def label(self) -> str:
        """What distinguishes the row."""
        s, p = self.settings, self.placement
        return (
            f"{self.model} {self.quant} {self.gpus} GPU -ngl {p.gpu_layers} --n-cpu-moe {p.cpu_moe_layers} "
            f"-c {s.context_tokens} -ctk {s.kv_type_k} -fa {int(s.flash_attention)} -ub {s.ubatch} -np {s.parallel}"
        )


class Difference(Struct, frozen=True, kw_only=True):
    """One term of one device, predicted and measured."""

    case: Case
    architecture: str
    term: str
    device: str
    predicted: int
    measured: int

    @property
    def relative(self) -> float:
        """Error as a share of what was measured."""
        return (self.predicted - self.measured) / self.measured if self.measured else float(self.predicted != 0)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


def read_cases(path: Path = ROWS) -> Iterator[Case]:
    """Read the measured rows."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            split = tuple(int(part) for part in row["gpu_layers"].split("+"))
            yield Case(
                model=row["model"],
                quant=row["quant"],
                gpus=int(row["gpus"]),
                placement=Placement(
                    gpu_layers=sum(split),
                    split=split if int(row["gpus"]) else (),
                    cpu_moe_layers=int(row["cpu_moe_layers"]),
                    kv_on_host=row["kv_on_host"] == "1",
                ),
                settings=Settings(
                    context_tokens=int(row["context_tokens"]),
                    kv_type_k=row["kv_type_k"],
                    kv_type_v=row["kv_type_v"],
                    flash_attention=row["flash_attention"] == "1",
                    ubatch=int(row["ubatch"]),
                    parallel=int(row["parallel"]),
                    kv_unified=row["kv_unified"] == "1",
                    swa_full=row["swa_full"] == "1",
                    logit_rows=int(row["logit_rows"]) if row["logit_rows"] else None,
                ),
                weights=_numbers(row["weights"]),
                cache=_numbers(row["cache"]),
                compute=_numbers(row["compute"]),
            )


def machine(gpus: int) -> Devices:
    """Describe the planner's view of the measured machine: equal CUDA devices and a host."""
    gpu = Device(
        name="GPU",
        backend="cuda",
        family="ampere",
        memory_total_bytes=1 << 40,
        memory_free_bytes=1 << 40,
        bandwidth_bytes_per_s=None,
        multiprocessors=82,
    )
    host = Host(ram_total_bytes=1 << 40, ram_available_bytes=1 << 40, bandwidth_bytes_per_s=None, threads=8)
    return Devices(name="measured", gpus=(gpu,) * gpus, host=host)


def differences(cases: Iterable[Case]) -> Iterator[Difference]:
    """Hold every case against the prediction, term by term."""
    profiles: dict[tuple[str, str], object] = {}
    for case in cases:
        spec = model(case.model)
        weights = profiles.get((case.model, case.quant))
        if weights is None:
            weights = profiles[case.model, case.quant] = weight_profile(spec, case.quant)
        uses = MemoryModel(weights, machine(case.gpus), case.settings).uses(  # type: ignore[arg-type]
            case.placement, case.settings.context_tokens
        )
        for index, use in enumerate(uses):
            device = "GPU" if use.kind == "gpu" else ("host" if case.gpus else "CPU")
            cached = use.kv_cache_bytes + use.recurrent_bytes
            pairs = {
                "weights": (use.weights_bytes, case.weights[index]),
                "cache": (cached, case.cache[index]),
                "compute": (use.compute_bytes, case.compute[index]),
                "total": (
                    use.weights_bytes + cached + use.compute_bytes,
                    case.weights[index] + case.cache[index] + case.compute[index],
                ),
            }
            for term, (predicted, measured) in pairs.items():
                yield Difference(
                    case=case,
                    architecture=spec.architecture,
                    term=term,
                    device=device,
                    predicted=predicted,
                    measured=measured,
                )


class Load(Struct, frozen=True, kw_only=True):
    """One term of the first GPU of a load that somebody logged, in MiB as printed."""

    source: str
    label: str
    term: str
    predicted: float
    measured: float


def even_split(units: int, gpus: int) -> tuple[int, ...]:
    """Share units over equal GPUs as `llama_model::load_tensors` does: unit i goes where i / units falls."""
    places = [index * gpus // units for index in range(units)]
    return tuple(places.count(gpu) for gpu in range(gpus))


def read_loads(path: Path = LOADS) -> Iterator[Load]:
    """Hold logged loads of real GPUs against the prediction for their build and backend."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        for row in rows:
            spec = model(row["model"])
            weights = weight_profile(spec, row["quant"])
            gpus = int(row["gpus"])
            planned = machine(gpus)
            planned = structs.replace(
                planned, gpus=tuple(structs.replace(g, backend=row["backend"]) for g in planned.gpus)
            )
            settings = Settings(
                context_tokens=int(row["context_tokens"]),
                kv_type_k=row["kv_type"],
                kv_type_v=row["kv_type"],
                flash_attention=row["flash_attention"] == "1",
                ubatch=int(row["ubatch"]),
                parallel=int(row["parallel"]),
                kv_unified=row["kv_unified"] == "1",
            )
            units = int(row["gpu_layers"]) if row["gpu_layers"] else len(spec.layers) + 1
            placement = Placement(gpu_layers=units, split=even_split(units, gpus))
            build = build_of(int(row["build"]) if row["build"] else None)
            use = MemoryModel(weights, planned, settings, build).uses(placement, settings.context_tokens)[0]
            cached = use.kv_cache_bytes + use.recurrent_bytes
            predicted = {
                "weights": use.weights_bytes / MIB,
                "cache": cached / MIB,
                "compute": use.compute_bytes / MIB,
            }
            measured = {term: float(row[term]) for term in predicted if row[term]}
            label = f"{row['model']} {row['quant']} -c {row['context_tokens']} on {row['device']}"
            for term, said in measured.items():
                yield Load(source=row["source"], label=label, term=term, predicted=predicted[term], measured=said)
            if len(measured) == len(predicted):
                yield Load(
                    source=row["source"],
                    label=label,
                    term="total",
                    predicted=sum(predicted.values()),
                    measured=sum(measured.values()),
                )


def summary(found: list[Difference]) -> str:
    """Give count, share that is exact, median, 90th percentile and extremes of the relative error."""
    errors = sorted(abs(one.relative) for one in found)
    exact = sum(one.predicted == one.measured for one in found)
    under = min(one.relative for one in found)
    return (
        f"{len(found):6d} {exact / len(found):7.1%} {statistics.median(errors):8.3%} "
        f"{errors[int(0.9 * (len(errors) - 1))]:8.3%} {errors[-1]:8.2%} {under:8.2%}"
    )


def report(found: list[Difference], worst: int) -> str:
    """Write the tables: per term and device, per architecture, worst rows."""
    lines = [f"{'term':10}{'device':8}{'rows':>6}{'exact':>8}{'median':>9}{'p90':>9}{'worst':>9}{'under':>9}"]
    groups: dict[tuple[str, ...], list[Difference]] = defaultdict(list)
    for one in found:
        groups[one.term, one.device].append(one)
    lines += [f"{term:10}{device:8}{summary(group)}" for (term, device), group in groups.items()]
    heading = f"{'rows':>6}{'exact':>8}{'median':>9}{'p90':>9}{'worst':>9}{'under':>9}"
    lines += ["", "compute buffers per architecture (GPU)", f"{'architecture':18}{heading}"]
    kinds: dict[str, list[Difference]] = defaultdict(list)
    for one in found:
        if one.term == "compute" and one.device == "GPU":
            kinds[one.architecture].append(one)
    lines += [f"{name:18}{summary(kinds[name])}" for name in sorted(kinds)]
    lines += ["", f"the {worst} worst compute buffers and totals of a GPU (MiB)"]
    shown = [one for one in found if one.device == "GPU" and one.term in {"compute", "total"}]
    shown.sort(key=lambda one: -abs(one.relative))
    lines += [
        f"{one.relative:+8.2%} {one.term:8}{one.predicted / MIB:10.2f} {one.measured / MIB:10.2f}  {one.case.label}"
        for one in shown[:worst]
    ]
    return "\n".join(lines) + "\n"


COLOURS = {"weights": "#4477aa", "cache": "#228833", "compute": "#ee6677", "total": "#bbbbbb"}
WIDTH, HEIGHT, EDGE = 640, 480, 56


def plot(found: list[Difference]) -> str:
    """Draw predicted against measured bytes of every device, both axes logarithmic, as SVG."""
    points = {
        (one.term, round(math.log10(one.measured), 2), round(math.log10(one.predicted), 2))
        for one in found
        if one.term != "total" and one.measured > MIB and one.predicted > 0
    }
    low, high = 6.0, max(measured for _, measured, _ in points) + 0.2

    def place(value: float, span: float) -> float:
        return (value - low) / (high - low) * span

    def across(value: float) -> float:
        return EDGE + place(value, WIDTH - 2 * EDGE)

    def upwards(value: float) -> float:
        return HEIGHT - EDGE - place(value, HEIGHT - 2 * EDGE)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f"<title>Predicted against measured memory, {len(found)} terms</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        (
            f'<line x1="{across(low):.1f}" y1="{upwards(low):.1f}" '
            f'x2="{across(high):.1f}" y2="{upwards(high):.1f}" stroke="#999"/>'
        ),
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        name = {6: "1 MB", 7: "10 MB", 8: "100 MB", 9: "1 GB", 10: "10 GB", 11: "100 GB", 12: "1 TB"}[power]
        parts += [
            f'<text x="{across(power):.1f}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{name}</text>',
            f'<text x="{EDGE - 6}" y="{upwards(power) + 4:.1f}" text-anchor="end">{name}</text>',
        ]
    parts += [
        f'<circle cx="{across(measured):.1f}" cy="{upwards(predicted):.1f}" r="2.2" '
        f'fill="{COLOURS[term]}" fill-opacity="0.55"/>'
        for term, measured, predicted in sorted(points)
    ]
    for number, term in enumerate(("weights", "cache", "compute")):
        top = EDGE + 16 * number
        parts.append(f'<circle cx="{EDGE + 12}" cy="{top}" r="4" fill="{COLOURS[term]}"/>')
        parts.append(f'<text x="{EDGE + 22}" y="{top + 4}">{term}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">measured by llama.cpp</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">predicted</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="accuracy.py memory", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables and the plot into docs/")
    parser.add_argument("--worst", type=int, default=15)
    parser.add_argument("--model", help="only this model")
    options = parser.parse_args(arguments)
    cases = [case for case in read_cases() if options.model in {None, case.model}]
    found = list(differences(cases))
    text = report(found, options.worst)
    text += "\nloads that real GPUs logged (MiB)\n"
    text += "".join(
        f"{(load.predicted - load.measured) / load.measured:+8.2%} {load.term:8}{load.predicted:10.2f}"
        f"{load.measured:10.2f}  {load.label}\n"
        for load in read_loads()
    )
    sys.stdout.write(text)
    if options.write:
        (ROOT / "docs" / "accuracy-memory.txt").write_text(text, encoding="utf-8")
        (ROOT / "docs" / "accuracy-memory.svg").write_text(plot(found), encoding="utf-8")
    return 0
