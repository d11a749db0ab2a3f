"""What the visibility variables hide, and in which order engines see the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_probe.machine import Gpu
from willitrun_probe.visibility import apply

SMALL = Gpu(vendor="nvidia", name="RTX 3060", uuid="GPU-aaaa0000", pci_address="0000:01:00.0", compute_capability="8.6")
LARGE = Gpu(vendor="nvidia", name="RTX 4090", uuid="GPU-bbbb0000", pci_address="0000:02:00.0", compute_capability="8.9")
TWINS = tuple(
    Gpu(vendor="nvidia", name="L40S", uuid=f"GPU-cc{n}", pci_id="10de:26b9", pci_address=f"0000:0{n}:00.0")
    for n in range(4)
)
SLICE = Gpu(vendor="nvidia", name="MIG 1g", uuid="MIG-dd", kind="mig", parent_uuid="GPU-ee", pci_address="0000:09:00.0")
CARDS = tuple(
    Gpu(vendor="amd", name="MI250X", uuid=f"GPU-ff{n}", pci_id="1002:7408", pci_address=f"0000:c{n}:00.0")
    for n in range(4)
)


def shown(gpus: tuple[Gpu, ...], **environment: str) -> list[str | None]:
    ordered, _ = apply(gpus, environment)
    assert sorted(gpu.name for gpu in ordered) == sorted(gpu.name for gpu in gpus)
    return [gpu.uuid for gpu in ordered if gpu.visible]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", ["GPU-cc0"]),
        ("2,0", ["GPU-cc2", "GPU-cc0"]),
        ("1,-1,0", ["GPU-cc1"]),
        ("1,9,0", ["GPU-cc1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,1", []),
        (" 3 , 2 ", ["GPU-cc3", "GPU-cc2"]),
        ("GPU-cc3,0", ["GPU-cc3", "GPU-cc0"]),
        ("gpu-CC3", ["GPU-cc3"]),
        ("GPU-c", []),
        ("\u0661", []),
        ("99999999999999999999", []),
    ],
)
def test_cuda_visible_devices(value, expected):
    assert shown(TWINS, CUDA_VISIBLE_DEVICES=value) == expected


def test_without_variables_all_are_visible_in_bus_order():
    assert shown(TWINS[::-1]) == ["GPU-cc0", "GPU-cc1", "GPU-cc2", "GPU-cc3"]


def test_index_counts_fastest_first_unless_told_otherwise():
    assert shown((SMALL, LARGE), CUDA_VISIBLE_DEVICES="0") == ["GPU-bbbb0000"]
    assert shown((SMALL, LARGE), CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ["GPU-aaaa0000"]


def test_uncertain_order_is_told_only_when_it_matters():
    def codes(gpus: tuple[Gpu, ...], **environment: str) -> set[str]:
        return {found.code for found in apply(gpus, environment)[1]}

    assert "device-order-uncertain" in codes((SMALL, LARGE), CUDA_VISIBLE_DEVICES="1")
    assert "device-order-uncertain" not in codes((SMALL, LARGE), CUDA_VISIBLE_DEVICES="GPU-aaaa")
    assert "device-order-uncertain" not in codes(TWINS, CUDA_VISIBLE_DEVICES="1")


@pytest.mark.parametrize("token", ["MIG-dd", "MIG-GPU-ee/1/0"])
def test_mig_instances_by_uuid_and_by_the_old_form(token):
    assert shown((SLICE, *TWINS), CUDA_VISIBLE_DEVICES=token) == ["MIG-dd"]


def test_index_of_a_gpu_in_mig_mode_gives_its_first_instance():
    parts = tuple(
        Gpu(
            vendor="nvidia",
            name=f"MIG {n}",
            uuid=f"MIG-{n}",
            kind="mig",
            pci_id="10de:26b9",
            pci_address="0000:00:00.0",
            index=0,
        )
        for n in range(3)
    )
    assert shown((*parts, *TWINS[1:]), CUDA_VISIBLE_DEVICES="0") == ["MIG-0"]
    assert shown((*parts, *TWINS[1:]), CUDA_VISIBLE_DEVICES="1,0") == ["GPU-cc1", "MIG-0"]


def test_rocm_variables_apply_in_two_stages():
    assert shown(CARDS, ROCR_VISIBLE_DEVICES="3,1", HIP_VISIBLE_DEVICES="1") == ["GPU-ff1"]
    assert shown(CARDS, ROCR_VISIBLE_DEVICES="GPU-ff2,0") == ["GPU-ff2", "GPU-ff0"]
    assert shown(CARDS, ROCR_VISIBLE_DEVICES="3,1", HIP_VISIBLE_DEVICES="2") == []
    assert shown(CARDS, CUDA_VISIBLE_DEVICES="2") == ["GPU-ff2"]


def test_cuda_variable_does_not_hide_other_vendors():
    arc = Gpu(vendor="intel", name="Arc", uuid=None)
    ordered, _ = apply((arc, LARGE), {"CUDA_VISIBLE_DEVICES": "-1"})
    assert {gpu.name: gpu.visible for gpu in ordered} == {"Arc": True, "RTX 4090": False}


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_any_text_in_the_variables(cuda, rocr, hip):
    environment = {"CUDA_VISIBLE_DEVICES": cuda, "ROCR_VISIBLE_DEVICES": rocr, "HIP_VISIBLE_DEVICES": hip}
    ordered, _ = apply((*TWINS, *CARDS, SLICE), environment)
    assert len(ordered) == 9
