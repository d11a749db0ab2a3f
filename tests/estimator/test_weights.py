from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog import shipped
from willitrun_catalog.block_types import tensor_bytes
from willitrun_catalog.find import find_model
from willitrun_catalog.model import Tensor
from willitrun_catalog.quant import BASE_TYPES, FORMATS, LADDER, UnknownQuant, tensor_types
from willitrun_estimator.tensors import tensors
from willitrun_estimator.weights import weight_bytes_by_role, weight_profile

TRUTH = Path(__file__).resolve().parents[1] / "truth"
UNITS = {"bytes": 1, "MiB": 1 << 20, "GiB": 1 << 30, "GB": 10**9}
MODELS = st.sampled_from(shipped.model_names())
QUANTS = st.sampled_from([*sorted(set(BASE_TYPES) - {"Q1_0"}), *FORMATS])


def rows(name):
    with (TRUTH / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def requantized(name):
    """Give a model as if its makers had published 16 bits: llama-quantize then touches the experts as well."""
    spec = shipped.model(name)
    return structs.replace(spec, native_type="bf16") if spec.native_type == "mxfp4" else spec


SIZES: dict[str, list[dict[str, str]]] = {}
for row in rows("quant_sizes.csv"):
    SIZES.setdefault(row["model"], []).append(row)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_mixes_are_those_of_llama_quantize_to_the_byte(name):
    spec = requantized(name)
    for row in SIZES[name]:
        assert weight_profile(spec, row["quant"]).tensor_bytes == int(row["tensor_bytes"]), row["quant"]


def test_published_files_are_met():
    errors = []
    for row in rows("gguf_sizes.csv"):
        spec = find_model(row["model"]).spec
        published = float(row["size"]) * UNITS[row["unit"]]
        errors.append(abs(weight_profile(spec, row["quant"]).file_bytes / published - 1))
    assert len(errors) > 600
    assert statistics.median(errors) <= 0.006
    assert statistics.quantiles(errors, n=10)[-1] <= 0.04


def test_both_ways_to_a_sum_agree():
    for name in ("qwen3-next-80b-a3b-instruct", "gemma-4-26b-a4b-it", "glm-5.3-flash", "deepseek-v4-flash"):
        spec = shipped.model(name)
        listed = tensors(spec)
        for quant in ("Q4_K_M", "IQ2_M", "Q8_0", "F16"):
            total = sum(
                tensor_bytes(kind, tensor.shape)
                for kind, tensor in zip(tensor_types(quant, listed, spec), listed, strict=True)
            )
            assert weight_profile(spec, quant).tensor_bytes == total


@given(MODELS, QUANTS)
def test_parts_add_up_to_the_file(name, quant):
    weights = weight_profile(shipped.model(name), quant)
    blocks = sum(layer.resident_bytes + layer.expert_bytes for layer in weights.layers)
    tied = weights.embedding_bytes if all(tensor.name != "output.weight" for tensor in tensors(weights.spec)) else 0
    beyond = weights.embedding_bytes + weights.output_bytes + weights.host_extra_bytes
    assert blocks + beyond - tied + weights.unloaded_bytes == weights.tensor_bytes
    assert weights.cumulative_resident_bytes[-1] + weights.cumulative_expert_bytes[-1] == blocks
    assert sum(amount for _, amount in weights.type_bytes) == weights.tensor_bytes
    assert weights.tensor_bytes < weights.file_bytes < weights.tensor_bytes + 20_000_000
    assert weights.active_params <= weights.params


@given(MODELS, QUANTS)
def test_cumulative_sums_never_fall(name, quant):
    weights = weight_profile(shipped.model(name), quant)
    assert len(weights.cumulative_resident_bytes) == len(weights.layers) + 1
    assert list(weights.cumulative_resident_bytes) == sorted(weights.cumulative_resident_bytes)
    for layer in weights.layers:
        assert 0 <= layer.expert_active_bytes <= layer.expert_bytes
        assert layer.largest_tensor_bytes <= layer.resident_bytes
        assert layer.largest_expert_tensor_bytes <= layer.expert_bytes


@given(MODELS)
def test_the_ladder_never_grows(name):
    spec = requantized(name)
    sizes = [weight_profile(spec, quant).tensor_bytes for quant in ("F32", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")]
    assert sizes == sorted(sizes, reverse=True)


def test_a_tied_table_is_counted_once_in_the_file_and_twice_when_loaded():
    weights = weight_profile(shipped.model("gemma-3-12b-it"), "Q4_K_M")
    assert weights.output_bytes == weights.embedding_bytes + 4 * 3840
    assert weights.params == shipped.model("gemma-3-12b-it").params == 11_766_034_176


def test_next_token_blocks_are_in_the_file_and_not_loaded():
    # https://github.com/ggml-org/llama.cpp loads 70.44 of the 72.85 GB that GLM-4.5-Air has in Q4_K_M.
    weights = weight_profile(shipped.model("glm-4.5-air"), "Q4_K_M")
    assert weights.file_bytes == pytest.approx(72.85e9, rel=2e-4)
    assert weights.tensor_bytes - weights.unloaded_bytes == pytest.approx(70.44e9, rel=2e-4)
    assert len(weights.layers) == 46


def test_active_parameters():
    assert weight_profile(shipped.model("qwen3-30b-a3b"), "Q4_K_M").active_params == pytest.approx(3.35e9, rel=0.01)
    assert weight_profile(shipped.model("gpt-oss-20b"), "MXFP4_MOE").active_params == pytest.approx(4.19e9, rel=0.01)
    assert weight_profile(shipped.model("deepseek-v3"), "Q4_K_M").active_params == pytest.approx(37.55e9, rel=0.01)
    dense = weight_profile(shipped.model("phi-4"), "Q4_K_M")
    assert dense.active_params == dense.params


def test_experts_trained_in_mxfp4_stay_under_every_label():
    # bartowski/openai_gpt-oss-20b-GGUF: every label between 10.7 and 11.3 GiB.
    sizes = {quant: weight_profile(shipped.model("gpt-oss-20b"), quant).file_bytes / 2**30 for quant in LADDER[1:]}
    assert all(10.6 < size < 12 for size in sizes.values())
    assert weight_profile(shipped.model("gpt-oss-20b"), "MXFP4_MOE").matmul_type == "MXFP4"


def test_tables_per_layer_stay_on_the_host():
    weights = weight_profile(shipped.model("gemma-4-e2b-it"), "Q4_K_M")
    assert weights.host_extra_bytes > 1_000_000_000
    assert weights.embedding_bytes < weights.host_extra_bytes


def test_the_largest_tensors_are_whole_ones():
    weights = weight_profile(shipped.model("deepseek-v3"), "Q4_K_M")
    assert weights.layers[10].largest_expert_tensor_bytes in {
        tensor_bytes("Q4_K", (2048, 7168, 256)),
        tensor_bytes("Q6_K", (2048, 7168, 256)),
    }


def test_a_file_s_types_win_over_the_label():
    listed = (
        Tensor("token_embd.weight", (256, 1000), None, "embedding", "Q8_0"),
        Tensor("output_norm.weight", (256,), None, "norm", "F32"),
        Tensor("output.weight", (256, 1000), None, "output", "Q6_K"),
        Tensor("blk.0.attn_q.weight", (256, 256), 0, "attention", "Q4_K"),
        Tensor("blk.0.attn_norm.weight", (256,), 0, "norm", "F32"),
        Tensor("blk.1.attn_q.weight", (256, 256), 1, "attention", "Q5_K"),
    )
    base = shipped.model("llama-3.1-8b-instruct")
    spec = structs.replace(base, tensors=listed, quant="UD-Q4_K_XL", file_bytes=1_000_000, layers=base.layers[:1])
    weights = weight_profile(spec, "Q2_K")
    assert weights.quant == "UD-Q4_K_XL"
    assert weights.tensor_bytes == 272_000 + 1024 + 210_000 + 144 * 256 + 1024 + 176 * 256
    assert weights.layers[0].resident_bytes == 144 * 256 + 1024
    assert weights.unloaded_bytes == 176 * 256
    assert weights.file_bytes == 1_000_000
    assert weights.matmul_type == "Q6_K"


def test_the_size_of_a_float_checkpoint_is_not_that_of_its_quantization():
    checkpoint = structs.replace(shipped.model("qwen3-8b"), file_bytes=16_381_516_208)
    assert weight_profile(checkpoint, "Q4_K_M") == structs.replace(
        weight_profile(shipped.model("qwen3-8b"), "Q4_K_M"), spec=checkpoint
    )
    awq = structs.replace(checkpoint, quant="AWQ", file_bytes=6_099_999_999)
    assert weight_profile(awq, "awq").file_bytes == 6_099_999_999
    assert weight_profile(awq, "Q4_K_M").file_bytes < 5_100_000_000


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("BF16", 16), ("FP8", 8.002), ("AWQ", 4.156), ("GPTQ-INT4", 4.156), ("NVFP4", 4.5), ("BNB-NF4", 4.127)],
)
def test_checkpoint_formats_keep_table_and_head_in_16_bits(quant, bits):
    spec = shipped.model("llama-3.1-8b-instruct")
    weights = weight_profile(spec, quant)
    table = 128256 * 4096
    blocks = spec.params - 2 * table
    assert weights.embedding_bytes == 2 * table
    assert weights.tensor_bytes == pytest.approx(4 * table + blocks * bits / 8, rel=2e-3)


def test_roles_add_up():
    for quant in ("Q4_K_M", "AWQ", "FP8"):
        spec = shipped.model("glm-4.5-air")
        roles = weight_bytes_by_role(spec, quant)
        weights = weight_profile(spec, quant)
        assert sum(roles.values()) == weights.tensor_bytes - weights.unloaded_bytes
        assert roles["experts"] == weights.cumulative_expert_bytes[-1]


def test_an_unknown_quantization_is_an_error():
    with pytest.raises(UnknownQuant):
        weight_profile(shipped.model("phi-4"), "Q9_Z")


def test_many_profiles_a_second():
    specs = shipped.models()[::10]
    for spec in specs:
        weight_profile(spec, "Q8_0")
    start = time.perf_counter()
    for spec in specs:
        for quant in LADDER:
            weight_profile(spec, quant)
    assert len(specs) * len(LADDER) / (time.perf_counter() - start) > 300
