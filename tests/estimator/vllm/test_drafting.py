"""What next-token layers take, against the parameters stored beyond the trunk in the published checkpoints."""

from __future__ import annotations

import pytest
from msgspec import structs

from willitrun_estimator.request import Request
from willitrun_estimator.vllm.drafting import drafting, drafting_said
from willitrun_estimator.vllm.formats import FORMATS
from willitrun_estimator.vllm.plan import vllm_plan


# Parameters of the checkpoint less those of the trunk (the safetensors totals on the hub); DeepSeek's copies of the
# vocabulary tables (2 x 129280 x 7168) taken off, which vLLM shares with the model.
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("qwen3.5-0.8b", 20452864),
        ("qwen3.6-27b", 424699392),
        ("qwen3.6-35b-a3b", 844640768),
        ("qwen3.5-397b-a17b", 6595568128),
        ("glm-4.6", 3988069792),
        ("deepseek-v3.1", 13463426304 - 2 * 129280 * 7168),
    ],
)
def test_the_weights_are_those_of_the_checkpoint(model, name, stored):
    spec = structs.replace(model(name), mtp_layers=1)
    found = drafting(spec, FORMATS["bf16"], tensor_parallel=1, kv_type="auto")
    assert found.layers == 1
    assert found.weights_bytes / 2 == pytest.approx(stored, rel=0.002)


def test_the_cache_is_that_of_one_more_attention_layer(model):
    split = drafting(model("qwen3.6-35b-a3b"), FORMATS["fp8"], tensor_parallel=2, kv_type="fp8")
    assert split.cache_bytes_per_token == 1 * (256 + 256)
    latent = drafting(model("deepseek-v3.1"), FORMATS["fp8"], tensor_parallel=8, kv_type="auto")
    assert latent.cache_bytes_per_token == (512 + 64) * 2


def test_hybrids_of_single_mixers_take_attention_and_experts(model):
    spec = model("nemotron-3-super-120b-a12b")
    found = drafting(spec, FORMATS["bf16"], tensor_parallel=1, kv_type="auto")
    assert found.weights_bytes / 2 == pytest.approx(2942325248, rel=0.02)


def test_a_layer_that_also_keeps_a_state_caches_its_keys_and_values(model):
    spec = structs.replace(model("falcon-h1-34b"), mtp_layers=1)
    found = drafting(spec, FORMATS["bf16"], tensor_parallel=1, kv_type="auto")
    assert found.cache_bytes_per_token == 4 * 2 * 128 * 2


def test_layers_that_gguf_files_leave_out_are_the_checkpoints(model):
    spec = model("deepseek-v3.1")
    assert (spec.mtp_layers, spec.checkpoint_mtp_layers) == (0, 1)
    assert "names a next-token layer" in drafting_said(spec, FORMATS["fp8"], tensor_parallel=8, kv_type="auto")


def test_models_without_such_layers_say_nothing(model, machine):
    assert drafting_said(model("llama-3.1-8b"), FORMATS["bf16"], tensor_parallel=1, kv_type="auto") is None
    three = structs.replace(model("minimax-m2.5"), mtp_layers=3)
    said = drafting_said(three, FORMATS["fp8"], tensor_parallel=8, kv_type="auto")
    assert "3 next-token layers" in said
    recurrent = structs.replace(model("mamba-2.8b"), mtp_layers=1)
    assert drafting_said(recurrent, FORMATS["bf16"], tensor_parallel=1, kv_type="auto") is None
    found = vllm_plan(model("qwen3.6-27b"), machine("NVIDIA H100 SXM5 80 GB"), Request())
    assert any("--speculative-config" in sentence and "not predicted" in sentence for sentence in found.findings)
