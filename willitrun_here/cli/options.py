"""Options shared by the commands that ask a question, and what they mean as a Request."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from willitrun_estimator.request import Request
from willitrun_here.errors import UsageError
from willitrun_probe.units import parse_bytes

F = TypeVar("F", bound=Callable[..., Any])

WORKLOADS = ("chat", "coding", "agentic", "reasoning", "rag")
MODES = ("balanced", "interactive", "light-api", "scale-out")
ENGINES = ("llama.cpp", "ollama", "vllm", "auto")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "fp8", "auto")
BACKENDS = ("cuda", "rocm", "vulkan", "metal", "cpu", "auto")


MOST_TOKENS = 2**31
MOST_COUNT = 2**20
MOST_BYTES = 2**60
_DIGITS = re.compile(r"[0-9]{1,12}")

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


class Size(click.ParamType[int]):
    """A number of bytes: `512MiB`, `2GiB`, `1000000000`."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a size or fail with the accepted forms."""
        if isinstance(value, int):
            return value
        try:
            size = parse_bytes(value)
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)
        if size > MOST_BYTES:
            self.fail(f"{value!r} is more memory than any machine has", param, ctx)
        return size


class Tokens(click.ParamType[int]):
    """A number of tokens: `8192`, `32k`, `128K`, `1M`."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a count with an optional k or m."""
        if isinstance(value, int):
            return value
        factor = {"k": 1024, "m": 1024 * 1024}.get(value[-1:].lower(), 1)
        digits = value if factor == 1 else value[:-1]
        if not _DIGITS.fullmatch(digits) or not 0 < int(digits) * factor <= MOST_TOKENS:
            self.fail(f"{value!r} is not a number of tokens; write for example 8192 or 32k", param, ctx)
        return int(digits) * factor


class CountOrAll(click.ParamType[int | str]):
    """A count, `all`, or `auto`."""

    name = "N|all|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Read a count or one of the two words."""
        if isinstance(value, int) or value in {"all", "auto"}:
            return value  # type: ignore[no-any-return]
        if not _DIGITS.fullmatch(value):
            self.fail(f"{value!r} is neither a count nor 'all' or 'auto'", param, ctx)
        return int(value)


SIZE, TOKENS, COUNT_OR_ALL = Size(), Tokens(), CountOrAll()
POSITIVE = click.IntRange(min=1, max=MOST_COUNT)
FRACTION = click.FLOAT
RATE = click.FLOAT
"""Ranges of numbers are checked with the other rules, in `check`, for a batch line has them too."""

QUESTION = (
    click.option("--quant", metavar="Q", default="auto", help="Quantization, e.g. Q4_K_M, or auto."),
    click.option("--context", type=TOKENS, help="Context length in tokens."),
    click.option("--kv-type", type=click.Choice(KV_TYPES), default="auto", help="Type of the KV cache."),
    click.option("--engine", type=click.Choice(ENGINES), default="auto", help="Inference engine."),
    click.option("--workload", type=click.Choice(WORKLOADS), default="chat", help="What it is for."),
    click.option("--mode", type=click.Choice(MODES), default="balanced", help="How it is used."),
    click.option("--concurrency", type=POSITIVE, default=1, help="Requests at the same time."),
    click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Back end of the engine."),
    click.option("--gpu-layers", type=COUNT_OR_ALL, default="auto", help="Layers on GPUs, the head counts as one."),
    click.option("--cpu-moe-layers", type=COUNT_OR_ALL, default="auto", help="Layers whose experts stay in RAM."),
    click.option("--ubatch", type=POSITIVE, help="Micro-batch of the prompt."),
    click.option("--parallel", type=POSITIVE, help="Slots of the server."),
    click.option(
        "--flash-attention", type=click.Choice(("on", "off", "auto")), default="auto", help="Flash attention."
    ),
    click.option("--prompt-tokens", type=TOKENS, help="Length of the prompt."),
    click.option("--output-tokens", type=TOKENS, help="Length of the answer."),
    click.option(
        "--depth-tokens", type=click.IntRange(0, MOST_TOKENS), help="Context already filled when speed is taken."
    ),
    click.option("--margin", "margin_bytes", type=SIZE, help="Memory to leave free on every GPU."),
    click.option("--assume-idle", is_flag=True, help="Plan on total instead of free memory."),
    click.option("--min-context", type=TOKENS, help="Least context that is of use."),
    click.option("--min-decode", type=RATE, help="Least tokens per second that are of use."),
    click.option("--max-ttft", type=RATE, help="Longest wait for the first token, in seconds."),
    click.option("--tensor-parallel", type=POSITIVE, help="vLLM: GPUs a layer is split over."),
    click.option("--pipeline-parallel", type=POSITIVE, help="vLLM: stages."),
    click.option("--gpu-memory-utilization", type=FRACTION, help="vLLM: share of total memory."),
    click.option("--max-num-seqs", type=POSITIVE, help="vLLM: sequences at once."),
    click.option("--max-num-batched-tokens", type=POSITIVE, help="vLLM: tokens of one step."),
    click.option("--enforce-eager", is_flag=True, help="vLLM: no CUDA graphs."),
    click.option("--engine-version", metavar="V", help="Version of the engine to plan for."),
)


def question(command: F) -> F:
    """Add the options of a question to a command."""
    for option in reversed(QUESTION):
        command = option(command)
    return command


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
