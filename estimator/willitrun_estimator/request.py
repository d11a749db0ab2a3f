"""What the user asks for. What is fixed stays fixed; what is None (`auto`) is optimised."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Workload = Literal["chat", "coding", "agentic", "reasoning", "rag"]
Mode = Literal["balanced", "interactive", "light-api", "scale-out"]
EngineName = Literal["llama.cpp", "ollama", "vllm"]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question about one model, in the option names of the command line with underscores."""

    quant: str | None = None
    context: int | None = None
    kv_type: str | None = None
    engine: EngineName | None = None
    workload: Workload = "chat"
    mode: Mode = "balanced"
    concurrency: int = 1
    backend: str | None = None
    gpu_layers: int | Literal["all"] | None = None
    cpu_moe_layers: int | Literal["all"] | None = None
    ubatch: int | None = None
    parallel: int | None = None
    flash_attention: bool | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    depth_tokens: int | None = None
    """Context already filled when decode speed is taken; None is 0."""
    margin_bytes: int | None = field(name="margin", default=None)
    assume_idle: bool = False
    min_context: int | None = None
    min_decode: float | None = None
    max_ttft: float | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    engine_version: str | None = None
