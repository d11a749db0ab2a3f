"""The options of a question, and what they mean as a Request."""

from __future__ import annotations

import math
from typing import Any

from willitrun_estimator.request import Request
from willitrun_here.cli.arguments import (
    COUNT_OR_ALL,
    MOST_BYTES,
    MOST_COUNT,
    MOST_TOKENS,
    NUMBER,
    POSITIVE,
    SIZE,
    TOKENS,
    Choice,
    Option,
    Whole,
)
from willitrun_here.errors import UsageError

WORKLOADS = ("chat", "coding", "agentic", "reasoning", "rag")
MODES = ("balanced", "interactive", "light-api", "scale-out")
ENGINES = ("llama.cpp", "ollama", "vllm", "auto")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "fp8", "auto")
BACKENDS = ("cuda", "rocm", "vulkan", "metal", "cpu", "auto")

TOKEN_FIELDS = ("context", "prompt_tokens", "output_tokens", "min_context")
COUNT_FIELDS = (
    "concurrency",
    "ubatch",
    "parallel",
    "tensor_parallel",
    "pipeline_parallel",
    "max_num_seqs",
    "max_num_batched_tokens",
)
LAYER_FIELDS = ("gpu_layers", "cpu_moe_layers")
RATE_FIELDS = ("min_decode", "max_ttft")

QUESTION = (
    Option("--quant", metavar="Q", default="auto", help="Quantization, e.g. Q4_K_M, or auto."),
    Option("--context", TOKENS, help="Context length in tokens."),
    Option("--kv-type", Choice(KV_TYPES), "auto", "Type of the KV cache."),
    Option("--engine", Choice(ENGINES), "auto", "Inference engine."),
    Option("--workload", Choice(WORKLOADS), "chat", "What it is for."),
    Option("--mode", Choice(MODES), "balanced", "How it is used."),
    Option("--concurrency", POSITIVE, 1, "Requests at the same time."),
    Option("--backend", Choice(BACKENDS), "auto", "Back end of the engine."),
    Option("--gpu-layers", COUNT_OR_ALL, "auto", "Layers on GPUs, the head counts as one."),
    Option("--cpu-moe-layers", COUNT_OR_ALL, "auto", "Layers whose experts stay in RAM."),
    Option("--ubatch", POSITIVE, help="Micro-batch of the prompt."),
    Option("--parallel", POSITIVE, help="Slots of the server."),
    Option("--flash-attention", Choice(("on", "off", "auto")), "auto", "Flash attention."),
    Option("--prompt-tokens", TOKENS, help="Length of the prompt."),
    Option("--output-tokens", TOKENS, help="Length of the answer."),
    Option("--depth-tokens", Whole(0, MOST_TOKENS), help="Context already filled when speed is taken."),
    Option("--margin", SIZE, name="margin_bytes", help="Memory to leave free on every GPU."),
    Option("--assume-idle", None, help="Plan on total instead of free memory."),
    Option("--min-context", TOKENS, help="Least context that is of use."),
    Option("--min-decode", NUMBER, help="Least tokens per second that are of use."),
    Option("--max-ttft", NUMBER, help="Longest wait for the first token, in seconds."),
    Option("--tensor-parallel", POSITIVE, help="vLLM: GPUs a layer is split over."),
    Option("--pipeline-parallel", POSITIVE, help="vLLM: stages."),
    Option("--gpu-memory-utilization", NUMBER, help="vLLM: share of total memory."),
    Option("--max-num-seqs", POSITIVE, help="vLLM: sequences at once."),
    Option("--max-num-batched-tokens", POSITIVE, help="vLLM: tokens of one step."),
    Option("--enforce-eager", None, help="vLLM: no CUDA graphs."),
    Option("--engine-version", metavar="V", help="Version of the engine to plan for."),
)
"""Numbers whose ranges are rules of a question are checked with the other rules, in `check`: a batch line has them too.
"""


def request(options: dict[str, Any]) -> Request:
    """Turn parsed options into a Request; `auto` becomes None. Raises UsageError for contradictions."""
    values: dict[str, Any] = {name: (None if value == "auto" else value) for name, value in options.items()}
    flash = values.pop("flash_attention", None)
    asked = Request(flash_attention=None if flash is None else flash == "on", **values)
    check(asked)
    return asked


def check(asked: Request) -> None:
    """Refuse contradictions that no machine or model can resolve; raises UsageError with both values."""
    check_ranges(asked)
    if asked.flash_attention is False and asked.kv_type in {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"}:
        raise UsageError(
            f"--kv-type {asked.kv_type} needs flash attention and --flash-attention off forbids it",
            "Leave --flash-attention out, or take --kv-type f16.",
        )
    if asked.context is not None and asked.min_context is not None and asked.context < asked.min_context:
        raise UsageError(f"--context {asked.context} is below --min-context {asked.min_context}", "Drop one of them.")
    if asked.context is not None and asked.depth_tokens is not None and asked.depth_tokens >= asked.context:
        raise UsageError(
            f"--depth-tokens {asked.depth_tokens} does not leave room in --context {asked.context}",
            "Take a depth below the context.",
        )
    if asked.context is not None and asked.prompt_tokens is not None and asked.prompt_tokens > asked.context:
        raise UsageError(
            f"--prompt-tokens {asked.prompt_tokens} is longer than --context {asked.context}", "Raise --context."
        )
    if asked.backend == "cpu" and asked.gpu_layers not in (None, 0):
        raise UsageError(
            f"--gpu-layers {asked.gpu_layers} and --backend cpu contradict each other", "Drop one of them."
        )
    vllm_only = {
        "--tensor-parallel": asked.tensor_parallel,
        "--pipeline-parallel": asked.pipeline_parallel,
        "--gpu-memory-utilization": asked.gpu_memory_utilization,
        "--max-num-seqs": asked.max_num_seqs,
        "--max-num-batched-tokens": asked.max_num_batched_tokens,
    }
    given = [name for name, value in vllm_only.items() if value is not None]
    if given and asked.engine in {"llama.cpp", "ollama"}:
        raise UsageError(f"{given[0]} is for vLLM and --engine is {asked.engine}", "Take --engine vllm.")
    llama_only = {"--gpu-layers": asked.gpu_layers, "--cpu-moe-layers": asked.cpu_moe_layers, "--ubatch": asked.ubatch}
    given = [name for name, value in llama_only.items() if value is not None]
    if given and asked.engine == "vllm":
        raise UsageError(f"{given[0]} is for llama.cpp and --engine is vllm", "Take --engine llama.cpp.")


def check_ranges(asked: Request) -> None:
    """Refuse numbers that mean nothing and names nobody has; raises UsageError."""
    for name in (*TOKEN_FIELDS, *COUNT_FIELDS):
        between(asked, name, 1, MOST_TOKENS if name in TOKEN_FIELDS else MOST_COUNT)
    for name in (*LAYER_FIELDS, "depth_tokens"):
        between(asked, name, 0, MOST_TOKENS)
    between(asked, "margin_bytes", 0, MOST_BYTES)
    for name in RATE_FIELDS:
        value = getattr(asked, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"--{name.replace('_', '-')} {value} is not above 0", "Give a positive number.")
    share = asked.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"--gpu-memory-utilization {share} is not a share", "Give more than 0 and at most 1.")
    for name, known in (("kv_type", KV_TYPES), ("backend", BACKENDS)):
        value = getattr(asked, name)
        if value is not None and value not in known:
            raise UsageError(f"--{name.replace('_', '-')} {value!r} is unknown", f"Known: {', '.join(known)}.")


def between(asked: Request, name: str, least: int, most: int) -> None:
    """Refuse a number outside a range; words such as `all` pass."""
    value = getattr(asked, name)
    if isinstance(value, int) and not least <= value <= most:
        raise UsageError(f"--{name.replace('_', '-')} {value} is not between {least} and {most}")
