from __future__ import annotations

import pytest

from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.kernels import (
    cache_refused,
    driver_branch,
    driver_floor,
    driver_too_old,
    floor,
    kernel,
    newest_for,
)
from willitrun_estimator.vllm.versions import LATEST


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


@pytest.mark.parametrize(("driver", "newest"), [("580.95.05", LATEST), ("535.183.01", (0, 26)), ("470.82.01", LATEST)])
def test_the_driver_decides_which_release_is_the_newest(gpu, driver, newest):
    device = gpu("NVIDIA Tesla T4", driver_version=driver)
    assert newest_for((device,)) == newest
    assert newest_for((gpu("NVIDIA Tesla T4"),)) == LATEST


def test_a_driver_too_old_for_a_release_is_said(gpu):
    old, new = gpu("NVIDIA Tesla T4", driver_version="535.1"), gpu("NVIDIA Tesla T4", driver_version="580.1")
    assert "535 is too old for vLLM 0.33" in driver_too_old((new, old), (0, 33))
    assert driver_too_old((old,), (0, 26)) is None
    assert driver_too_old((gpu("NVIDIA Tesla T4"),), (0, 33)) is None
    assert driver_branch(gpu("AMD Instinct MI300X", driver_version="6.12.0")) is None


def test_eight_bit_caches_need_eight_bit_floats(gpu):
    assert "8.9" in cache_refused("fp8", gpu("NVIDIA GeForce RTX 3090"))
    for name, kind in (
        ("NVIDIA GeForce RTX 4090", "fp8"), ("NVIDIA GeForce RTX 3090", "auto"),
        ("NVIDIA GeForce RTX 3090", "fp8_e5m2"), ("AMD Instinct MI300X", "fp8"),
    ):  # fmt: skip
        assert cache_refused(kind, gpu(name)) is None


def test_volta_is_pointed_to_the_last_release_that_took_it(gpu):
    assert "--engine-version 0.14" in floor(gpu("NVIDIA Tesla V100 SXM2 16 GB"), LATEST)
    assert floor(gpu("NVIDIA Tesla V100 SXM2 16 GB"), (0, 14)) is None
    assert "--engine-version" not in floor(gpu("NVIDIA Tesla P40"), LATEST)
