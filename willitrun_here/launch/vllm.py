"""The `vllm serve` command of a plan: for a shell, docker, compose, systemd, Kubernetes and several nodes.

Flags are those of https://docs.vllm.ai/en/latest/cli/serve/ and, by version, of the released wheels
(`willitrun_estimator.vllm.flags`). Images: https://docs.vllm.ai/en/latest/deployment/docker/; for ROCm
`vllm/vllm-openai-rocm` (`docs/getting_started/installation/gpu.rocm.inc.md` of vllm-project/vllm, which calls AMD's own
`rocm/vllm` deprecated since 20 January 2026).
"""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_estimator.plan import Command
from willitrun_estimator.vllm.flags import unknown_flags
from willitrun_estimator.vllm.formats import format_of, is_format
from willitrun_estimator.vllm.parallel import needs_expert_parallel
from willitrun_estimator.vllm.repositories import ready_made
from willitrun_estimator.vllm.versions import LATEST, Version, name_of, parse_version
from willitrun_here.launch import visible
from willitrun_here.launch.target import Target, command, everything_planned
from willitrun_here.launch.vllm_installed import Installed, ask_parser, on, refusal

IMAGES = {"cuda": "vllm/vllm-openai", "rocm": "vllm/vllm-openai-rocm"}
ROCM_IMAGES_FROM: Version = (0, 14)
"""The first release with an image for ROCm on Docker Hub (20 January 2026)."""
PORT = 8000
CACHE = "/root/.cache/huggingface"
VOLUME = "huggingface"
"""Named volume of downloaded checkpoints; a `~` would not survive quoting."""
UUIDS_FROM: Version = (0, 24)
"""Older releases read CUDA_VISIBLE_DEVICES as numbers and fail on UUIDs (`vllm/platforms/interface.py`)."""
ONLINE = {"fp8": "fp8", "bitsandbytes": "bitsandbytes"}
"""Formats that vLLM makes of a 16-bit checkpoint while loading it (`--quantization`)."""
_HALF_ONLY_BELOW = 8.0


def commands(target: Target, *, installed: Installed | None = None) -> Iterator[tuple[str, Command]]:
    """Yield the command for this machine's shell, for docker, and SGLang's for the same plan where it holds.

    Without `installed` the vLLM that the probe found on the machine counts, where there is one.
    """
    installed = installed or on(target.machine)
    yield "vllm", render(target, installed=installed)
    if target.plan.backend in IMAGES:
        yield "docker", docker(target, installed=installed)
    from willitrun_here.launch import sglang  # noqa: PLC0415 - it reads this module

    yield "sglang", sglang.render(target)


def checked(target: Target) -> Installed | None:
    """Give the machine's vLLM with the flags of its own parser, which takes as long as importing it; None without."""
    installed = on(target.machine)
    return None if installed is None else ask_parser(installed)


def render(target: Target, *, installed: Installed | None = None) -> Command:
    """Give the complete `vllm serve` command, in the flags of the installed version."""
    argv = [installed.program if installed else "vllm", "serve", *arguments(target, host=target.host, port=target.port)]
    return command(argv, environment(target, version_of(target, installed)), notes=notes(target, argv, installed))


def version_of(target: Target, installed: Installed | None) -> Version:
    """Give the version to write for: the installed one, or the one that was planned for."""
    if installed is not None:
        return installed.version
    return parse_version(target.plan.engine_version) if target.plan.engine_version else LATEST


def notes(target: Target, argv: list[str], installed: Installed | None) -> tuple[str | None, ...]:
    """Say what the reader must know: the checkpoint to take, the version, what its parser objects to."""
    version = version_of(target, installed)
    planned = version_of(target, None)
    written = name_of(version)
    missing = installed.unknown(argv) if installed else unknown_flags(argv, version)
    asked = installed is not None and installed.flags is not None
    objection = refusal(installed, argv) if installed and asked and not missing else None
    return (
        checkpoint_note(target),
        None if installed else f"No vllm was found here; the flags are those of vLLM {written}.",
        f"The plan was made for vLLM {name_of(planned)} and {written} is installed." if planned != version else None,
        f"vLLM {written} does not know {', '.join(missing)}." if missing else None,
        f"The installed vLLM refuses this command: {objection}." if objection else None,
        f"Checked by the parser of the installed vLLM {written}." if asked and not (missing or objection) else None,
    )


def remarks(target: Target, *, installed: Installed | None = None) -> tuple[str, ...]:
    """Say what the reader of a compose file, unit or manifest must know."""
    return render(target, installed=installed).notes


def model(target: Target) -> str:
    """Name the checkpoint: a folder, a repository, the maker's repository of the format, or the model's own."""
    source = target.spec.source
    found = published(target)
    if found is not None:
        return found
    if source.startswith("hf:"):
        return source.removeprefix("hf:").partition(":")[0]
    if source.startswith(("/", "./", "../", "~")):
        return source
    return target.spec.hf_id or target.spec.name


def published(target: Target) -> str | None:
    """Name the repository in which the model's maker published the planned format; None for the model's own format."""
    return None if own_format(target) else ready_made(target.spec, format_of(target.plan.quant))


def checkpoint_note(target: Target) -> str | None:
    """Say that a checkpoint of its own is needed, where vLLM cannot make the format from the model's repository."""
    if published(target) is not None:
        return f"{model(target)} is the {target.plan.quant} checkpoint of the model's own maker."
    if not stored(target) or own_format(target):
        return None
    return (
        f"{target.plan.quant} needs a checkpoint of its own: put a {target.plan.quant} repository of "
        f"{target.spec.title} in the place of {model(target)}."
    )


def own_format(target: Target) -> bool:
    """Tell whether the model's own repository is already in the planned format."""
    spec = target.spec
    for own in (spec.quant, spec.native_type):
        if own is not None and is_format(own) and format_of(own) == format_of(target.plan.quant):
            return True
    return format_of(target.plan.quant).method == "none" and spec.quant is None


def made_while_loading(target: Target) -> bool:
    """Tell whether vLLM has to make the planned format of a 16-bit checkpoint."""
    return (
        not stored(target)
        and format_of(target.plan.quant).method != "none"
        and (not own_format(target) and published(target) is None)
    )


def stored(target: Target) -> bool:
    """Tell whether the format exists only as a stored checkpoint."""
    return format_of(target.plan.quant).method not in {"none", *ONLINE}


def arguments(target: Target, *, host: str, port: int) -> list[str]:
    """Translate the plan into arguments."""
    plan, spec = target.plan, target.spec
    checkpoint = format_of(plan.quant)
    argv = [model(target), "--served-model-name", spec.name]
    if made_while_loading(target):
        argv += ["--quantization", ONLINE[checkpoint.method]]
    if half_only(target):
        argv += ["--dtype", "half"]
    argv += ["--max-model-len", str(plan.context_tokens)]
    if plan.gpu_memory_utilization is not None:
        argv += ["--gpu-memory-utilization", f"{plan.gpu_memory_utilization:g}"]
    if plan.max_num_seqs is not None:
        argv += ["--max-num-seqs", str(plan.max_num_seqs)]
    if plan.max_num_batched_tokens is not None:
        argv += ["--max-num-batched-tokens", str(plan.max_num_batched_tokens)]
    argv += parallel_arguments(target)
    if plan.kv_type != "auto":
        argv += ["--kv-cache-dtype", plan.kv_type]
    if plan.enforce_eager:
        argv += ["--enforce-eager"]
    return [*argv, "--host", host, "--port", str(port), *target.extra]


def parallel_arguments(target: Target) -> list[str]:
    """Give the flags that split the model over GPUs; none for one GPU."""
    plan = target.plan
    argv: list[str] = []
    for name, degree in (
        ("--tensor-parallel-size", plan.tensor_parallel),
        ("--pipeline-parallel-size", plan.pipeline_parallel),
        ("--data-parallel-size", plan.data_parallel),
    ):
        if degree > 1:
            argv += [name, str(degree)]
    if needs_expert_parallel(target.spec, format_of(plan.quant), plan.tensor_parallel):
        argv += ["--enable-expert-parallel"]
    return argv


def half_only(target: Target) -> bool:
    """Tell whether a planned GPU lacks bfloat16 (compute capability below 8.0)."""
    planned = set(target.plan.gpu_uuids)
    levels = [gpu.compute_capability for gpu in target.machine.gpus if gpu.uuid in planned and gpu.visible]
    return target.plan.backend == "cuda" and any(level and float(level) < _HALF_ONLY_BELOW for level in levels)


def environment(target: Target, version: Version) -> dict[str, str]:
    """Give the environment that shows vLLM exactly the planned GPUs: by UUID where the version reads UUIDs.

    On ROCm by number, which every version reads (`device_id_to_physical_device_id` in `vllm/platforms/interface.py`).
    """
    plan = target.plan
    if everything_planned(target):
        return {}
    if plan.backend == "rocm":
        return visible.rocm_by_number(target)
    uuids = [uuid for uuid in plan.gpu_uuids if uuid]
    whole = not any(uuid.startswith("MIG-") for uuid in uuids)
    if len(uuids) == len(plan.gpu_uuids) and (version >= UUIDS_FROM or not whole):
        return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    return visible.cuda_by_number(target)


def image(target: Target, installed: Installed | None = None) -> str:
    """Name the image of the back end and version; for ROCm at least the first that was published."""
    version = version_of(target, installed)
    if target.plan.backend == "rocm":
        version = max(version, ROCM_IMAGES_FROM)
    return f"{IMAGES[target.plan.backend]}:v{name_of(version)}.0"


def shm_gib(target: Target) -> int:
    """Shared memory for the ranks' messages: 1 GiB, and 2 for every further GPU."""
    return 1 + 2 * (len(target.plan.gpu_uuids) - 1)


def mounts(target: Target) -> list[str]:
    """Give the volumes: a local folder read-only, else the download cache."""
    name = model(target)
    return [f"{name}:/model:ro"] if name.startswith(("/", ".", "~")) else [f"{VOLUME}:{CACHE}"]


def inner(target: Target) -> list[str]:
    """Give the arguments inside a container, where the server listens on all addresses."""
    argv = arguments(target, host="0.0.0.0", port=PORT)  # noqa: S104 - the container's own network
    if mounts(target)[0].endswith(":/model:ro"):
        argv[0] = "/model"
    return ["--model", *argv]


def gpu_ids(target: Target) -> list[str]:
    """Give the planned GPUs' UUIDs, or their indexes where the driver gave none."""
    pairs = zip(target.plan.gpu_uuids, target.plan.gpu_indexes, strict=True)
    return [uuid or str(index if index is not None else place) for place, (uuid, index) in enumerate(pairs)]


def docker(target: Target, *, installed: Installed | None = None) -> Command:
    """Give the docker run command: the planned GPUs by UUID, shared memory, the download cache, no other access."""
    argv = ["docker", "run", "--rm", "-p", f"{target.host}:{target.port}:{PORT}"]
    if target.plan.backend == "rocm":
        argv += ["--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video"]
        argv += ["--security-opt", "seccomp=unconfined"]
        for name, value in environment(target, LATEST).items():
            argv += ["-e", f"{name}={value}"]
    else:
        argv += ["--gpus", f'"device={",".join(gpu_ids(target))}"']
    argv += ["-e", "HF_TOKEN", "--shm-size", f"{shm_gib(target)}g"]
    for mount in mounts(target):
        argv += ["-v", mount]
    argv += [image(target, installed), *inner(target)]
    return command(argv, {}, notes=(checkpoint_note(target),))
