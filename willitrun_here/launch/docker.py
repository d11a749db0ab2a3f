"""Docker: the right image for the back end, exactly the planned GPUs, the model cache mounted, a health check."""

from __future__ import annotations

from typing import Any

from willitrun_estimator.plan import Command
from willitrun_here.launch import llama_cpp
from willitrun_here.launch.target import Target, artifact, command
from willitrun_here.launch.yaml import to_yaml

IMAGES = {
    "cuda": "ghcr.io/ggml-org/llama.cpp:server-cuda",
    "rocm": "ghcr.io/ggml-org/llama.cpp:server-rocm",
    "vulkan": "ghcr.io/ggml-org/llama.cpp:server-vulkan",
    "cpu": "ghcr.io/ggml-org/llama.cpp:server",
}
"""Image per back end (llama.cpp `docs/docker.md`); Metal cannot be reached from a container."""

PORT = 8080
CACHE = "/root/.cache/llama.cpp"
SHM_BYTES = 1 << 30


def image(target: Target) -> str:
    """Return the image for the plan's back end."""
    return IMAGES.get(target.plan.backend, IMAGES["cpu"])


def inner_arguments(target: Target) -> list[str]:
    """Return llama-server's arguments inside the container, where it listens on all addresses."""
    weights = artifact(target)
    model = (
        llama_cpp.model_arguments(target)
        if weights.path is None
        else ["-m", f"/models/{weights.path.rsplit('/', 1)[-1]}"]
    )
    return [*model, *llama_cpp.plan_arguments(target), "--host", "0.0.0.0", "--port", str(PORT), *target.extra]  # noqa: S104 - the container's own network; the published port is bound to loopback


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
    plan = target.plan
    if not plan.gpu_uuids:
        return []
    if plan.backend == "cuda":
        ids = ",".join(gpu_ids(target))
        return ["--gpus", f'"device={ids}"' if ids else "all"]
    flags = ["--device", "/dev/dri", "--group-add", "video", "--group-add", "render"]
    if plan.backend == "rocm":
        flags = ["--device", "/dev/kfd", *flags, "--security-opt", "seccomp=unconfined"]
    return flags


def gpu_ids(target: Target) -> list[str]:
    """Return the planned GPUs' UUIDs, or their indexes where the driver gave no UUID."""
    plan = target.plan
    pairs = zip(plan.gpu_uuids, plan.gpu_indexes, strict=True)
    return [uuid or str(index if index is not None else position) for position, (uuid, index) in enumerate(pairs)]


def environment(target: Target) -> dict[str, str]:
    """Return variables set inside the container: which AMD GPUs are visible (device files cannot be told apart)."""
    plan = target.plan
    if plan.backend != "rocm" or not plan.gpu_uuids:
        return {}
    return {"HIP_VISIBLE_DEVICES": ",".join(str(i if i is not None else n) for n, i in enumerate(plan.gpu_indexes))}


def render(target: Target) -> Command:
    """Return the docker run command."""
    argv = ["docker", "run", "--rm", "-it", "-p", published(target)]
    argv += gpu_flags(target)
    for name, value in environment(target).items():
        argv += ["-e", f"{name}={value}"]
    for mount in mounts(target):
        argv += ["-v", mount]
    argv += ["--shm-size", "1g", "--health-cmd", f"curl -fsS http://127.0.0.1:{PORT}/health", image(target)]
    argv += inner_arguments(target)
    return command(argv, {}, notes=(artifact(target).note,))


def compose(target: Target) -> str:
    """Return the same as a compose file."""
    service: dict[str, Any] = {
        "image": image(target),
        "command": uninterpolated(inner_arguments(target)),
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
    if target.plan.gpu_uuids and target.plan.backend == "cuda":
        device = {"driver": "nvidia", "device_ids": gpu_ids(target), "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    elif target.plan.gpu_uuids:
        kfd = ["/dev/kfd:/dev/kfd"] if target.plan.backend == "rocm" else []
        service["devices"] = [*kfd, "/dev/dri:/dev/dri"]
        service["group_add"] = ["video", "render"]
    document: dict[str, Any] = {"services": {"llama": service}}
    if artifact(target).path is None:
        document["volumes"] = {"llama-cache": {}}
    return to_yaml(document)
