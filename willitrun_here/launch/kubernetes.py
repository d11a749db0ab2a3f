"""A Kubernetes claim, Deployment and Service (v1 and apps/v1): GPU and memory resources, node labels, probes."""

from __future__ import annotations

import re
from typing import Any

from willitrun_here.launch import visible
from willitrun_here.launch.docker import CACHE, PORT, VERSION_NOTE, image, inner_arguments
from willitrun_here.launch.target import MIB, Target, artifact, prompt_cache_mib
from willitrun_here.launch.yaml import commented, to_yaml

RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/xe"}
"""Extended resource of each vendor's device plugin."""
HOST_RESERVE_MIB = 1024
"""Beyond the plan's host buffers: the process itself, its vocabulary and HTTP server."""
GIB = 1024 * MIB


def label(text: str) -> str:
    """Return a name that Kubernetes accepts."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:53].rstrip("-")


def manifest(target: Target) -> str:
    """Return the claim of the model's volume, the Deployment and the Service as one YAML stream.

    The device plugin chooses among the GPUs of a node and shows the container these alone, numbered from 0: there is
    nothing left to select inside.
    """
    plan = target.plan
    name = label(f"llama-{target.spec.name}")
    memory_mib = plan.devices[-1].total_bytes // MIB + HOST_RESERVE_MIB + prompt_cache_mib(target)
    limits: dict[str, Any] = {"memory": f"{memory_mib}Mi"}
    if (resource := gpu_resource(target)) is not None:
        limits[resource] = len(plan.gpu_uuids)
    container: dict[str, Any] = {
        "name": "llama-server",
        "image": image(target),
        "args": [literal(argument) for argument in (*inner_arguments(target), *target.extra)],
        "ports": [{"containerPort": PORT, "name": "http"}],
        "resources": {"limits": limits, "requests": {"cpu": cpus(target), "memory": f"{memory_mib}Mi"}},
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5, "failureThreshold": 360},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10},
        "volumeMounts": [{"name": "models", "mountPath": CACHE if artifact(target).path is None else "/models"}],
    }
    if artifact(target).path is None:
        container["env"] = [{"name": "LLAMA_CACHE", "value": CACHE}]
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models"}}
    parts = workload(target, name, {"containers": [container], "volumes": [volume]}, service_port=80)
    return "---\n".join(map(to_yaml, parts)) + commented(notes(target))


def workload(target: Target, name: str, pod: dict[str, Any], *, service_port: int) -> tuple[dict[str, Any], ...]:
    """Return the claim of a pod's first volume, which the model goes to, its Deployment and its Service."""
    labels = {"app.kubernetes.io/name": name}
    if selector := node_labels(target):
        pod = {**pod, "nodeSelector": selector}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": pod["volumes"][0]["persistentVolumeClaim"]["claimName"], "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{target.plan.file_bytes * 11 // 10 // GIB + 1}Gi"}},
        },
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": service_port, "targetPort": "http"}]},
    }
    return claim, deployment, service


def literal(argument: str) -> str:
    """Return an argument that Kubernetes leaves as it is: $(NAME) would become a variable's value, $$ is a dollar."""
    return argument.replace("$(", "$$(")


def cpus(target: Target) -> int:
    """Return the CPUs to ask for: the planned threads less one, because a node keeps some for itself.

    Two where everything is computed on GPUs: the threads then only hand over work.
    """
    plan = target.plan
    whole = plan.gpu_uuids and not plan.offloaded_fraction
    return max(1, min(plan.threads - 1, 2) if whole else plan.threads - 1)


def notes(target: Target) -> tuple[str | None, ...]:
    """Return what must be known beside the manifest."""
    path = artifact(target).path
    copied = None if path is None else f"Copy {path} to the root of the claimed volume first."
    return (artifact(target).note, VERSION_NOTE, copied)


def gpu_resource(target: Target) -> str | None:
    """Return the resource that the planned GPUs are requested as: the vendor's, whatever the back end."""
    gpus = [gpu for gpu in visible.planned_gpus(target) if gpu is not None]
    return RESOURCES.get(gpus[0].vendor) if gpus else None


def node_labels(target: Target) -> dict[str, str]:
    """Return the labels that the vendors' own labellers put on nodes with the planned GPU.

    NVIDIA's GPU feature discovery writes the driver's name of the product with dashes for blanks, AMD's node labeller
    the PCI device number (`amd.com/gpu.device-id`); names of AMD cards differ between drivers.
    """
    gpu = next((gpu for gpu in visible.planned_gpus(target) if gpu is not None), None)
    if gpu is None:
        return {}
    if gpu.vendor == "nvidia":
        return {"nvidia.com/gpu.product": re.sub(r"[^A-Za-z0-9._-]+", "-", gpu.name).strip("-._")[:63]}
    if gpu.vendor == "amd" and gpu.pci_id is not None:
        return {"amd.com/gpu.device-id": gpu.pci_id.rpartition(":")[2]}
    return {}
