from __future__ import annotations

import pytest
from msgspec import structs

from tests.willitrun_here.launch.targets import on_recorded, on_words
from willitrun_here.launch import visible
from willitrun_here.launch.flags import NEWEST
from willitrun_here.launch.target import Target


def with_plan(target: Target, **fields) -> Target:
    return structs.replace(target, plan=structs.replace(target.plan, **fields))


def with_gpus(target: Target, *changes: dict) -> Target:
    gpus = tuple(structs.replace(target.machine.gpus[0], **change) for change in changes)
    return structs.replace(target, machine=structs.replace(target.machine, gpus=gpus))


def without(target: Target, *names: str) -> Target:
    return structs.replace(target, flags=structs.replace(NEWEST, names=NEWEST.names - set(names)))


def test_cuda_gpus_by_uuid_else_by_bus_order():
    target = on_words("2x RTX 3090, 64 GiB RAM")
    one = with_plan(target, gpu_uuids=(None,), gpu_indexes=(1,))
    assert visible.environment(one) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    assert visible.environment(with_plan(one, gpu_indexes=(None,)))["CUDA_VISIBLE_DEVICES"] == "0"
    assert visible.environment(with_plan(one, gpu_uuids=("GPU-a",))) == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert visible.environment(with_plan(one, gpu_uuids=("MIG-a",))) == {"CUDA_VISIBLE_DEVICES": "MIG-a"}
    assert visible.environment(with_plan(target, gpu_uuids=(None, None), gpu_indexes=(0, 1))) == {}


def test_a_bare_uuid_is_not_given_to_cuda():
    """Jetson's driver reports one without `GPU-`, which CUDA_VISIBLE_DEVICES takes for nothing."""
    target = on_recorded("jetson-orin", "llama-3.2-3b", quant="Q4_K_M")
    (uuid,) = target.plan.gpu_uuids
    assert uuid is not None
    assert not uuid.startswith("GPU-")
    assert visible.environment(target) == {}


def test_rocm_gpus_by_uuid_else_by_bus_order():
    target = on_words("2x RX 7900 XTX, 64 GiB RAM")
    known = with_plan(target, gpu_uuids=("GPU-1f", "GPU-2e"))
    assert visible.environment(known) == {"ROCR_VISIBLE_DEVICES": "GPU-1f,GPU-2e"}
    assert visible.environment(with_plan(target, gpu_uuids=(None, None))) == {}
    cards = with_gpus(
        target,
        {"index": None, "pci_address": "0000:43:00.0", "memory_free_bytes": 20 << 30},
        {"index": None, "pci_address": "0000:03:00.0", "memory_free_bytes": 10 << 30},
        {"pci_address": "0000:01:00.0", "usable": False},
    )
    use = structs.replace(target.plan.devices[0], free_bytes=20 << 30)
    one = with_plan(cards, gpu_uuids=(None,), gpu_indexes=(None,), devices=(use, target.plan.devices[-1]))
    assert visible.environment(one) == {"HIP_VISIBLE_DEVICES": "1"}, "the second on the bus of those that work"


def test_a_variable_that_hides_gpus_cannot_hide_the_planned_ones():
    target = on_recorded("mi250x-two-dies", "llama-3.1-8b", quant="Q4_K_M")
    assert [gpu.visible for gpu in target.machine.gpus] == [True, False]
    assert visible.environment(target) == {
        "ROCR_VISIBLE_DEVICES": target.plan.gpu_uuids[0],
        "HIP_VISIBLE_DEVICES": "0",
    }


def test_partitions_of_a_card_have_uuids_of_their_own():
    target = on_recorded("mi300x-cpx", "llama-3.1-8b", quant="Q8_0", context=8192)
    env = visible.environment(target)
    assert env["ROCR_VISIBLE_DEVICES"].split(",") == list(target.plan.gpu_uuids)


def test_a_cpu_plan_hides_the_gpus():
    cpu = on_words(backend="cpu")
    assert visible.environment(cpu) == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert visible.device_arguments(cpu) == ["-dev", "none"]
    assert visible.device_arguments(without(cpu, "-dev")) == []
    amd = on_words("RX 7900 XTX, 64 GiB RAM", backend="cpu")
    assert visible.environment(amd) == {"ROCR_VISIBLE_DEVICES": "-1"}
    none = on_words("no GPU, 64 GiB RAM")
    assert visible.environment(none) == {}
    assert visible.device_arguments(none) == []


def test_vulkan_devices_are_chosen_where_there_are_others():
    alone = on_words("Intel Arc A770, 64 GiB RAM")
    assert visible.vulkan_numbers(alone) is None
    assert visible.device_arguments(alone) == []
    assert visible.note(alone) is None
    hybrid = on_recorded("laptop-hybrid", "llama-3.2-3b", backend="vulkan", quant="Q4_K_M", context=4096)
    assert visible.device_arguments(hybrid) == ["-dev", "Vulkan0"], "discrete devices come first"
    assert visible.environment(hybrid) == {}
    assert "--list-devices" in (visible.note(hybrid) or "")
    old = without(hybrid, "-dev")
    assert visible.device_arguments(old) == []
    assert visible.environment(old) == {"GGML_VK_VISIBLE_DEVICES": "0"}
    ollama = with_plan(hybrid, engine="ollama")
    assert visible.environment(ollama) == {"GGML_VK_VISIBLE_DEVICES": "0"}


def test_vulkan_numbers_follow_the_bus():
    target = on_words("2x RX 7900 XTX, 64 GiB RAM", backend="vulkan")
    cards = with_gpus(
        target,
        {"pci_address": "0000:43:00.0", "uuid": "GPU-b"},
        {"pci_address": "0000:03:00.0", "uuid": "GPU-a"},
        {"pci_address": "0000:00:02.0", "vendor": "intel", "kind": "integrated", "uuid": None},
        {"pci_address": "0000:02:00.0", "vendor": "nvidia", "uuid": "GPU-n"},
    )
    one = with_plan(cards, gpu_uuids=("GPU-b",), gpu_indexes=(cards.machine.gpus[0].index,))
    assert visible.device_arguments(one) == ["-dev", "Vulkan2"]
    assert visible.device_arguments(one, container=True) == ["-dev", "Vulkan1"], "NVIDIA's are not in /dev/dri"
    green = with_plan(one, gpu_uuids=("GPU-n",))
    assert visible.device_arguments(green) == ["-dev", "Vulkan0"]
    assert visible.device_arguments(green, container=True) == []


def test_metal_has_one_device():
    target = on_recorded("apple-m4-max", "llama-3.1-8b", quant="Q4_K_M")
    assert visible.environment(target) == {}
    assert visible.device_arguments(target) == []


@pytest.mark.parametrize(
    "machine", ["h100x8-nvlink", "one-gpu-lost", "rtx5090x2-narrow", "mi300x-cpx", "forbidden-gpu"]
)
def test_planned_gpus_are_found_in_the_machine(machine):
    target = on_recorded(machine, "llama-3.3-70b", quant="Q4_K_M", context=8192)
    found = visible.planned_gpus(target)
    assert [gpu.uuid for gpu in found if gpu is not None] == list(target.plan.gpu_uuids)
    assert [gpu.name for gpu in found if gpu is not None] == [use.name for use in target.plan.devices[:-1]]


def test_a_plan_for_another_machine_finds_none():
    target = on_words()
    assert visible.planned_gpus(with_plan(target, gpu_uuids=("GPU-x",))) == [None]


def test_buffers_are_called_as_the_engine_calls_them():
    two = on_words("2x RTX 3090, 64 GiB RAM", "llama-3.3-70b")
    assert visible.buffer_names(two) == ["CUDA0", "CUDA1"]
    rocm = structs.replace(two, plan=structs.replace(two.plan, backend="rocm"))
    assert visible.buffer_names(rocm) == ["ROCm0", "ROCm1"]
    remote = structs.replace(two, extra=("--rpc", "a:1,b:2"))
    assert visible.buffer_names(remote) == ["RPC0[a:1]", "RPC0[b:2]"]
