"""Docker: the right image for the back end, exactly the planned GPUs, the model cache mounted, a health check."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from willitrun_estimator.plan import Command
from willitrun_here.launch import llama_cpp, visible
from willitrun_here.launch.flags import NEWEST
from willitrun_here.launch.target import Target, artifact, command
from willitrun_here.launch.yaml import commented, to_yaml

IMAGES = {
    "cuda": "ghcr.io/ggml-org/llama.cpp:server-cuda",
    "rocm": "ghcr.io/ggml-org/llama.cpp:server-rocm",
    "vulkan": "ghcr.io/ggml-org/llama.cpp:server-vulkan",
    "cpu": "ghcr.io/ggml-org/llama.cpp:server",
}
"""Image per back end (llama.cpp `docs/docker.md`); Metal cannot be reached from a container."""

PORT = 8080
CACHE = "/root/.cache/llama.cpp"
"""Where downloads go, by LLAMA_CACHE: builds since 2026 would use the hub's own folder (`common/hf-cache.cpp`)."""
VERSION_NOTE = f"The image follows llama.cpp's releases; the flags are those of {NEWEST.version}."
GROUP_NOTE = (
    "The image runs as root and reaches the GPU without groups; a rootless docker needs the host's group by number: "
    "--group-add $(getent group render | cut -d: -f3)."
)
"""Docker looks names up inside the image, and most images have no group `render` (https://github.com/ROCm/ROCm-docker
issue 90)."""


def image(target: Target) -> str:
    """Return the image for the plan's back end."""
    return IMAGES.get(target.plan.backend, IMAGES["cpu"])


def inside(target: Target) -> Target:
    """Return the target as the image runs it, which need not be the build that is installed here."""
    return structs.replace(target, flags=NEWEST)


def inner_arguments(target: Target) -> list[str]:
    """Return llama-server's arguments inside the container, where it listens on all addresses."""
    weights = artifact(target)
    model = (
        llama_cpp.model_arguments(inside(target))
        if weights.path is None
        else ["-m", f"/models/{weights.path.rsplit('/', 1)[-1]}"]
    )
    plan = llama_cpp.plan_arguments(inside(target))
    return [*model, *plan, "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104 - the container's own network; the published port is bound to loopback


def server_arguments(target: Target) -> list[str]:
    """Return the arguments where the container is given every GPU of its vendors, and the user's own."""
    devices = visible.device_arguments(inside(target), container=True)
    return [*inner_arguments(target), *devices, *target.extra]


def mounts(target: Target) -> list[str]:
    """Return the volumes: the model's folder read-only for a local file, else the download cache."""
    weights = artifact(target)
    if weights.path is None:
        return [f"llama-cache:{CACHE}"]
    return [f"{mounted(weights.path)}:/models:ro"]


def mounted(path: str) -> str:
    """Return the folder of a file as docker takes it: one without a leading slash or dot would name a volume."""
    folder, slash, _ = path.rpartition("/")
    if not slash:
        return "."
    if not folder:
        return "/"
    return folder if folder.startswith(("/", ".")) else f"./{folder}"


def published(target: Target) -> str:
    """Return the published port; an IPv6 address stands in brackets."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}:{PORT}"


def uninterpolated(words: list[str]) -> list[str]:
    """Return words as compose takes them literally: it replaces `$NAME`, and `$$` stands for a dollar sign."""
    return [word.replace("$", "$$") for word in words]


def gpu_flags(target: Target) -> list[str]:
    """Return the docker run flags that hand over the planned GPUs and no others."""
    if not target.plan.gpu_uuids:
        return []
    if by_nvidia(target):
        ids = ",".join(gpu_ids(target))
        return ["--gpus", f'"device={ids}"']
    flags = ["--device", "/dev/dri", "--group-add", "video"]
    if target.plan.backend == "rocm":
        flags = ["--device", "/dev/kfd", *flags, "--security-opt", "seccomp=unconfined"]
    return flags


def by_nvidia(target: Target) -> bool:
    """Tell whether NVIDIA's container toolkit hands the planned GPUs over, whatever the back end."""
    planned = visible.planned_gpus(target)
    return target.plan.backend == "cuda" or any(gpu is not None and gpu.vendor == "nvidia" for gpu in planned)


def gpu_ids(target: Target) -> list[str]:
    """Return the planned GPUs' UUIDs, or their indexes where the driver gave no UUID."""
    plan = target.plan
    pairs = zip(plan.gpu_uuids, plan.gpu_indexes, strict=True)
    return [uuid or str(index if index is not None else position) for position, (uuid, index) in enumerate(pairs)]


def environment(target: Target) -> dict[str, str]:
    """Return variables set inside the container: where downloads go, and which of AMD's GPUs the engine uses.

    The toolkit gives CUDA's libraries alone unless Vulkan's are asked for (NVIDIA container toolkit, driver
    capabilities).
    """
    env = {"LLAMA_CACHE": CACHE} if artifact(target).path is None else {}
    if target.plan.backend == "rocm" and target.plan.gpu_uuids:
        env |= visible.environment(target)
    elif target.plan.backend == "vulkan" and by_nvidia(target):
        env["NVIDIA_DRIVER_CAPABILITIES"] = "all"
    return env


def notes(target: Target) -> tuple[str | None, ...]:
    """Return what must be known beside the command."""
    unnamed = target.plan.gpu_uuids and not by_nvidia(target)
    return (artifact(target).note, VERSION_NOTE, GROUP_NOTE if unnamed else None)


def render(target: Target) -> Command:
    """Return the docker run command; it needs no terminal, and docker passes Ctrl-C on."""
    argv = ["docker", "run", "--rm", "-p", published(target)]
    argv += gpu_flags(target)
    for name, value in environment(target).items():
        argv += ["-e", f"{name}={value}"]
    for mount in mounts(target):
        argv += ["-v", mount]
    argv += ["--shm-size", "1g", "--health-cmd", f"curl -fsS http://127.0.0.1:{PORT}/health", image(target)]
    argv += server_arguments(target)
    return command(argv, {}, notes=notes(target))


def compose(target: Target) -> str:
    """Return the same as a compose file."""
    service: dict[str, Any] = {
        "image": image(target),
        "command": uninterpolated(server_arguments(target)),
        "ports": [published(target)],
        "volumes": uninterpolated(mounts(target)),
        "shm_size": "1gb",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", f"http://127.0.0.1:{PORT}/health"],
            "interval": "10s",
            "timeout": "5s",
            "retries": 60,
        },
    }
    if environment(target):
        service["environment"] = environment(target)
    if target.plan.gpu_uuids and by_nvidia(target):
        device = {"driver": "nvidia", "device_ids": gpu_ids(target), "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    elif target.plan.gpu_uuids:
        service["devices"] = ["/dev/dri:/dev/dri"]
        service["group_add"] = ["video"]
        if target.plan.backend == "rocm":
            service["devices"].insert(0, "/dev/kfd:/dev/kfd")
            service["security_opt"] = ["seccomp=unconfined"]
    document: dict[str, Any] = {"services": {"llama": service}}
    if artifact(target).path is None:
        document["volumes"] = {"llama-cache": {}}
    return to_yaml(document) + commented(notes(target))
