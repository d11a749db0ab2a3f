"""The answer as a value: the keys of `check --json` and of each answer line of `batch`.

Everything a renderer, a launcher or the fleet needs is here; they translate and never compute. More keys may be
added; a change of meaning bumps `SCHEMA`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from willitrun_estimator.request import Mode, Request

SCHEMA = "willitrun.check/1"

Status = Literal["comfortable", "fits", "tight", "offload", "paging", "too-large"]
Basis = Literal["measured-here", "calibrated", "measured-alike", "estimated"]
Grade = Literal["S", "A", "B", "C", "D", "F"]


class ModelFacts(Struct, frozen=True, kw_only=True):
    """The model, as far as the answer shows it."""

    name: str
    title: str
    source: str
    architecture: str
    params: int
    active_params: int
    max_context_tokens: int
    capabilities: tuple[str, ...] = ()
    license: str | None = None
    release_date: str | None = None
    hf_id: str | None = None


class GpuFacts(Struct, frozen=True, kw_only=True):
    """A GPU, as far as the answer shows it."""

    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    bandwidth_bytes_per_s: float | None = None
    uuid: str | None = None


class MachineFacts(Struct, frozen=True, kw_only=True):
    """The machine, as far as the answer shows it."""

    name: str
    gpus: tuple[GpuFacts, ...]
    ram_available_bytes: int
    cpu: str | None = None
    threads: int | None = None


class DeviceUse(Struct, frozen=True, kw_only=True):
    """What one device holds. For llama.cpp these are its own buffers, so that its log can be held against them."""

    name: str
    kind: Literal["gpu", "host"]
    weights_bytes: int
    kv_cache_bytes: int
    recurrent_bytes: int
    compute_bytes: int
    output_bytes: int
    runtime_bytes: int
    """Beyond the buffers: the GPU context and library workspaces."""
    total_bytes: int
    free_bytes: int
    """What was free on the device before loading."""
    notes: tuple[tuple[str, int, str], ...] = ()
    """Named parts of `runtime_bytes` (or of host memory) with their basis: (name, bytes, basis)."""


class ExpertsApart(Struct, frozen=True, kw_only=True):
    """Routed experts of one block that are not with the block: `--override-tensor` of llama.cpp."""

    block: int
    tensors: tuple[str, ...]
    """Names without a suffix, as `ffn_down_exps`."""
    device: int | None
    """Index among the plan's GPUs; None is the host."""
    whole: bool = False
    """All of the block's routed experts."""


class Plan(Struct, frozen=True, kw_only=True):
    """One way to run the model. `gpu_layers` is what `-ngl` takes: the output head counts as one layer."""

    engine: str
    quant: str
    context_tokens: int
    kv_type: str
    flash_attention: bool
    gpu_layers: int
    layers: int
    cpu_moe_layers: int
    tensor_split: tuple[float, ...]
    """Units (blocks and head) per GPU as given to `-ts`; empty on one device."""
    experts_apart: tuple[ExpertsApart, ...] = ()
    """Blocks whose experts are on the host though they are not among the first `cpu_moe_layers`, and blocks cut in two
    at the border of a GPU."""
    ubatch: int
    batch: int
    threads: int
    parallel: int
    file_bytes: int
    devices: tuple[DeviceUse, ...]
    memory_bytes: int
    """Sum over the devices."""
    offloaded_fraction: float
    """Share of the weights that is not on a GPU, 0 on a machine planned without any."""
    backend: str = "cpu"
    gpu_uuids: tuple[str | None, ...] = ()
    gpu_indexes: tuple[int | None, ...] = ()
    kv_unified: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    kernel: str | None = None
    """vLLM: how the quantized weights are computed, e.g. `marlin (weight-only)`."""
    engine_version: str | None = None
    """vLLM: the release whose rules the plan was made by, e.g. `0.26`."""


class Fit(Struct, frozen=True, kw_only=True):
    """Does it run, and how much room is left."""

    status: Status
    headroom_bytes: int
    """Free memory left on the tightest device; negative by what is missing."""
    host_ram_needed_bytes: int
    message: str


class Interval(Struct, frozen=True, kw_only=True):
    """An expectation with the bounds of 80 % of outcomes."""

    expected: float
    low: float
    high: float
    basis: Basis = "estimated"


class MeasuredRow(Struct, frozen=True, kw_only=True):
    """A published measurement of the same GPU, model, quantization and engine."""

    tokens_per_s: float
    test: str
    source: str
    date: str | None = None


class Speed(Struct, frozen=True, kw_only=True):
    """How fast the plan is; None where nothing is known well enough to say a number."""

    decode_tokens_per_s: Interval | None
    prefill_tokens_per_s: Interval | None
    ttft_s: Interval | None
    ttft_cold_s: Interval | None = None
    """Including the load of the model."""
    load_s: Interval | None = None
    measured: tuple[MeasuredRow, ...] = ()


class Context(Struct, frozen=True, kw_only=True):
    """How long a context the plan could hold."""

    safe_tokens: int
    max_tokens: int


class Serving(Struct, frozen=True, kw_only=True):
    """Aggregate speed against concurrency, and the largest that keeps the targets."""

    concurrency: tuple[int, ...]
    output_tokens_per_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    time_per_token_s: tuple[float, ...] = ()
    low_tokens_per_s: tuple[float, ...] = ()
    high_tokens_per_s: tuple[float, ...] = ()
    max_concurrency: int | None = None
    """Largest concurrency that keeps `--min-decode` and `--max-ttft` and fits the cache; 0 where not even one does."""


class Tag(Struct, frozen=True, kw_only=True):
    """A word about the setup with the inequality behind it."""

    value: str
    reason: str


class Tags(Struct, frozen=True, kw_only=True):
    """The five words of the headline."""

    runtime: Tag
    capacity: Tag
    bandwidth: Tag
    stack: Tag
    bottleneck: Tag


class Quality(Struct, frozen=True, kw_only=True):
    """What a quantization costs in quality."""

    level: Literal["maximum", "very-high", "high", "medium", "low", "very-low", "unknown"]
    kl_divergence: float | None
    basis: str


class QuantOption(Struct, frozen=True, kw_only=True):
    """One row of the quantization table."""

    quant: str
    bits_per_weight: float
    file_bytes: int
    memory_bytes: int
    quality: Quality
    status: Status
    decode_tokens_per_s: float | None
    score: int
    grade: Grade
    best: bool
    engine: str = "llama.cpp"
    context_tokens: int = 0
    decode: Interval | None = None
    """`decode_tokens_per_s` with its bounds and basis."""
    ttft_s: float | None = None
    headroom_bytes: int | None = None
    offloaded_fraction: float | None = None
    safe_context_tokens: int | None = None
    devices: tuple[DeviceUse, ...] = ()
    """What this option's own best plan puts on each device."""


class WorkloadRow(Struct, frozen=True, kw_only=True):
    """One row of the workload table."""

    workload: str
    grade: Grade
    status: Status
    decode_tokens_per_s: float | None
    ttft_s: float | None
    context_tokens: int
    score: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class Limit(Struct, frozen=True, kw_only=True):
    """Something that holds this setup back."""

    code: str
    message: str


class Improvement(Struct, frozen=True, kw_only=True):
    """A change that was computed by the same search, with its gain."""

    code: str
    message: str
    gain: float
    """Relative gain of what it improves: 0.3 is 30 % more."""


class EngineChoice(Struct, frozen=True, kw_only=True):
    """Which engine serves the asked mode better on this machine, by how much, and the two rates."""

    engine: str
    """`vllm` or `llama.cpp`."""
    gain: float
    """Of the mode's objective over the other engine: 0.4 is 40 % more."""
    reason: str


class Alternative(Struct, frozen=True, kw_only=True):
    """The runner-up, and why it lost."""

    quant: str
    context_tokens: int
    kv_type: str
    gpu_layers: int
    cpu_moe_layers: int
    score: float
    decode_tokens_per_s: float | None
    reason: str


class Command(Struct, frozen=True, kw_only=True):
    """A launch command: argv and environment, and the same as one line for a shell."""

    argv: tuple[str, ...]
    env: dict[str, str]
    shell: str
    notes: tuple[str, ...] = ()
    files: dict[str, str] = {}
    """Files the command needs beside it (a Modelfile), name to text."""


class CurvePoint(Struct, frozen=True, kw_only=True):
    """The plan's placement at another context length: memory reserved for it, speed with it filled."""

    context_tokens: int
    device_bytes: tuple[int, ...]
    """Needed on each device, in the order of `Plan.devices`."""
    decode_tokens_per_s: Interval | None


class ModeRow(Struct, frozen=True, kw_only=True):
    """The best plan under another operating mode, scored by that mode's lens."""

    mode: Mode
    score: int
    grade: Grade
    quant: str
    status: Status
    context_tokens: int
    decode_tokens_per_s: Interval | None
    ttft_s: float | None
    concurrency: int = 1
    output_tokens_per_s: float | None = None
    """Aggregate over all requests at `concurrency`; None for the one-user modes."""


class ScorePart(Struct, frozen=True, kw_only=True):
    """One factor of the score."""

    name: str
    value: float
    weight: float
    reason: str


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Everything there is to say about one model on one machine."""

    schema: str = SCHEMA
    id: str | int | UnsetType | None = UNSET
    model: ModelFacts
    machine: MachineFacts
    plan: Plan | None
    """None when nothing can start; `fit` then says what is missing."""
    fit: Fit
    speed: Speed | None
    context: Context
    serving: Serving | None
    score: int
    grade: Grade
    tags: Tags | None
    quants: tuple[QuantOption, ...]
    workloads: tuple[WorkloadRow, ...]
    limits: tuple[Limit, ...]
    improvements: tuple[Improvement, ...]
    runner_up: Alternative | None = None
    engine_choice: EngineChoice | None = None
    """Serving modes without a fixed engine: the comparison of vLLM with llama.cpp."""
    score_parts: tuple[ScorePart, ...] = ()
    rank_score: float | None = None
    """In rankings: the score weighed with the model's presumed ability (size and age), 0..100."""
    rank_basis: str | None = None
    """What the presumed ability rests on."""
    findings: tuple[str, ...] = ()
    """Plain sentences the reader must know: an unknown architecture, a stale catalog, an assumption."""
    commands: dict[str, Command] = {}
    request: Request | None = None
    """What was asked: workload, mode and whatever the user fixed."""
    curve: tuple[CurvePoint, ...] = ()
    """Rising context lengths from 1K to the model's limit, for the plots."""
    modes: tuple[ModeRow, ...] = ()
