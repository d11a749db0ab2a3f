from __future__ import annotations

import pytest
from msgspec import structs

from willitrun_catalog import shipped
from willitrun_catalog.model import Tensor
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.tensors import UnknownArchitecture, blueprint, tensors
from willitrun_estimator.tensors.registry import families

EXCEPTIONS = {
    # Files keep the key and value projections that the blocks with a shared cache do not use, and Gemma 3n's table
    # per layer is padded to the vocabulary's size.
    "gemma-3n-e4b-it": 33_754_880,
    "gemma-3n-e2b-it": 22_940_160,
    "gemma-4-e2b-it": 18_880_512,
    "gemma-4-e4b-it": 55_055_616,
    # The count of the text part includes a vision adapter; the files add norms of query and key.
    "muse-glimmer-30b": -69_192_704,
    # Two learned numbers per block become metadata in a GGUF file.
    "apertus-8b-instruct-2509": -64,
    "apertus-70b-instruct-2509": -160,
    # Counted from its configuration alone; converters fuse pairs of vectors.
    "kimi-k3": 1_752_576,
}
"""Models whose list differs from the published count of the text model, and by how much."""


def text_params(spec):
    """Weights without next-token blocks and without tables of rotary factors, which are no parameters."""
    return sum(
        tensor.elements
        for tensor in tensors(spec)
        if (tensor.layer is None or tensor.layer < spec.block_count) and not tensor.name.startswith("rope_")
    )


@pytest.mark.parametrize("name", shipped.model_names())
def test_the_list_sums_to_the_published_count(name):
    spec = shipped.model(name)
    assert text_params(spec) - spec.params == EXCEPTIONS.get(name, 0)


def test_exceptions_are_small():
    assert all(abs(gap) < 0.008 * shipped.model(name).params for name, gap in EXCEPTIONS.items())


def test_names_are_unique_and_numbered():
    for spec in shipped.models()[::7]:
        listed = tensors(spec)
        assert len({tensor.name for tensor in listed}) == len(listed)
        blocks = {tensor.layer for tensor in listed} - {None}
        assert blocks == set(range(spec.block_count + spec.mtp_layers))
        assert all((tensor.layer is None) != tensor.name.startswith("blk.") for tensor in listed)


def shapes(name):
    return {tensor.name: tensor.shape for tensor in tensors(shipped.model(name))}


def test_llama_as_its_converter_writes_it():
    listed = shapes("llama-3.1-8b-instruct")
    assert len(listed) == 292
    assert listed["rope_freqs.weight"] == (64,)
    assert listed["blk.31.ffn_down.weight"] == (14336, 4096)
    assert listed["blk.0.attn_k.weight"] == (4096, 1024)
    assert "output.weight" not in shapes("llama-3.2-1b-instruct")


def test_latent_attention_is_split_per_head():
    listed = shapes("deepseek-v3")
    assert listed["blk.3.attn_k_b.weight"] == (128, 512, 128)
    assert listed["blk.3.attn_v_b.weight"] == (512, 128, 128)
    assert listed["blk.3.attn_kv_a_mqa.weight"] == (7168, 576)
    assert listed["blk.3.exp_probs_b.bias"] == (256,)
    assert "blk.2.ffn_gate_inp.weight" not in listed
    assert "blk.61.attn_norm.weight" not in listed


def test_next_token_blocks_follow_the_others():
    listed = shapes("glm-4.5-air")
    assert listed["blk.46.nextn.eh_proj.weight"] == (8192, 4096)
    assert listed["blk.46.nextn.embed_tokens.weight"] == (4096, 151552)
    assert listed["blk.46.ffn_down_exps.weight"] == (1408, 4096, 128)
    assert blueprint(shipped.model("glm-4.5-air")).loaded_blocks == 46


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        # The safetensors total of the checkpoint, less the text model.
        ("glm-4.5-air", 3_616_573_568),
        ("glm-4.6", 3_988_069_792),
        ("glm-5.2", 9_952_920_576),
        ("deepseek-v3.2", 13_477_385_728),
        ("step-3.7-flash", 1_799_156_480),
        ("mimo-v2-flash", 972_091_392),
        ("k-exaone-236b-a23b", 528_513_280),
        ("qwen3.5-27b", 424_699_392),
        ("qwen3.5-35b-a3b", 844_640_768),
        ("nemotron-3-super-120b-a12b", 2_942_325_248),
    ],
)
def test_next_token_blocks_are_as_large_as_in_the_checkpoint(name, stored):
    spec = shipped.model(name)
    assert sum(tensor.elements for tensor in tensors(spec) if (tensor.layer or 0) >= spec.block_count) == stored


def test_hybrids_alternate():
    listed = shapes("qwen3-next-80b-a3b-instruct")
    assert listed["blk.0.ssm_ba.weight"] == (2048, 64)
    assert listed["blk.0.attn_qkv.weight"] == (2048, 8192)
    assert listed["blk.3.attn_q.weight"] == (2048, 8192)
    assert "blk.3.ssm_out.weight" not in listed
    granite = shapes("granite-4.0-h-small")
    assert granite["blk.0.ssm_in.weight"] == (4096, 2 * 8192 + 2 * 128 + 128)
    assert granite["blk.5.attn_v.weight"] == (4096, 1024)


def test_the_last_norm_of_lfm2_has_another_name():
    for name in ("lfm2-1.2b", "lfm2-8b-a1b"):
        listed = shapes(name)
        assert listed["token_embd_norm.weight"] == (2048,)
        assert "output_norm.weight" not in listed


def test_rotary_factors_are_those_of_full_attention():
    # src/models/gemma4.cpp: half a head of the blocks without a window, 512 wide; those with one have 256.
    assert shapes("gemma-4-31b-it")["rope_freqs.weight"] == (256,)
    assert shapes("gemma-4-e2b-it")["rope_freqs.weight"] == (256,)
    # conversion/exaone.py writes none without Llama 3's scaling, and llama.cpp counts them twice beside a
    # next-token block.
    assert "rope_freqs.weight" not in shapes("k-exaone-236b-a23b")


def test_the_balancing_bias_of_hunyuan_3_has_no_suffix():
    listed = shapes("hy3-preview")
    assert listed["blk.1.exp_probs_b"] == (192,)
    assert not any(name.endswith("exp_probs_b.bias") for name in listed)


def test_the_next_token_block_of_ling_2_ends_with_its_own_norm():
    spec = structs.replace(shipped.model("ling-mini-2.0"), mtp_layers=1)
    names = {tensor.name for tensor in tensors(spec) if tensor.layer == spec.block_count}
    assert {"blk.20.layer_output_norm.weight", "blk.20.nextn.eh_proj.weight", "blk.20.exp_probs_b.bias"} <= names
    assert "blk.20.nextn.shared_head_norm.weight" not in names


def test_deepseek_4_names_the_norm_of_its_one_row_like_that_of_a_compressed_row():
    listed = shapes("deepseek-v4-flash")
    assert listed["blk.0.attn_kv.weight"] == (4096, 512)
    assert listed["blk.0.attn_kv_a_norm.weight"] == (512,)


def test_what_llama_cpp_does_not_load_says_so():
    # src/models/phimoe.cpp: the query matrix is square.
    refused = {spec.name for spec in shipped.models() if spec.findings}
    square = {
        spec.name: spec.hidden_size == spec.layers[0].mixers[0].heads * spec.layers[0].mixers[0].key_dim
        for spec in shipped.models()
        if spec.architecture == "phimoe"
    }
    assert square == {name: name not in refused for name in square}
    assert {"lfm3-1.7b", "olmo-hybrid-7b", "llama-3.2-11b-vision-instruct"} <= refused


def test_shared_values_have_no_matrix():
    listed = shapes("gemma-4-31b-it")
    assert "blk.0.attn_v.weight" in listed
    assert "blk.5.attn_v.weight" not in listed
    assert listed["blk.5.attn_q_norm.weight"] == (512,)


def test_roles():
    roles = {tensor.name: tensor.role for tensor in tensors(shipped.model("qwen3-next-80b-a3b-instruct"))}
    assert roles["token_embd.weight"] == "embedding"
    assert roles["output.weight"] == "output"
    assert roles["blk.0.ffn_down_exps.weight"] == "experts"
    assert roles["blk.0.ffn_down_shexp.weight"] == "ffn"
    assert roles["blk.0.ffn_gate_inp.weight"] == "router"
    assert roles["blk.0.ssm_out.weight"] == roles["blk.3.attn_output.weight"] == "attention"
    assert roles["blk.0.attn_norm.weight"] == roles["blk.0.ssm_a"] == "norm"


def test_an_unknown_architecture_is_said_to_be_unknown():
    spec = structs.replace(shipped.model("llama-3.1-8b-instruct"), architecture="elephant")
    with pytest.raises(UnknownArchitecture) as caught:
        tensors(spec)
    assert caught.value.architecture == "elephant"
    assert "GGUF" in caught.value.advice


def test_an_unknown_architecture_with_its_own_list_is_counted():
    listed = (
        Tensor("token_embd.weight", (64, 100), None, "embedding", "Q8_0"),
        Tensor("blk.0.mystery.weight", (64, 64), 0, "extra", "Q4_0"),
        Tensor("blk.1.mystery.weight", (64, 64), 1, "extra", "Q4_0"),
    )
    spec = structs.replace(
        shipped.model("llama-3.1-8b-instruct"),
        architecture="elephant",
        tensors=listed,
        quant="Q4_0",
    )
    assert tensors(spec) is listed
    plan = blueprint(structs.replace(spec, layers=spec.layers[:2]))
    assert (plan.order, plan.loaded_blocks, len(plan.kinds)) == ((0, 0), 2, 1)


def test_every_architecture_of_the_catalog_has_an_entry():
    needed = {spec.architecture for spec in shipped.models() if spec.tensors is None}
    assert needed <= set(families())


def test_a_blueprint_is_laid_out_once():
    spec = shipped.model("phi-4")
    assert blueprint(spec) is blueprint(spec)


@pytest.mark.parametrize(
    ("name", "other"), [("gemma-4-26b-a4b-it", "falcon-h1-1.5b-instruct"), ("deepseek-v4-flash", "deepseek-v3")]
)
def test_a_layer_that_the_architecture_cannot_have_is_refused(name, other):
    spec = shipped.model(name)
    foreign = structs.replace(spec.layers[0], mixers=shipped.model(other).layers[0].mixers[-1:])
    with pytest.raises(EstimatorError, match="attention alone"):
        blueprint(structs.replace(spec, layers=(foreign, *spec.layers[1:])))
