from __future__ import annotations

import pytest

from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.kernels import driver_floor, floor, kernel


# https://docs.vllm.ai/en/latest/features/quantization/
@pytest.mark.parametrize(
    ("quant", "name", "how", "kernel_name"),
    [
        ("fp8", "NVIDIA H100 SXM5 80 GB", "native", "cutlass fp8"),
        ("fp8", "NVIDIA GeForce RTX 4090", "native", "cutlass fp8"),
        ("fp8", "NVIDIA GeForce RTX 3090", "weight-only", "marlin (weight-only)"),
        ("awq", "NVIDIA H100 SXM5 80 GB", "weight-only", "marlin (weight-only)"),
        ("awq", "NVIDIA Tesla T4", "weight-only", "marlin (weight-only)"),
        ("nvfp4", "NVIDIA GeForce RTX 5090", "native", "cutlass fp4"),
        ("nvfp4", "NVIDIA L40S", "weight-only", "marlin (weight-only)"),
        ("mxfp4", "NVIDIA H100 SXM5 80 GB", "weight-only", "marlin (weight-only)"),
        ("mxfp4", "NVIDIA Tesla T4", None, ""),
        ("w8a8", "NVIDIA A100 SXM4 80 GB", "native", "cutlass int8"),
        ("w8a8", "NVIDIA B200 SXM", None, ""),
        ("awq", "NVIDIA Tesla V100 SXM2 16 GB", None, ""),
        ("gptq", "NVIDIA Tesla V100 SXM2 16 GB", "weight-only", "exllama (weight-only)"),
        ("fp8", "AMD Instinct MI300X", "native", "hipblaslt fp8"),
        ("fp8", "AMD Instinct MI210", "emulated", "hipblaslt fp8 (emulated)"),
        ("mxfp4", "AMD Instinct MI350X", "native", "aiter mxfp4"),
        ("mxfp4", "AMD Instinct MI300X", "weight-only", "triton mxfp4 (weight-only)"),
        ("w8a8", "AMD Instinct MI300X", None, ""),
    ],
)
def test_formats_run_as_the_documentation_says(gpu, quant, name, how, kernel_name):
    found = kernel(format_of(quant), gpu(name), (0, 26))
    assert (found.how, found.name) == (how, kernel_name)
    assert found.reason
    if how == "weight-only":
        assert "no faster" in found.reason


def test_bitsandbytes_left_the_registry_in_0_28(gpu):
    card = gpu("NVIDIA GeForce RTX 4090")
    assert kernel(format_of("bnb-nf4"), card, (0, 27)).how == "weight-only"
    assert kernel(format_of("bnb-nf4"), card, (0, 28)).how is None


def test_devices_below_the_floor_are_named(gpu):
    assert floor(gpu("NVIDIA GeForce RTX 4090"), (0, 33)) is None
    assert "7.5" in floor(gpu("NVIDIA Tesla V100 SXM2 16 GB"), (0, 33))
    assert floor(gpu("NVIDIA Tesla V100 SXM2 16 GB"), (0, 14)) is None
    assert "7.0" in floor(gpu("NVIDIA GeForce GTX 1080 Ti"), (0, 14))
    assert "forks" in floor(gpu("AMD Instinct MI100"), (0, 33))
    assert floor(gpu("AMD Instinct MI300X"), (0, 33)) is None
    assert floor(gpu("AMD Instinct MI300X", gfx_target=None), (0, 33)) is None
    assert "vulkan" in floor(gpu("NVIDIA GeForce RTX 4090", backend="vulkan"), (0, 33))
    assert floor(gpu("NVIDIA GeForce RTX 4090", compute_capability=None), (0, 33)) is None


def test_an_unknown_capability_counts_as_ampere(gpu):
    card = gpu("NVIDIA GeForce RTX 4090", compute_capability=None)
    assert kernel(format_of("fp8"), card, (0, 33)).how == "weight-only"


def test_driver_floors_follow_the_cuda_of_the_wheels():
    assert "580" in driver_floor((0, 33))
    assert "525" in driver_floor((0, 20))
