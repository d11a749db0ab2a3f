"""When flash attention is on by itself: as llama.cpp's `-fa auto` decides, so that plan and engine agree."""

from __future__ import annotations

import pytest

from tests.estimator.answers_on import answered
from willitrun_catalog.shipped import model
from willitrun_estimator.compute.kernels import chooses_flash, has_flash_kernel


@pytest.mark.parametrize(
    ("name", "backends", "kv_type", "on"),
    [
        # Heads of 160: "layer 0 is assigned to device CUDA0 but Flash Attention is assigned to device CPU".
        ("stablelm-2-12b-chat", ("cuda",), "f16", False),
        ("stablelm-2-12b-chat", ("vulkan",), "f16", True),
        ("stablelm-2-12b-chat", ("vulkan", "metal"), "f16", False),
        ("stablelm-2-12b-chat", (), "f16", True),
        # "enabling flash_attn since it is required for quantized V cache"
        ("stablelm-2-12b-chat", ("cuda",), "q8_0", True),
        ("llama-3.1-8b-instruct", ("cuda",), "f16", True),
        ("deepseek-v3", ("cuda",), "f16", True),
        ("gemma-4-e2b-it", ("cuda",), "f16", True),
        ("mimo-v2-flash", ("rocm",), "f16", True),
        ("ling-3.0-flash", ("metal",), "f16", True),
        ("mamba-2.8b", ("cuda",), "f16", True),
    ],
)
def test_automatic_flash_attention_is_llama_cpps(name: str, backends: tuple[str, ...], kv_type: str, on: bool) -> None:
    assert chooses_flash(model(name), backends, kv_type) is on


@pytest.mark.parametrize(
    ("backend", "kv_type_k", "kv_type_v", "known"),
    [
        ("cuda", "q8_0", "q4_0", True),
        ("cuda", "iq4_nl", "iq4_nl", False),
        ("vulkan", "iq4_nl", "iq4_nl", True),
        ("vulkan", "bf16", "f16", False),
        ("metal", "q8_0", "f16", False),
        ("cpu", "iq4_nl", "f16", True),
    ],
)
def test_cache_types_that_flash_attention_has_kernels_for(
    backend: str, kv_type_k: str, kv_type_v: str, known: bool
) -> None:
    assert has_flash_kernel(backend, 128, 128, 4, kv_type_k, kv_type_v) is known


def test_latent_attention_needs_two_queries_a_head() -> None:
    assert has_flash_kernel("cuda", 576, 512, 3)
    assert not has_flash_kernel("cuda", 576, 512, 1)


def test_a_plan_has_the_flash_attention_that_the_engine_will_have() -> None:
    odd = answered("stablelm-2-12b-chat", "RTX 3090").plan
    assert odd is not None
    assert odd.flash_attention is False
    assert odd.kv_type == "f16"
    usual = answered("qwen3-8b", "RTX 3090").plan
    assert usual is not None
    assert usual.flash_attention is True


@pytest.mark.parametrize(("asked", "on"), [({"flash_attention": True}, True), ({"kv_type": "q8_0"}, True)])
def test_what_is_asked_for_is_kept(asked: dict[str, object], on: bool) -> None:
    plan = answered("stablelm-2-12b-chat", "RTX 3090", **asked).plan
    assert plan is not None
    assert plan.flash_attention is on
