"""Rows of logged vLLM starts and published serving sweeps, resolved to models, formats and GPUs of the catalog.

The rows keep the columns in which they were collected (`tests/truth/vllm_memory.csv`, `vllm_speed.csv`); other files
with the same columns can be read as well. A row that names a model, format or GPU nobody knows is left out and counted.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

from msgspec import Struct

from willitrun_catalog.errors import CatalogError
from willitrun_catalog.find import find_datasheet, find_model
from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Device
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.families import family
from willitrun_estimator.vllm.formats import Format, format_of
from willitrun_estimator.vllm.versions import Version, parse_version
from willitrun_probe.units import GIB

TRUTH = Path(__file__).resolve().parent.parent / "tests" / "truth"

SHEETS = {
    "A10G 24GB": ("NVIDIA A10G", 22.06),
    "A100 40GB": ("NVIDIA A100 SXM4 40 GB", 39.38),
    "A100 80GB": ("NVIDIA A100 SXM4 80 GB", 79.15),
    "A40 48GB": ("NVIDIA A40 PCIe", 44.99),
    "B200 180GB": ("NVIDIA B200 SXM", 178.3),
    "GB10 128GB unified": ("NVIDIA GB10", 119.7),
    "H100 80GB": ("NVIDIA H100 SXM5 80 GB", 79.19),
    "H100 PCIe 80GB": ("NVIDIA H100 PCIe 80 GB", 79.19),
    "H200 141GB": ("NVIDIA H200 SXM 141 GB", 139.8),
    "H200 NVL MIG 71GB": ("NVIDIA H200 NVL", 69.6),
    "L4 24GB": ("NVIDIA L4", 22.03),
    "L40S 48GB": ("NVIDIA L40S", 44.4),
    "MI100 32GB": ("AMD Instinct MI100", 31.98),
    "MI300X 192GB": ("AMD Instinct MI300X", 191.98),
    "MI350X 288GB": ("AMD Instinct MI350X", 287.0),
    "RTX 3090 24GB": ("NVIDIA GeForce RTX 3090", 23.58),
    "RTX 4090 24GB": ("NVIDIA GeForce RTX 4090", 23.55),
    "RTX 5090 32GB": ("NVIDIA GeForce RTX 5090", 31.37),
    "RTX A6000 48GB": ("NVIDIA RTX A6000", 47.4),
    "RTX PRO 6000 96GB": ("NVIDIA RTX PRO 6000 Blackwell Server", 94.97),
}
"""GPU names of the rows: the data sheet, and total memory as CUDA reports it (from logs where there are any)."""

BASE_OF = {
    "acemath-7b-instruct": "qwen2.5-7b-instruct",
    "aeon gemma-4-26b-a4b uncensored": "gemma-4-26b-a4b-it",
    "aeon qwen3.6-35b-a3b heretic": "qwen3.6-35b-a3b",
    "cogito-v1-preview-llama-70b": "llama-3.1-70b-instruct",
    "cogito-v1-preview-qwen-32b": "qwen2.5-32b-instruct",
    "devstral-24b": "devstral-small-2505",
    "kat-coder-v2.5-dev": "qwen3.6-35b-a3b",
    "lfm2.5-2.6b": "lfm2-2.6b",
    "nemotron-3-nano-omni-30b-a3b-reasoning": "nemotron-3-nano-30b-a3b",
    "granite-3.1-2b-instruct": "granite-3.3-2b-instruct",
    "qwen1.5-moe-a2.7b": "qwen1.5-moe-a2.7b-chat",
}
"""Fine-tunes and re-releases of one shape with the release in the catalog."""

CONTRADICTS = 0.02
"""Of the total memory: one row states 0.9 where its own terms add up to 0.95."""
_SUFFIX = re.compile(
    r"[-_ .](fp8([-_]dynamic)?|awq([-_](int4|4bit))?|gptq([-_]?(int)?[48](bit)?)?|int4-gptq|nvfp4|mxfp4|bf16|"
    r"quantized\.w[48]a(8|16)|autoround int4|[48]bit|qat-q4_0-unquantized|unsloth-bnb-4bit)$"
)


class MemoryCase(Struct, frozen=True, kw_only=True):
    """One logged start. GiB as logged; None where the log has no figure."""

    id: str
    model: str
    """As the row names it."""
    spec: ModelSpec
    checkpoint: Format
    device: Device
    total_gib: float
    version: Version
    tensor_parallel: int
    pipeline_parallel: int
    kv_type: str
    context_tokens: int | None
    utilization: float | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    eager: bool
    towers: bool
    prefix_caching: bool | None
    weights_gib: float | None
    activation_gib: float | None
    pool_gib: float | None
    tokens: int | None
    concurrency: float | None
    notes: str


class SpeedCase(Struct, frozen=True, kw_only=True):
    """One point of a serving sweep."""

    id: str
    spec: ModelSpec
    checkpoint: Format
    device: Device
    total_gib: float
    version: Version
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    kv_type: str
    input_tokens: float
    output_tokens: float
    concurrency: float
    max_num_seqs: int | None
    output_tokens_per_s: float
    ttft_s: float | None
    prefill_counted: bool
    stated: bool
    """The row states its concurrency; otherwise its prompts were all sent at once."""


@cache
def model_of(name: str) -> ModelSpec | None:
    """Find the catalog model a row's checkpoint is made of."""
    text = name.lower().rpartition("/")[2]
    while True:
        cut = _SUFFIX.sub("", text)
        if cut == text:
            break
        text = cut
    for candidate in (BASE_OF.get(text), name, text, f"{text}-instruct", f"{text}-it"):
        if candidate is None:
            continue
        try:
            return find_model(candidate).spec
        except CatalogError:
            continue
    return None


def format_named(model: str, quant: str, spec: ModelSpec, notes: str) -> Format | None:
    """Tell a checkpoint's format from its name, the quantization column and the model's own type."""
    name, word = model.lower(), quant.lower().removesuffix("-v23")
    if "dtype float32" in notes:
        return format_of("f32")
    for mark, found in (("w8a8", "int8"), ("nvfp4", "nvfp4"), ("gptq-8bit", "gptq-8bit"), ("bnb", "bitsandbytes")):
        if mark in name or mark in word:
            return format_of(found)
    if spec.native_type == "mxfp4":
        return format_of("mxfp4")
    if word in {"", "bf16", "fp8"} and ("fp8" in name or (spec.native_type == "fp8" and "bf16" not in name)):
        return format_of("fp8")
    if word == "compressed-tensors" or word.startswith("compressed-tensors fp8"):
        word = "fp8"
    try:
        return format_of(word)
    except EstimatorError:
        return None


@cache
def device_named(gpu: str) -> tuple[Device, float] | None:
    """Give the device of a row's GPU name, and its total memory in GiB as CUDA reports it."""
    if gpu not in SHEETS:
        return None
    name, total = SHEETS[gpu]
    sheet = find_datasheet(name)
    backend = "cuda" if sheet.vendor == "nvidia" else "rocm"
    device = Device(
        name=sheet.name,
        backend=backend,  # type: ignore[arg-type]
        family=family(
            vendor=sheet.vendor,
            compute_capability=sheet.compute_capability,
            gfx_target=sheet.gfx_target,
            name=sheet.name,
        ),
        memory_total_bytes=round(total * GIB),
        memory_free_bytes=round(total * GIB),
        bandwidth_bytes_per_s=sheet.bandwidth_bytes_per_s,
        flops_per_s=sheet.fp16_flops_per_s,
        unified=sheet.unified,
        compute_capability=sheet.compute_capability,
        gfx_target=sheet.gfx_target,
    )
    return device, total


def version_named(text: str, notes: str) -> Version | None:
    """Read a row's version; None for the first engine and for rows that do not say."""
    if text.startswith("0.1.dev"):
        return (0, 21)
    if not text and "before 0.17" in notes:
        return (0, 16)
    try:
        return parse_version(text)
    except EstimatorError:
        return None


def memory_cases(path: Path | None = None) -> tuple[list[MemoryCase], int]:
    """Read logged starts; the second value counts the rows left out."""
    cases, left_out = [], 0
    for row in _rows(path or TRUTH / "vllm_memory.csv"):
        spec, found = model_of(row["model"]), device_named(row["gpu"])
        checkpoint = format_named(row["model"], row["quant"], spec, row["notes"]) if spec else None
        version = version_named(row["vllm_version"], row["notes"])
        if spec is None or found is None or checkpoint is None or version is None or "V0" in row["notes"]:
            left_out += 1
            continue
        notes = row["notes"]
        cached = False if "prefix caching off" in notes else True if "prefix caching on" in notes else None
        cases.append(
            MemoryCase(
                id=row["id"],
                model=row["model"],
                spec=spec,
                checkpoint=checkpoint,
                device=found[0],
                total_gib=_number(row["gpu_mem_gib"]) or found[1],
                version=version,
                tensor_parallel=int(row["tp"] or 1),
                pipeline_parallel=int(row["pp"] or 1),
                kv_type="float32" if "dtype float32" in notes else row["kv_dtype"] or "auto",
                context_tokens=_whole(row["max_model_len"]),
                utilization=_utilization(row),
                max_num_seqs=_whole(row["max_num_seqs"]),
                max_num_batched_tokens=_whole(row["max_num_batched_tokens"]),
                eager=row["eager"] == "true",
                towers="language model only" not in notes,
                prefix_caching=cached,
                weights_gib=_number(row["weights_gib"]),
                activation_gib=_number(row["activation_peak_gib"]),
                pool_gib=_number(row["kv_cache_gib"]),
                tokens=_whole(row["kv_cache_tokens"]),
                concurrency=_number(row["max_concurrency"]),
                notes=notes,
            )
        )
    return cases, left_out


def speed_cases(path: Path | None = None) -> tuple[list[SpeedCase], int]:
    """Read serving sweeps of vLLM with a known load; the second value counts the rows left out.

    Left out besides unknown names: other engines, open loops with an arrival rate, speculative decoding, tensor
    parallel over a network, and data-parallel attention with shared experts.
    """
    cases, left_out = [], 0
    for row in _rows(path or TRUTH / "vllm_speed.csv"):
        case = _speed_case(row)
        if case is None:
            left_out += 1
        else:
            cases.append(case)
    return cases, left_out


def _speed_case(row: dict[str, str]) -> SpeedCase | None:
    notes = row["notes"]
    once = re.search(r"(\d+) prompts sent at once", notes)
    load = _number(row["concurrency"]) or (float(once.group(1)) if once else None)
    odd = re.search(r"specul|MTP|draft|eagle|diff|[234] nodes|DP\d", notes, re.IGNORECASE)
    rate, reads, writes = _number(row["output_tok_s"]), _number(row["input_tokens"]), _number(row["output_tokens"])
    if row["engine"] != "vllm" or row["request_rate"] not in {"", "inf"} or odd:
        return None
    if not (load and rate and reads and writes):
        return None
    spec, found = model_of(row["model"]), device_named(row["gpu"])
    checkpoint = format_named(row["model"], row["quant"], spec, notes) if spec else None
    if spec is None or found is None or checkpoint is None:
        return None
    tensor, pipeline = int(row["tp"] or 1), int(row["pp"] or 1)
    copies = re.search(r"(\d+) instance", notes)
    most = re.search(r"max[-_]num[-_]seqs (\d+)", notes)
    sent = re.search(r"(\d+)(?: of \d+)? prompts", notes)
    wait = _number(row["ttft_ms_median"])
    kv_type = row["kv_dtype"] if row["kv_dtype"].startswith("fp8") else "auto"
    return SpeedCase(
        id=row["id"],
        spec=spec,
        checkpoint=checkpoint,
        device=found[0],
        total_gib=found[1],
        version=version_named(row["version"], notes) or (0, 19),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=int(copies.group(1)) if copies else max(1, int(row["gpu_count"]) // (tensor * pipeline)),
        kv_type=kv_type,
        input_tokens=reads,
        output_tokens=writes,
        concurrency=min(load, float(sent.group(1))) if sent else load,
        max_num_seqs=int(most.group(1)) if most else None,
        output_tokens_per_s=rate,
        ttft_s=wait / 1000 if wait else None,
        prefill_counted="decode-phase" not in notes,
        stated=bool(row["concurrency"]),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _utilization(row: dict[str, str]) -> float | None:
    """Read the utilization; None where a row that names every term contradicts the one it states.

    Weights, libraries, activation peak and pool add up to it (before 0.20, graphs are outside).
    """
    stated = _number(row["gpu_memory_utilization"])
    terms = [_number(row[name]) for name in ("weights_gib", "non_torch_gib", "activation_peak_gib", "kv_cache_gib")]
    total = _number(row["gpu_mem_gib"])
    if stated is None or total is None or any(term is None for term in terms):
        return stated
    return stated if abs(sum(term or 0 for term in terms) / total - stated) < CONTRADICTS else None


def _number(text: str) -> float | None:
    return float(text) if text else None


def _whole(text: str) -> int | None:
    return int(float(text)) if text else None
