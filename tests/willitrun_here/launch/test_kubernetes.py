from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_recorded, on_words
from willitrun_here.launch import kubernetes
from willitrun_here.launch.target import MIB

pyyaml = pytest.importorskip("yaml", reason="install PyYAML to read the files back: pip install pyyaml")

NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")


def documents(target) -> tuple[dict, dict]:
    deployment, service = pyyaml.safe_load_all(kubernetes.manifest(target))
    return deployment, service


def pod(target) -> dict:
    return documents(target)[0]["spec"]["template"]["spec"]


@given(st.text(max_size=90))
def test_names_are_dns_labels(text):
    found = kubernetes.label("llama-" + text)
    assert NAME.fullmatch(found)
    assert len(found) <= 53


@pytest.mark.parametrize(
    ("target", "resource", "count"),
    [
        (lambda: on_recorded("h100x8-nvlink", "llama-3.3-70b", quant="F16"), "nvidia.com/gpu", 2),
        (lambda: on_recorded("mi100", "llama-3.1-8b"), "amd.com/gpu", 1),
        (lambda: on_words("Intel Arc A770, 64 GiB RAM"), "gpu.intel.com/xe", 1),
        (lambda: on_words("RTX 3090, 64 GiB RAM", backend="vulkan"), "nvidia.com/gpu", 1),
        (lambda: on_words("no GPU, 64 GiB RAM"), None, 0),
    ],
)
def test_the_planned_gpus_are_requested_from_their_vendor(target, resource, count):
    made = target()
    (container,) = pod(made)["containers"]
    limits = dict(container["resources"]["limits"])
    memory = limits.pop("memory")
    assert limits == ({resource: count} if resource else {})
    assert int(memory.removesuffix("Mi")) * MIB > made.plan.devices[-1].total_bytes
    for value in pod(made).get("nodeSelector", {}).values():
        assert LABEL.fullmatch(value)
        assert len(value) <= 63


def test_the_parts_refer_to_each_other():
    deployment, service = documents(on_words())
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert container["startupProbe"]["httpGet"]["port"] == "http"


def test_weights_of_a_local_file_are_mounted():
    (container,) = pod(from_source(on_words(), "/m/x.gguf"))["containers"]
    assert container["volumeMounts"][0]["mountPath"] == "/models"
    assert "/models/x.gguf" in container["args"]


def test_amd_gpus_are_told_apart_inside():
    (container,) = pod(on_recorded("mi100", "llama-3.1-8b"))["containers"]
    assert container["env"] == [{"name": "HIP_VISIBLE_DEVICES", "value": "0"}]


def test_variables_in_arguments_stay_text():
    (container,) = pod(structs.replace(on_words(), extra=("--api-key", "$(HOME)$x")))["containers"]
    assert container["args"][-1] == "$$(HOME)$x"
