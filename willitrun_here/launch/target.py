"""What every launcher is given: the plan, the model's whereabouts, the machine, and how the engine is reached."""

from __future__ import annotations

import shlex
from pathlib import Path

from msgspec import Struct

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.publishers import DYNAMIC, Published, published
from willitrun_estimator.plan import Command, Plan
from willitrun_here.launch.flags import Flags
from willitrun_probe.machine import Machine

MIB = 1024**2
PROMPT_CACHE_DEFAULT_MIB = 8192
"""llama-server's own default for `--cache-ram`."""


class Target(Struct, frozen=True, kw_only=True):
    """One plan about to be launched."""

    plan: Plan
    spec: ModelSpec
    machine: Machine
    flags: Flags
    """What the installed llama-server understands; the newest known set when none is installed."""
    program: str = "llama-server"
    host: str = "127.0.0.1"
    port: int = 8080
    extra: tuple[str, ...] = ()
    """Arguments after `--` on the command line, given to the engine unchanged."""


class Artifact(Struct, frozen=True, kw_only=True):
    """Where the weights come from: exactly one of a local file and a hub repository."""

    path: str | None = None
    repo: str | None = None
    tag: str | None = None
    """What selects the file in a repository."""
    file: str | None = None
    note: str | None = None


def artifact(target: Target) -> Artifact:
    """Return where an engine finds the GGUF of the planned quantization."""
    source, quant = target.spec.source, target.plan.quant
    if source.startswith("hf:") and (target.spec.gguf_repos or source.endswith(".gguf")):
        repo, _, rest = source.removeprefix("hf:").partition(":")
        return Artifact(repo=repo, file=rest) if rest.endswith(".gguf") else Artifact(repo=repo, tag=quant)
    if source.endswith(".gguf"):
        return Artifact(path=source)
    if source.startswith("ollama:") and target.spec.files:
        return Artifact(path=target.spec.files[0])
    if is_checkpoint(target.spec):
        return converted(source, target.spec.name, quant)
    found = published(target.spec.gguf_repos, quant)
    if found is not None:
        return Artifact(repo=found.repository, tag=found.tag, note=tag_note(found, quant))
    name = f"{target.spec.name}-{quant}.gguf"
    return Artifact(
        path=name, note=f"No GGUF repository of {target.spec.title} is known; put a {quant} file at {name} first."
    )


def tag_note(found: Published, quant: str) -> str | None:
    """Say when the file may not be there, or is a mix of the publisher's own."""
    if not found.known:
        return (
            f"No repository of this model is known to hold {quant}: look at https://huggingface.co/{found.repository}, "
            "or make it with llama-quantize."
        )
    if found.tag == f"{DYNAMIC}{quant}":
        return f"{found.tag} is {found.repository.partition('/')[0]}'s own mix; its size differs a little from {quant}."
    return None


def is_checkpoint(spec: ModelSpec) -> bool:
    """Tell whether the model was read from safetensors, which llama.cpp and ollama do not load."""
    return spec.source.startswith("hf:") or any(name.endswith(".safetensors") for name in spec.files)


def converted(source: str, name: str, quant: str) -> Artifact:
    """Return the GGUF that a checkpoint has to become first, with the two commands that make it.

    The programs are llama.cpp's own (`convert_hf_to_gguf.py`, `tools/quantize/README.md`).
    """
    where = Path(source).parent if not source.startswith("hf:") else Path()
    path, whole = str(where / f"{name}-{quant}.gguf"), str(where / f"{name}-F16.gguf")
    remote = ["--remote", source.removeprefix("hf:")] if source.startswith("hf:") else [source]
    steps = [["convert_hf_to_gguf.py", *remote, "--outtype", "f16", "--outfile", whole]]
    if quant.upper() != "F16":
        steps.append(["llama-quantize", whole, path, quant])
    made = " && ".join(shlex.join(step) for step in steps)
    return Artifact(path=path, note=f"{source} holds safetensors; llama.cpp needs a GGUF, made by: {made}")


def command(
    argv: list[str], env: dict[str, str], *, notes: tuple[str | None, ...] = (), files: dict[str, str] | None = None
) -> Command:
    """Build a Command with its one-line form for a POSIX shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return Command(
        argv=tuple(argv),
        env=env,
        shell=" ".join([*assignments, shlex.join(argv)]),
        notes=tuple(note for note in notes if note),
        files=files or {},
    )


def everything_planned(target: Target) -> bool:
    """Tell whether the plan uses every visible GPU, so that nothing has to be hidden."""
    return len(target.plan.gpu_uuids) == len([gpu for gpu in target.machine.gpus if gpu.visible and gpu.usable])


def prompt_cache_mib(target: Target) -> int:
    """Return the RAM to allow for the prompt cache: a quarter of what the plan leaves free, at most the default."""
    *gpus, host = target.plan.devices
    shared = {gpu.name for gpu in target.machine.gpus if gpu.unified}
    used = host.total_bytes + sum(use.total_bytes for use in gpus if use.name in shared)
    spare = max(0, host.free_bytes - used)
    return min(PROMPT_CACHE_DEFAULT_MIB, spare // 4 // MIB // 256 * 256)
