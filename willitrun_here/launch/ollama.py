"""The ollama commands of a plan: a Modelfile with its parameters, and the environment of the server.

Parameters and variables: ollama's `docs/modelfile.mdx`, `docs/faq.mdx`, `docs/gpu.mdx` and `envconfig/config.go`.
"""

from __future__ import annotations

import re

from willitrun_estimator.plan import Command
from willitrun_here.launch import visible
from willitrun_here.launch.target import Target, artifact, command


def modelfile(target: Target) -> str:
    """Return the Modelfile: the weights, and the plan as parameters."""
    plan = target.plan
    lines = [
        f"FROM {origin(target)}",
        f"PARAMETER num_ctx {request_context(target)}",
        f"PARAMETER num_gpu {plan.gpu_layers}",
        f"PARAMETER num_thread {plan.threads}",
        f"PARAMETER num_batch {plan.ubatch}",
    ]
    return "\n".join(lines) + "\n"


def origin(target: Target) -> str:
    """Name the weights in the way ollama does: its own name, a hub repository with a quantization, or a file."""
    if target.spec.source.startswith("ollama:"):
        return target.spec.source.removeprefix("ollama:")
    weights = artifact(target)
    return weights.path if weights.path is not None else f"hf.co/{weights.repo}:{weights.tag}"


def request_context(target: Target) -> int:
    """Return ollama's context, which counts per request: the cache holds it once per slot."""
    return target.plan.context_tokens // target.plan.parallel


def environment(target: Target) -> dict[str, str]:
    """Return what the ollama server must be started with: cache type, flash attention, slots, spreading."""
    plan = target.plan
    env = {
        **visible.environment(target),
        "OLLAMA_FLASH_ATTENTION": "1" if plan.flash_attention else "0",
        "OLLAMA_KV_CACHE_TYPE": plan.kv_type,
        "OLLAMA_NUM_PARALLEL": str(plan.parallel),
        "OLLAMA_CONTEXT_LENGTH": str(request_context(target)),
    }
    if len(plan.tensor_split) > 1:
        env["OLLAMA_SCHED_SPREAD"] = "1"
    return env


def name(target: Target) -> str:
    """Return the name the tuned model gets in ollama."""
    return re.sub(r"[^a-z0-9._-]+", "-", f"{target.spec.name}-{target.plan.quant}".lower())


def render(target: Target) -> Command:
    """Return the command that creates the tuned model and runs it; the environment is the server's."""
    text = modelfile(target)
    create = f"printf %s {shell_quoted(text)} > Modelfile && ollama create {name(target)} -f Modelfile"
    script = f"{create} && ollama run {name(target)}"
    return command(
        ["sh", "-c", script],
        environment(target),
        notes=(
            artifact(target).note,
            "The environment belongs to the ollama server: set it where `ollama serve` is started.",
            visible.note(target),
        ),
        files={"Modelfile": text},
    )


def shell_quoted(text: str) -> str:
    """Quote for a POSIX shell."""
    import shlex  # noqa: PLC0415 - only here

    return shlex.quote(text)
