"""A Kubernetes Deployment and Service: GPU and memory resources, node labels, probes."""

from __future__ import annotations

import re
from typing import Any

from willitrun_here.launch.docker import CACHE, PORT, environment, image, inner_arguments
from willitrun_here.launch.target import MIB, Target, artifact
from willitrun_here.launch.yaml import to_yaml

RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/xe"}
"""Extended resource of each vendor's device plugin."""
HOST_RESERVE_MIB = 1024
"""Beyond the plan's host buffers: the process itself, its vocabulary and HTTP server."""


def label(text: str) -> str:
    """Return a name that Kubernetes accepts."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:53].rstrip("-")


def manifest(target: Target) -> str:
    """Return the Deployment and the Service as one YAML stream."""
    plan = target.plan
    name = label(f"llama-{target.spec.name}")
    memory_mib = plan.devices[-1].total_bytes // MIB + HOST_RESERVE_MIB
    limits: dict[str, Any] = {"memory": f"{memory_mib}Mi"}
    if (resource := gpu_resource(target)) is not None:
        limits[resource] = len(plan.gpu_uuids)
    container: dict[str, Any] = {
        "name": "llama-server",
        "image": image(target),
        # $(NAME) in an argument would be replaced by a variable; $$ stands for a dollar sign.
        "args": [argument.replace("$(", "$$(") for argument in inner_arguments(target)],
        "ports": [{"containerPort": PORT, "name": "http"}],
        "resources": {"limits": limits, "requests": {"cpu": plan.threads, "memory": f"{memory_mib}Mi"}},
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5, "failureThreshold": 360},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10},
        "volumeMounts": [{"name": "models", "mountPath": CACHE if artifact(target).path is None else "/models"}],
    }
    if environment(target):
        container["env"] = [{"name": key, "value": value} for key, value in environment(target).items()]
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models"}}],
    }
    if selector := node_labels(target):
        pod["nodeSelector"] = selector
    labels = {"app.kubernetes.io/name": name}
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
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    return to_yaml(deployment) + "---\n" + to_yaml(service)


def gpu_resource(target: Target) -> str | None:
    """Return the resource that the planned GPUs are requested as: the vendor's, whatever the back end."""
    planned = {use.name for use in target.plan.devices if use.kind == "gpu"}
    vendors = [gpu.vendor for gpu in target.machine.gpus if gpu.name in planned]
    return RESOURCES.get(vendors[0]) if target.plan.gpu_uuids and vendors else None


def node_labels(target: Target) -> dict[str, str]:
    """Return the labels GPU feature discovery puts on nodes with the planned GPU."""
    if not target.plan.gpu_uuids:
        return {}
    product = re.sub(r"[^A-Za-z0-9._-]+", "-", target.plan.devices[0].name).strip("-._")[:63]
    if target.plan.backend == "cuda":
        return {"nvidia.com/gpu.product": product}
    return {"amd.com/gpu.product-name": product.replace("-", "_")} if target.plan.backend == "rocm" else {}
