"""The llama-server command of a plan, in the flags that the installed build understands."""

from __future__ import annotations

from willitrun_estimator.plan import Command
from willitrun_here.launch import numa, visible
from willitrun_here.launch.target import PROMPT_CACHE_DEFAULT_MIB, Target, artifact, command, prompt_cache_mib

TEXT_NOTE = "The plan is for text: images or sound (end the command with --mmproj-auto) take memory of their own."


def render(target: Target) -> Command:
    """Return the complete llama-server command."""
    prefix = numa.prefix(target)
    argv = [*prefix, target.program, *model_arguments(target), *server_arguments(target), *target.extra]
    if visible.remote_addresses(target):
        argv += override(apart(target))
    notes = (
        artifact(target).note,
        flags_note(target),
        TEXT_NOTE if brings_projector(target) else None,
        visible.note(target),
        numa.NOTE if prefix else None,
    )
    return command(argv, visible.environment(target), notes=notes)


def server_arguments(target: Target) -> list[str]:
    """Return what llama-server is given on this machine beside the weights: plan, memory nodes, devices, address."""
    argv = [*plan_arguments(target), *numa.arguments(target), *visible.device_arguments(target)]
    return [*argv, "--host", target.host, "--port", str(target.port)]


def flags_note(target: Target) -> str | None:
    """Say for which build the flags are when none was found here."""
    if not target.flags.assumed:
        return None
    return f"No llama-server was found here; the flags are those of llama.cpp {target.flags.version}."


def model_arguments(target: Target) -> list[str]:
    """Name the weights: a local file, a file in a repository, or a repository and quantization."""
    weights = artifact(target)
    if weights.path is not None:
        return ["-m", weights.path]
    text_only = ["--no-mmproj"] if brings_projector(target) else []
    if weights.file is not None:
        return ["-hf", weights.repo or "", "-hff", weights.file, *text_only]
    return ["-hf", f"{weights.repo}:{weights.tag}", *text_only]


def brings_projector(target: Target) -> bool:
    """Tell whether `-hf` would load a vision or audio projector as well, for which no memory is planned."""
    spec = target.spec
    more = spec.non_text_params > 0 or not {"vision", "audio"}.isdisjoint(spec.capabilities)
    return more and artifact(target).path is None and "--no-mmproj" in target.flags


def plan_arguments(target: Target) -> list[str]:
    """Translate the plan: layers, context, cache, split, experts, batches, threads, slots, loading."""
    plan, flags = target.plan, target.flags
    argv = ["-ngl", layers(target), "-c", str(plan.context_tokens), *flash_attention(target)]
    if plan.kv_type != "f16":
        argv += ["-ctk", plan.kv_type, "-ctv", plan.kv_type]
    if len(plan.tensor_split) > 1:
        argv += ["-ts", ",".join(f"{share:g}" for share in plan.tensor_split)]
    argv += experts(target)
    argv += ["-ub", str(plan.ubatch), "-b", str(max(plan.batch, plan.ubatch)), "-t", str(numa.threads(target))]
    argv += ["-np", str(plan.parallel)]
    if plan.kv_unified and "-kvu" in flags:
        argv += ["-kvu"]
    argv += load_mode(target)
    cache = prompt_cache_mib(target)
    if "-cram" in flags and cache < PROMPT_CACHE_DEFAULT_MIB:
        argv += ["-cram", str(cache)]
    if "-fit" in flags:
        argv += ["-fit", "off"]
    if not flags.jinja_by_default:
        argv += ["--jinja"]
    return argv


def layers(target: Target) -> str:
    """Say how many layers go to GPUs; `all` where the whole model does, which next-token layers cannot upset."""
    plan = target.plan
    if plan.gpu_layers > plan.layers:
        return "all" if target.flags.layers_take_all else "999"
    return str(plan.gpu_layers)


def flash_attention(target: Target) -> list[str]:
    """Switch flash attention in the build's own way: with a value, or as a bare flag."""
    if target.flags.flash_takes_value:
        return ["-fa", "on" if target.plan.flash_attention else "off"]
    return ["-fa"] if target.plan.flash_attention else []


def experts(target: Target) -> list[str]:
    """Keep the experts of the first N layers in host memory, and those of single blocks where the plan has them.

    Older builds have no switch for the former and take tensor patterns alone. Patterns name remote devices, which exist
    only once `--rpc` was read: with one, they come after the user's own arguments.
    """
    switch, patterns = cpu_experts(target), [] if visible.remote_addresses(target) else apart(target)
    return (
        [*switch[:1], ",".join([*switch[1:], *patterns])] if switch[:1] == ["-ot"] else [*switch, *override(patterns)]
    )


def override(patterns: list[str]) -> list[str]:
    """Return the arguments for tensor patterns."""
    return ["-ot", ",".join(patterns)] if patterns else []


def cpu_experts(target: Target) -> list[str]:
    """Keep the experts of the first N layers in host memory; older builds take a tensor pattern."""
    plan = target.plan
    count = plan.cpu_moe_layers - sum(one.whole and one.device is None for one in plan.experts_apart)
    if not count:
        return []
    if "-ncmoe" in target.flags or "--n-cpu-moe" in target.flags:
        return ["--n-cpu-moe", str(count)]
    blocks = "|".join(str(block) for block in range(count))
    return ["-ot", rf"blk\.({blocks})\.ffn_(up|down|gate)_exps=CPU"]


def apart(target: Target) -> list[str]:
    """Return a tensor pattern with its buffer for every group of blocks whose experts are apart from them alike."""
    groups: dict[tuple[tuple[str, ...], int | None], list[int]] = {}
    for one in target.plan.experts_apart:
        groups.setdefault((one.tensors, one.device), []).append(one.block)
    names = visible.buffer_names(target)
    return [
        f"blk[.]({'|'.join(map(str, blocks))})[.]({'|'.join(tensors)})={'CPU' if device is None else names[device]}"
        for (tensors, device), blocks in groups.items()
    ]


def load_mode(target: Target) -> list[str]:
    """Load into plain memory when experts stay on the host: llama.cpp warns that tensor overrides are slow with mmap.

    Only when the host has room for it, because such memory cannot be dropped and read again.
    """
    host = target.plan.devices[-1]
    on_host = target.plan.cpu_moe_layers or any(one.device is None for one in target.plan.experts_apart)
    if not on_host or host.total_bytes > host.free_bytes:
        return []
    if "-lm" in target.flags or "--load-mode" in target.flags:
        return ["--load-mode", "none"]
    return ["--no-mmap"] if "--no-mmap" in target.flags else []
