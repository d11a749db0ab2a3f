from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_recorded, on_words
from willitrun_here.launch import kubernetes
from willitrun_here.launch.target import MIB, prompt_cache_mib

pyyaml = pytest.importorskip("yaml", reason="install PyYAML to read the files back: pip install pyyaml")

NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")


def documents(target) -> dict[str, dict]:
    return {document["kind"]: document for document in pyyaml.safe_load_all(kubernetes.manifest(target))}


def pod(target) -> dict:
    return documents(target)["Deployment"]["spec"]["template"]["spec"]


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
    found = documents(on_words())
    deployment, service = found["Deployment"], found["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert container["startupProbe"]["httpGet"]["port"] == "http"
    (volume,) = spec["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]


def test_weights_of_a_local_file_are_mounted():
    (container,) = pod(from_source(on_words(), "/m/x.gguf"))["containers"]
    assert container["volumeMounts"][0]["mountPath"] == "/models"
    assert "/models/x.gguf" in container["args"]


def test_the_device_plugin_chooses_and_nothing_is_selected_inside():
    for target in (on_recorded("mi250x-two-dies", "llama-3.1-8b"), on_words("2x RTX 3090, 64 GiB RAM")):
        (container,) = pod(target)["containers"]
        assert [one["name"] for one in container["env"]] == ["LLAMA_CACHE"]
    hybrid = on_recorded("laptop-hybrid", "llama-3.2-3b", backend="vulkan", context=4096)
    assert "-dev" not in pod(hybrid)["containers"][0]["args"]


def test_nodes_are_selected_by_what_the_vendors_label():
    amd = on_recorded("mi100", "llama-3.1-8b")
    assert pod(amd)["nodeSelector"] == {"amd.com/gpu.device-id": "738c"}
    assert pod(on_words())["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-3090"}
    assert "nodeSelector" not in pod(on_words("Intel Arc A770, 64 GiB RAM"))
    assert "nodeSelector" not in pod(on_words("no GPU, 64 GiB RAM"))


def test_the_prompt_cache_is_within_the_memory_limit():
    target = on_words()
    limit = pod(target)["containers"][0]["resources"]["limits"]["memory"]
    assert prompt_cache_mib(target) == 8192
    assert int(limit.removesuffix("Mi")) >= target.plan.devices[-1].total_bytes // MIB + 8192


def test_a_node_keeps_some_cpu():
    assert kubernetes.cpus(on_words()) == 2
    cpu = on_words("no GPU, 64 GiB RAM")
    many = structs.replace(cpu, plan=structs.replace(cpu.plan, threads=8))
    assert kubernetes.cpus(many) == 7
    assert kubernetes.cpus(structs.replace(cpu, plan=structs.replace(cpu.plan, threads=1))) == 1


def test_the_claim_holds_the_file():
    target = on_words()
    storage = documents(target)["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert target.plan.file_bytes < int(storage.removesuffix("Gi")) << 30 < 2 * target.plan.file_bytes
    assert "# Copy /m/x.gguf to" in kubernetes.manifest(from_source(target, "/m/x.gguf"))


@pytest.mark.parametrize("version", ["1.25", "1.32", "1.37"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: on_recorded("h100x8-nvlink", "llama-3.3-70b", quant="F16"),
        lambda: on_recorded("mi100", "llama-3.1-8b"),
        lambda: from_source(on_words("no GPU, 64 GiB RAM"), "/m/a b.gguf"),
    ],
    ids=["nvidia", "amd", "cpu"],
)
def test_kubernetes_own_schema_accepts_the_manifest(make, version):
    validator = pytest.importorskip("kubernetes_validate", reason="run: pip install kubernetes-validate")
    for document in documents(make()).values():
        validator.validate(document, version, strict=True)
    wrong = documents(make())["Deployment"]
    wrong["spec"]["template"]["spec"]["containers"][0]["imagge"] = "x"
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, version, strict=True)


def test_variables_in_arguments_stay_text():
    (container,) = pod(structs.replace(on_words(), extra=("--api-key", "$(HOME)$x")))["containers"]
    assert container["args"][-1] == "$$(HOME)$x"
