from __future__ import annotations

import csv
import shutil
import subprocess
from itertools import pairwise

import pytest
from msgspec import structs

from tests.willitrun_here.launch.targets import from_source, on_recorded, on_words
from willitrun_here.launch import docker
from willitrun_here.launch.flags import NEWEST

pyyaml = pytest.importorskip("yaml", reason="install PyYAML to read the files back: pip install pyyaml")

TARGETS = {
    "nvidia": lambda: on_recorded("rtx3090-shared", "llama-3.1-8b", quant="Q4_K_M", context=8192),
    "two": lambda: on_recorded("h100x8-nvlink", "llama-3.3-70b", quant="F16", context=8192),
    "amd": lambda: on_recorded("mi100", "llama-3.1-8b", quant="Q4_K_M", context=8192),
    "intel": lambda: on_words("Intel Arc A770, 64 GiB RAM"),
    "cpu": lambda: on_words("no GPU, 64 GiB RAM"),
}


def composed(target) -> dict:
    document = pyyaml.safe_load(docker.compose(target))
    assert set(document) <= {"services", "volumes"}
    return document["services"]["llama"]


def after(argv, name) -> list[str]:
    return [value for flag, value in pairwise(argv) if flag == name]


@pytest.mark.parametrize("name", TARGETS)
def test_run_and_compose_say_the_same(name):
    target = TARGETS[name]()
    built, service = docker.render(target), composed(target)
    argv = list(built.argv)
    place = argv.index(service["image"])
    assert argv[place + 1 :] == service["command"]
    assert after(argv[:place], "-p") == service["ports"] == ["127.0.0.1:8080:8080"]
    assert after(argv[:place], "-v") == service["volumes"]
    assert after(service["command"], "--host") == ["0.0.0.0"]  # noqa: S104 - inside the container
    assert after(service["command"], "--port") == ["8080"]
    assert [f"{key}={value}" for key, value in service.get("environment", {}).items()] == after(argv[:place], "-e")
    assert after(argv[:place], "--group-add") == service.get("group_add", [])
    assert after(argv[:place], "--security-opt") == service.get("security_opt", [])
    assert [f"{name}:{name}" for name in after(argv[:place], "--device")] == service.get("devices", [])
    if target.plan.backend == "cuda":
        (given,) = after(argv[:place], "--gpus")
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        # docker reads the value of --gpus as one CSV record
        assert next(csv.reader([given])) == ["device=" + ",".join(device["device_ids"])]
        assert device["device_ids"] == list(target.plan.gpu_uuids)
    else:
        assert "--gpus" not in argv
        assert "deploy" not in service


def test_images_and_devices_of_each_back_end():
    assert composed(TARGETS["amd"]())["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
    assert composed(TARGETS["amd"]())["environment"]["ROCR_VISIBLE_DEVICES"] == "GPU-1234567890abcdef"
    assert composed(TARGETS["amd"]())["group_add"] == ["video"], "most images have no group render"
    intel = composed(TARGETS["intel"]())
    assert intel["image"].endswith(":server-vulkan")
    assert intel["devices"] == ["/dev/dri:/dev/dri"]
    assert "seccomp=unconfined" not in docker.render(TARGETS["intel"]()).argv
    assert composed(TARGETS["cpu"]())["image"].endswith(":server")
    assert "devices" not in composed(TARGETS["cpu"]())


@pytest.mark.parametrize(
    ("path", "mount", "inside"),
    [
        ("/models/x.gguf", "/models:/models:ro", "/models/x.gguf"),
        ("x.gguf", ".:/models:ro", "/models/x.gguf"),
        ("/x.gguf", "/:/models:ro", "/models/x.gguf"),
        ("models/x.gguf", "./models:/models:ro", "/models/x.gguf"),
        ("../m/x.gguf", "../m:/models:ro", "/models/x.gguf"),
    ],
)
def test_a_local_file_is_mounted_by_its_folder(path, mount, inside):
    target = from_source(on_words(), path)
    argv = docker.render(target).argv
    assert mount in argv
    assert inside in argv
    assert "volumes" not in pyyaml.safe_load(docker.compose(target))


def test_the_download_cache_is_a_declared_volume():
    """Newer builds would download to the hub's own folder, and again with every new container."""
    assert composed(on_words())["environment"]["LLAMA_CACHE"] == docker.CACHE
    assert "environment" not in composed(from_source(on_words(), "/models/x.gguf"))
    document = pyyaml.safe_load(docker.compose(on_words()))
    (volume,) = document["services"]["llama"]["volumes"]
    assert volume.split(":")[0] in document["volumes"]


def test_the_image_is_not_the_build_that_is_installed():
    old = structs.replace(NEWEST, names=frozenset({"-m", "--no-mmap"}), flash_takes_value=False, layers_take_all=False)
    target = on_words("RTX 3090, 128 GiB RAM", "qwen3-30b-a3b", cpu_moe_layers=3)
    assert docker.render(structs.replace(target, flags=old)).argv == docker.render(target).argv
    assert "--load-mode" in docker.render(target).argv
    assert str(NEWEST.version) in docker.compose(target)


def test_vulkan_on_an_nvidia_card_goes_through_its_toolkit():
    target = on_words("RTX 3090, 64 GiB RAM", backend="vulkan")
    service = composed(target)
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
    assert service["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "all"
    assert "devices" not in service


def test_one_of_two_gpus_inside_a_container():
    target = on_words("2x RX 7900 XTX, 64 GiB RAM", backend="vulkan")
    gpus = [structs.replace(gpu, uuid=f"GPU-{n}", pci_address=f"0{n}") for n, gpu in enumerate(target.machine.gpus)]
    machine = structs.replace(target.machine, gpus=tuple(gpus))
    plan = structs.replace(target.plan, gpu_uuids=("GPU-1",), gpu_indexes=(gpus[1].index,))
    assert after(composed(structs.replace(target, machine=machine, plan=plan))["command"], "-dev") == ["Vulkan1"]


def test_dollar_signs_reach_the_engine():
    target = structs.replace(on_words(), extra=("--api-key", "a$b${c}"))
    assert composed(target)["command"][-1] == "a$$b$${c}"
    assert docker.render(target).argv[-1] == "a$b${c}"


def test_ipv6_addresses_stand_in_brackets():
    assert composed(structs.replace(on_words(), host="::1"))["ports"] == ["[::1]:8080:8080"]


def test_gpus_without_uuid_are_given_by_index():
    target = on_words("2x RTX 3090, 64 GiB RAM")
    unknown = structs.replace(target.plan, gpu_uuids=(None, "GPU-b"), gpu_indexes=(3, None))
    assert docker.gpu_ids(structs.replace(target, plan=unknown)) == ["3", "GPU-b"]
    neither = structs.replace(target.plan, gpu_uuids=(None,), gpu_indexes=(None,))
    assert docker.gpu_ids(structs.replace(target, plan=neither)) == ["0"]


def compose_program() -> list[str] | None:
    """The plug-in of the docker client, else the program of its own that came before it."""
    client = shutil.which("docker")
    if client and not subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode:
        return [client, "compose"]
    alone = shutil.which("docker-compose")
    return [alone] if alone else None


@pytest.mark.parametrize("name", TARGETS)
def test_compose_accepts_the_file(name, tmp_path):
    program = compose_program()
    if program is None:
        pytest.skip("no docker compose here: apt-get install docker-compose")
    (tmp_path / "compose.yaml").write_text(docker.compose(TARGETS[name]()))
    done = subprocess.run(
        [*program, "-f", "compose.yaml", "config", "-q"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
