"""A vLLM plan as a file: compose, systemd, Kubernetes."""

from __future__ import annotations

from typing import Any

from willitrun_estimator.vllm.versions import LATEST
from willitrun_here.launch.systemd import quoted
from willitrun_here.launch.target import Target
from willitrun_here.launch.vllm import (
    PORT,
    VOLUME,
    environment,
    gpu_ids,
    image,
    inner,
    mounts,
    render,
    shm_gib,
)
from willitrun_here.launch.vllm_installed import Installed, on
from willitrun_here.launch.yaml import commented, to_yaml


def document(target: Target, shape: str, *, installed: Installed | None = None) -> str:
    """Give a compose file, a systemd unit or a Kubernetes manifest; raises ValueError for other shapes."""
    installed = installed or on(target.machine)
    if shape == "compose":
        return compose(target, installed=installed)
    if shape == "systemd":
        return unit(target, installed=installed)
    if shape == "kubernetes":
        return manifest(target, installed=installed)
    message = f"vLLM has no {shape}: it loads checkpoints from a hub or a folder"
    raise ValueError(message)


def compose(target: Target, *, installed: Installed | None = None) -> str:
    """Give a compose file."""
    service: dict[str, Any] = {
        "image": image(target, installed),
        "command": inner(target),
        "ports": [f"{target.host}:{target.port}:{PORT}"],
        "volumes": mounts(target),
        "environment": {"HF_TOKEN": "${HF_TOKEN:-}"},
        "shm_size": f"{shm_gib(target)}gb",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", f"http://127.0.0.1:{PORT}/health"],
            "interval": "10s",
            "timeout": "5s",
            "retries": 180,
        },
    }
    if target.plan.backend == "rocm":
        service["devices"] = ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
        service["group_add"] = ["video"]
        service["security_opt"] = ["seccomp=unconfined"]
        service["environment"] |= environment(target, LATEST)
    else:
        device = {"driver": "nvidia", "device_ids": gpu_ids(target), "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    document: dict[str, Any] = {"services": {"vllm": service}}
    if service["volumes"][0].startswith(f"{VOLUME}:"):
        document["volumes"] = {VOLUME: {}}
    return to_yaml(document)


def unit(target: Target, *, installed: Installed | None = None) -> str:
    """Give a systemd unit."""
    built = render(target, installed=installed)
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in built.env.items())
    start = " ".join(quoted(word) for word in built.argv)
    return (
        f"[Unit]\nDescription=vLLM with {target.spec.title} {target.plan.quant}\n"
        "After=network-online.target\nWants=network-online.target\n\n"
        f"[Service]\n{lines}DynamicUser=yes\nCacheDirectory=vllm\nEnvironment=HF_HOME=%C/vllm\n"
        "Environment=VLLM_CACHE_ROOT=%C/vllm\n"
        f"ExecStart={start}\nRestart=on-failure\nRestartSec=10\nTimeoutStartSec=1800\n"
        "NoNewPrivileges=yes\nPrivateTmp=yes\nProtectHome=read-only\nSupplementaryGroups=video render\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def manifest(target: Target, *, installed: Installed | None = None) -> str:
    """Give the claim of the checkpoint's volume, a Deployment and a Service; shared memory is an in-memory volume."""
    from willitrun_here.launch.kubernetes import RESOURCES, label, literal, workload  # noqa: PLC0415 - one of five

    name = label(f"vllm-{target.spec.name}")
    probe = {"httpGet": {"path": "/health", "port": "http"}}
    source, _, inside = mounts(target)[0].removesuffix(":ro").rpartition(":")
    copied = None if source == VOLUME else f"Copy {source} to the root of the claimed volume first."
    container = {
        "name": "vllm",
        "image": image(target, installed),
        "args": [literal(argument) for argument in inner(target)],
        "ports": [{"containerPort": PORT, "name": "http"}],
        "resources": {
            "limits": {RESOURCES["amd" if target.plan.backend == "rocm" else "nvidia"]: len(target.plan.gpu_uuids)}
        },
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 360},
        "readinessProbe": {**probe, "periodSeconds": 10},
        "volumeMounts": [{"name": "cache", "mountPath": inside}, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    volumes = [
        {"name": "cache", "persistentVolumeClaim": {"claimName": f"{name}-cache"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib(target)}Gi"}},
    ]
    parts = workload(target, name, {"containers": [container], "volumes": volumes}, service_port=PORT)
    return "---\n".join(map(to_yaml, parts)) + commented((copied,))
