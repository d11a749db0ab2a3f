"""Turn a published table of measured speeds into the product's own rows: `data/measured_speeds.csv`.

    python scripts/import_speeds.py TABLE.csv [--out FILE]

The table has one measurement a line with the columns `id, runtime, backend, gpu, gpu_count, gpu_mem_gb, cpu, ram_type,
model, quant, kv_type, ngl_or_offload, batch_concurrency, test, n_tokens, depth, tok_s, source_url, source_date, notes`.
Rows of other runtimes than llama.cpp, its fork and ollama are left out. Rows that are kept but must not be fitted carry
the reason in `skip`; docs/speed.md says why.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path

from willitrun_catalog import shipped
from willitrun_catalog.errors import CatalogError
from willitrun_catalog.find import find_datasheet, find_model
from willitrun_catalog.model import Recurrent
from willitrun_estimator.throughput.rates import type_class
from willitrun_estimator.throughput.work import Work

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.speed_cases import case  # noqa: E402 scripts are not installed

NAMES = json.loads((Path(__file__).parent / "speed_names.json").read_text())
OUT = ROOT / "estimator/willitrun_estimator/data/measured_speeds.csv"
COLUMNS = [
    "gpu",
    "gpus",
    "backend",
    "engine",
    "model",
    "quant",
    "kv",
    "flash",
    "gpu_layers",
    "cpu_moe",
    "op_offload",
    "ubatch",
    "slots",
    "host",
    "threads",
    "bandwidth_gbs",
    "basis",
    "flags",
    "test",
    "tokens",
    "depth",
    "tok_s",
    "date",
    "source",
    "skip",
]
ENGINES = ("llama.cpp", "ollama", "ik_llama.cpp")
GIB = 1024**3
WHOLE_BATCH = 512
"""Tokens that llama.cpp computes at once unless told otherwise; a batch cannot hold less than its micro-batch."""
TENSOR_CORES = frozenset(["volta", "turing", "a100", "ampere", "ada", "hopper", "blackwell", "blackwell-dc"])
"""Families whose GPUs all have matrix units for 16 bit (CUDA C++ Programming Guide, compute capabilities)."""
VULKAN_SHARE = 0.93
"""Beyond it two 32 GB cards fell from 70 to 9 tokens/s under Vulkan and not under ROCm."""


def gpu_name(name: str, memory_gb: str) -> str | None:
    """Name the catalog's accelerator for a published spelling, None where it has none."""
    known = NAMES["gpus"].get(name)
    if known:
        return str(known)
    text = re.sub(r"^Apple (.*) (\d+)c$", r"Apple \1 (\2-core GPU)", name)
    text = re.sub(r"\s+(?:Laptop )?GPU$", lambda hit: " Laptop" if "Laptop" in hit[0] else "", text)
    text = re.sub(r"\bMobile\b", "Laptop", text)
    text = re.sub(r"\bSuper\b", "SUPER", text).replace("Titan", "TITAN")
    sheets = {sheet.name for sheet in shipped.datasheets()}
    for prefix in ("", "NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD Instinct ", "Intel ", "NVIDIA Tesla "):
        for suffix in ("", f" {float(memory_gb):g} GB" if memory_gb else ""):
            if prefix + text + suffix in sheets:
                return prefix + text + suffix
    try:
        return find_datasheet(text, memory_bytes=int(float(memory_gb) * GIB) if memory_gb else None).name
    except CatalogError:
        return None


def model_name(name: str) -> str | None:
    """Name the catalog's model for a published spelling, None where it has none."""
    try:
        return find_model(NAMES["models"].get(name, name)).spec.name
    except CatalogError:
        return None


def host_of(row: dict[str, str]) -> tuple[str, str, str, str, str]:
    """Return name, threads, bandwidth in GB/s, its basis and flags of a row's host, as far as they are known."""
    name, ram = row["cpu"], row["ram_type"]
    if not name and "4070 Laptop" in row["gpu"]:
        name = "RTX 4070 Laptop host"
    threads = bandwidth = basis = flags = ""
    for pattern, cores, rate, kind, known in NAMES["hosts"]:
        if name and re.search(pattern, name):
            threads, flags = str(cores), known
            bandwidth, basis = (f"{rate:g}", kind) if kind == "measured" else (sustained(rate, kind), "assumed")
            break
    measured = re.search(r"\(([\d.]+) GB/s measured\)", ram)
    if not bandwidth and measured:
        bandwidth, basis = measured[1], "measured"
    if not bandwidth:
        found = next(((rate, channels) for words, rate, channels in NAMES["ram"] if words in ram), None)
        bandwidth, basis = (sustained(*found), "assumed") if found else ("", "")
    said = re.search(r"\b(\d+) (?:CPU )?threads", row["notes"] + " " + row["ngl_or_offload"])
    return name, said[1] if said else threads, bandwidth, basis, flags


def sustained(peak_gbs: float, channels: int) -> str:
    """Return what matrix products read of a memory's peak: measured offload rows give 0.85, 0.7 and 0.5."""
    share = {1: 0.85, 2: 0.7}.get(channels, 0.5)
    return f"{peak_gbs * share:.4g}"


def layers_of(text: str, backend: str) -> tuple[str, str]:
    """Return `gpu_layers` (`all`, a number, or empty for no GPU) and how many blocks keep experts on the host.

    `+N` are N blocks beyond those that are on the host whole (given as tensor overrides of the GPU's blocks).
    """
    if backend == "CPU" or text == "cpu-only":
        return "", "0"
    if text.startswith("full"):
        return "all", "0"
    layers = re.search(r"\bngl (\d+)", text)
    of = re.search(r"\bngl (\d+) of (\d+)", text)
    experts = re.search(r"n-cpu-moe (\d+)|experts of (\d+) layers", text)
    every = re.search(r"all experts on CPU", text)
    moved = "999" if every else (experts[1] or "+" + experts[2]) if experts else "0"
    if layers is None:
        return ("all", moved) if experts or every else ("?", moved)
    units = int(layers[1])
    return ("all" if of and units > int(of[2]) else str(units)), moved


def reason_to_skip(row: dict[str, str], model: str | None, gpu: str | None) -> str:
    """Say why a row must not be fitted, empty when it may."""
    notes, url, offload = row["notes"], row["source_url"], row["ngl_or_offload"]
    rules = (
        (model is None, "model unknown to the catalog"),
        (bool(row["gpu"]) and gpu is None, "GPU unknown to the catalog"),
        (row["runtime"] == "ik_llama.cpp", "fork with its own CPU kernels"),
        (row["batch_concurrency"] not in {"", "1"}, "several streams"),
        ("4x3090-llm" in url, "power limited to 220 W, wall clock"),
        ("AlexsJones/llmfit" in url, "wall clock, prompt included"),
        ("-8Q" in row["gpu"] or "-48Q" in row["gpu"], "slice of a virtual GPU"),
        (bool(re.search("spilled|thrash|overflow|borderline", notes + offload)), "more than the GPU's memory"),
        (row["source_date"][:7] < DELTA_NET_MONTH and has_delta_net(model), "kernels before their merge"),
        (bool(re.search(r"Raspberry|\bPi \d|CM5|RISC|HiFive|DC-ROMA", row["cpu"])), "single-board host"),
        ("Q8400" in row["cpu"], "processor without AVX2"),
        ("pp128 with ubatch 1" in notes, "prompt as single tokens"),
        (row["gpu"].startswith("Apple") and row["backend"] == "Vulkan", "Vulkan through a translation layer"),
        ("sm-row" in notes, "row split"),
        ("2 vCPU" in notes, "host with one core"),
        ("partial (auto)" in offload or "layers 32+" in offload, "placement not stated"),
        ("mix (" in row["quant"], "unknown mix"),
    )
    return next((reason for holds, reason in rules if holds), "")


DELTA_NET_MONTH = "2026-03"
"""From then on llama.cpp computes delta nets in one kernel, which were 23 (github.com/ggml-org/llama.cpp, pull requests
19504 and 20091)."""


def has_delta_net(model: str | None) -> bool:
    """Tell whether a catalog model has gated delta nets or Kimi's."""
    mixers = (mixer for layer in find_model(model).spec.layers for mixer in layer.mixers) if model else ()
    return any(isinstance(mixer, Recurrent) and mixer.kind in {"gated-delta-net", "kda"} for mixer in mixers)


def convert(row: dict[str, str]) -> dict[str, str] | None:
    """Return the product's row of a published one, None for other runtimes."""
    if row["runtime"] not in ENGINES:
        return None
    gpu = gpu_name(row["gpu"], row["gpu_mem_gb"]) if row["gpu"] else None
    model = model_name(row["model"])
    host, threads, bandwidth, basis, flags = host_of(row)
    layers, experts = layers_of(row["ngl_or_offload"], row["backend"])
    ubatch = re.search(r"ubatch (\d+)", row["notes"])
    batch = re.search(r"n_batch (\d+)", row["notes"])
    if batch and not ubatch and int(batch[1]) < WHOLE_BATCH:
        ubatch = batch
    found = {
        "gpu": gpu or row["gpu"],
        "gpus": row["gpu_count"] if row["gpu"] else "0",
        "backend": row["backend"],
        "engine": row["runtime"],
        "model": model or row["model"],
        "quant": NAMES["quants"].get(row["quant"], row["quant"]),
        "kv": row["kv_type"].split("/")[0] if "auto" not in row["kv_type"] else "",
        "flash": row["flash_attn"],
        "gpu_layers": layers,
        "cpu_moe": experts,
        "op_offload": "0" if "-nopo 1" in row["notes"] else "",
        "ubatch": ubatch[1] if ubatch else "",
        "slots": row["batch_concurrency"] or "1",
        "host": host,
        "threads": threads,
        "bandwidth_gbs": bandwidth,
        "basis": basis,
        "flags": flags,
        "test": row["test"],
        "tokens": row["n_tokens"],
        "depth": "" if row["depth"] in {"", "0"} else row["depth"],
        "tok_s": row["tok_s"],
        "date": row["source_date"],
        "source": row["source_url"],
        "skip": reason_to_skip(row, model, gpu),
    }
    if not found["skip"] and outgrown(found, row["gpu_mem_gb"]):
        found["skip"] = "more than the GPU's memory"
    if not found["skip"] and without_matrix_units(found):
        found["skip"] = "matrix units not used"
    return found


OWN_MODELS = (
    (r"gemma3-270m", "gemma-3-270m-it"),
    (r"llama-3\.2-1b", "llama-3.2-1b-instruct"),
    (r"llama-3\.2-3b", "llama-3.2-3b-instruct"),
    (r"qwen2\.5-7b", "qwen2.5-7b-instruct"),
    (r"olmoe", "olmoe-1b-7b-0924-instruct"),
    (r"granite", "granite-4.0-h-tiny"),
)
OWN_SOURCE = (
    "llama-bench 0c1e57098 (ggml 0.25.3) on two AVX-512 cores of a shared AMD EPYC machine, best of the repeats"
)


def own_readings(lines: list[dict[str, object]]) -> dict[tuple[object, object], float]:
    """Return the memory bandwidth of every model's runs by threads: what was read right before and right after them."""
    found = {}
    for one in lines:
        readings = [
            value for name in ("read_gbs_before", "read_gbs_after") if isinstance(value := one.get(name), float)
        ]
        if readings:
            found[one["model"], one["threads"]] = sum(readings) / len(readings)
    return found


def own_row(one: dict[str, object], readings: dict[tuple[object, object], float]) -> dict[str, str] | None:
    """Return the product's row of a llama-bench run on a CPU (a JSON object a line), None for other lines."""
    if one.get("kind") != "bench":
        return None
    file = str(one["model"])
    test = re.fullmatch(r"(pp|tg)(\d+)", str(one["test"]))
    model = next((name for pattern, name in OWN_MODELS if re.search(pattern, file, re.IGNORECASE)), None)
    quant = re.search(r"(?:I?Q\d\w*|B?F16)(?=\.gguf)", file, re.IGNORECASE)
    if test is None or model is None or quant is None:
        return None
    threads = str(one["threads"])
    return dict.fromkeys(COLUMNS, "") | {
        "gpus": "0",
        "backend": "CPU",
        "engine": "llama.cpp",
        "model": model,
        "quant": quant[0].upper(),
        "cpu_moe": "0",
        "slots": "1",
        "host": "AMD EPYC, 2 cores",
        "threads": threads,
        "bandwidth_gbs": f"{readings[one['model'], one['threads']]:.4g}",
        "basis": "measured",
        "flags": "avx2 avx512f avx512_vnni",
        "test": test[1],
        "tokens": test[2],
        "tok_s": str(one["best_ts"]),
        "date": "2026-10",
        "source": OWN_SOURCE,
        "skip": "others used the CPU" if one["noisy"] else "",
    }


def outgrown(row: dict[str, str], memory_gb: str) -> bool:
    """Tell whether weights and cache exceed what the GPUs have; Vulkan spills silently a little earlier."""
    found = case(row)
    if found is None or not memory_gb or row["gpu_layers"] != "all" or row["cpu_moe"] != "0":
        return False
    work = Work(found.weights, found.settings)
    need = found.weights.file_bytes + work.context_bytes(0, work.blocks, found.depth + found.tokens)
    have = float(memory_gb) * GIB * int(row["gpus"])
    return need > (VULKAN_SHARE if row["backend"] == "Vulkan" else 1.0) * have


def without_matrix_units(row: dict[str, str]) -> bool:
    """Tell whether a prompt of 16-bit weights ran slower on CUDA than the FP32 pipes alone allow, beside matrix units.

    cuBLAS then fell back: of two cards with the same chip in one table, one did a tenth of the other.
    """
    found = case(row)
    if (
        found is None
        or row["test"] != "pp"
        or row["backend"] != "CUDA"
        or found.where != "gpu"
        or found.tokens < WHOLE_BATCH
    ):
        return False
    gpu, work = found.devices.gpus[0], Work(found.weights, found.settings)
    half = type_class(found.weights.matmul_type) == "half" and gpu.family in TENSOR_CORES
    products = 2 * work.elements_per_byte * (work.resident_bytes[-1] + work.active_bytes[-1])
    return half and products * found.tok_s < (gpu.fp32_flops_per_s or 0)


def main() -> None:
    """Write the rows, and beside them the list of sources that their `source` counts from 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--own", type=Path, help="llama-bench runs on a CPU, one JSON object a line")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    with options.table.open(newline="") as file:
        for published in csv.DictReader(file):
            row = convert(published)
            if row is None:
                continue
            rows.append(row)
    if options.own:
        runs = [json.loads(line) for line in options.own.read_text().splitlines()]
        rows += [row for one in runs if (row := own_row(one, own_readings(runs)))]
    sources = sorted({row["source"] for row in rows})
    for row in rows:
        row["source"] = str(sources.index(row["source"]))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    options.out.with_name(options.out.stem + "_sources.txt").write_text("\n".join(sources) + "\n")
    print(len(rows), "rows,", sum(not row["skip"] for row in rows), "to be fitted")


if __name__ == "__main__":
    main()
