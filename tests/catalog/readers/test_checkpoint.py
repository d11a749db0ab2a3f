"""Folders of safetensors: headers, formats, links, and models from any class."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.catalog.readers import checkpoint_writer as c
from willitrun_catalog.errors import FileAccessError, FileFormatError
from willitrun_catalog.model import Attention, Dense, Mla, Moe, NoFfn, Recurrent
from willitrun_catalog.readers import open_model
from willitrun_catalog.readers.checkpoint_names import parse
from willitrun_catalog.readers.quantization import quantization
from willitrun_catalog.readers.safetensors import read_tensors
from willitrun_catalog.readers.source import MemorySource
from willitrun_estimator.weights import weight_profile


@pytest.mark.parametrize("shards", [1, 3])
def test_a_plain_checkpoint_is_its_tensors(tmp_path, shards):
    tensors = c.llama()
    pieces = [dict(list(tensors.items())[index::shards]) for index in range(shards)]
    spec = open_model(str(c.folder(tmp_path / "Tiny-Llama", c.LLAMA, pieces)))
    assert (spec.name, spec.architecture, spec.hf_architecture) == ("tiny-llama", "llama", "LlamaForCausalLM")
    assert (spec.hidden_size, spec.vocab_size, spec.max_context_tokens) == (256, 320, 4096)
    assert (spec.quant, spec.native_type, spec.tied_embeddings, spec.mtp_layers) == (None, "bf16", False, 0)
    assert spec.layers[0].mixers == (Attention(heads=4, kv_heads=2, key_dim=64, value_dim=64),)
    assert spec.layers[0].ffn == Dense(width=512)
    assert spec.params == c.size_of(tensors) // 2
    assert spec.file_bytes == sum(Path(path).stat().st_size for path in spec.files)
    assert len(spec.files) == shards
    assert spec.findings == ()
    assert weight_profile(spec, "BF16").params == spec.params
    assert weight_profile(spec, "Q4_K_M").tensor_bytes < weight_profile(spec, "Q8_0").tensor_bytes


@pytest.mark.parametrize("quant", list(c.FORMATS))
def test_every_format_keeps_its_bytes_and_its_shape(tmp_path, quant):
    described, pack = c.FORMATS[quant]
    tensors = c.packed(c.llama(), pack)
    folder = c.folder(tmp_path / "m", {**c.LLAMA, "quantization_config": described}, [tensors])
    spec = open_model(str(folder))
    assert spec.quant == quant
    assert spec.layers[0].mixers == (Attention(heads=4, kv_heads=2, key_dim=64, value_dim=64),)
    profile = weight_profile(spec, quant)
    assert profile.tensor_bytes == pytest.approx(c.size_of(tensors), rel=0.02)
    assert profile.file_bytes == spec.file_bytes
    if quant != "BNB-NF4":  # its matrices are stored as one row of bytes, so a shape is not there to be read
        assert spec.layers[0].ffn == Dense(width=512)
        assert spec.params == c.size_of(c.llama()) // 2


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path):
    _, pack = c.FORMATS["FP8"]
    folder = c.folder(tmp_path / "m", c.LLAMA, [c.packed(c.llama(), pack)])
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert open_model(str(folder)).quant == "FP8"
    assert quantization({}, {"quantization": {"quant_algo": "NVFP4"}}) == ("NVFP4", 4)
    assert quantization({"quantization_config": {"quant_method": "quark", "quant_algo": "MXFP4"}}) == ("MXFP4", 4)


def test_gpt_oss_experts_are_mxfp4_blocks(tmp_path):
    config = {
        "architectures": ["GptOssForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "num_local_experts": 4,
        "num_experts_per_tok": 2, "vocab_size": 100, "max_position_embeddings": 131072, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"], "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": ("BF16", (100, 64)), "lm_head.weight": ("BF16", (100, 64))}
    for number in range(2):
        at = f"model.layers.{number}"
        tensors |= {
            f"{at}.self_attn.q_proj.weight": ("BF16", (64, 64)),
            f"{at}.self_attn.q_proj.bias": ("BF16", (64,)),
            f"{at}.self_attn.sinks": ("BF16", (4,)),
            f"{at}.mlp.router.weight": ("BF16", (4, 64)),
            f"{at}.mlp.experts.gate_up_proj_blocks": ("U8", (4, 192, 2, 16)),
            f"{at}.mlp.experts.gate_up_proj_scales": ("U8", (4, 192, 2)),
            f"{at}.mlp.experts.gate_up_proj_bias": ("BF16", (4, 192)),
            f"{at}.mlp.experts.down_proj_blocks": ("U8", (4, 64, 3, 16)),
            f"{at}.mlp.experts.down_proj_scales": ("U8", (4, 64, 3)),
        }
    spec = open_model(str(c.folder(tmp_path / "oss", config, [tensors])))
    assert (spec.architecture, spec.quant) == ("gpt-oss", "MXFP4")
    assert spec.layers[0].ffn == Moe(experts=4, experts_used=2, width=96)
    assert [layer.mixers[0].window for layer in spec.layers] == [128, None]
    assert weight_profile(spec, "MXFP4").tensor_bytes == pytest.approx(c.size_of(tensors), rel=0.01)
    assert weight_profile(spec, "MXFP4").layers[0].expert_bytes >= 4 * (192 * 2 + 64 * 3) * 17


def test_latent_attention_experts_and_next_token_layers_of_deepseek(tmp_path):
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "vocab_size": 100, "max_position_embeddings": 4096,
        "num_nextn_predict_layers": 1,
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": ("BF16", (100, 64)), "lm_head.weight": ("BF16", (100, 64))}
    for number in range(3):
        at = f"model.layers.{number}"
        tensors |= {
            f"{at}.self_attn.q_a_proj.weight": ("BF16", (48, 64)),
            f"{at}.self_attn.kv_a_proj_with_mqa.weight": ("BF16", (40, 64)),
            f"{at}.self_attn.kv_b_proj.weight": ("BF16", (128, 32)),
        }
        if number == 0:
            tensors[f"{at}.mlp.down_proj.weight"] = ("BF16", (64, 128))
            tensors[f"{at}.mlp.gate_proj.weight"] = ("BF16", (128, 64))
            continue
        tensors[f"{at}.mlp.gate.weight"] = ("BF16", (4, 64))
        tensors[f"{at}.mlp.gate.e_score_correction_bias"] = ("F32", (4,))
        tensors[f"{at}.mlp.shared_experts.down_proj.weight"] = ("BF16", (64, 32))
        for expert in range(4):
            tensors[f"{at}.mlp.experts.{expert}.gate_proj.weight"] = ("BF16", (32, 64))
            tensors[f"{at}.mlp.experts.{expert}.down_proj.weight"] = ("BF16", (64, 32))
    spec = open_model(str(c.folder(tmp_path / "ds", config, [tensors])))
    assert spec.architecture == "deepseek2"
    mixer = Mla(heads=4, kv_rank=32, rope_dim=8, nope_dim=16, value_dim=16, q_rank=48)
    assert [layer.mixers for layer in spec.layers] == [(mixer,), (mixer,)]
    assert [layer.ffn for layer in spec.layers] == [
        Dense(width=128),
        Moe(experts=4, experts_used=2, width=32, shared_width=32),
    ]
    assert spec.mtp_layers == 1
    assert {tensor.role for tensor in spec.tensors if tensor.layer == 2} == {"extra"}
    experts = {tensor.name: tensor.shape for tensor in spec.tensors if tensor.role == "experts" and tensor.layer == 1}
    assert experts == {"blk.1.ffn_gate_exps.weight": (64, 32, 4), "blk.1.ffn_down_exps.weight": (32, 64, 4)}


def test_recurrent_layers_of_qwen_next(tmp_path):
    config = {
        "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 100, "max_position_embeddings": 4096,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": ("BF16", (100, 64)), "lm_head.weight": ("BF16", (100, 64))}
    for number in range(4):
        at = f"model.layers.{number}"
        tensors[f"{at}.mlp.down_proj.weight"] = ("BF16", (64, 32))
        if number == 3:
            tensors[f"{at}.self_attn.q_proj.weight"] = ("BF16", (128, 64))
        else:
            tensors[f"{at}.linear_attn.conv1d.weight"] = ("BF16", (64, 1, 4))
            tensors[f"{at}.linear_attn.in_proj_ba.weight"] = ("BF16", (8, 64))
    kinds = [layer.mixers[0] for layer in open_model(str(c.folder(tmp_path / "n", config, [tensors]))).layers]
    assert [type(mixer) for mixer in kinds] == [Recurrent] * 3 + [Attention]
    assert (kinds[0].kind, kinds[0].conv_elements, kinds[0].state_elements) == ("gated-delta-net", 3 * 64, 8 * 32)


def test_an_unknown_class_is_answered_from_its_tensors_with_a_finding(tmp_path):
    config = {**c.LLAMA, "architectures": ["NeverSeenForCausalLM"], "model_type": "never_seen"}
    spec = open_model(str(c.folder(tmp_path / "m", config, [c.llama()])))
    assert spec.architecture == "never_seen"
    assert spec.layers[0].ffn == Dense(width=512)
    assert any("never_seen" in finding for finding in spec.findings)


def test_a_vision_tower_is_counted_apart(tmp_path):
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {k: v for k, v in c.LLAMA.items() if k != "architectures"},
    }
    text = {name.replace("model.", "language_model.model."): value for name, value in c.llama().items()}
    tower = {"vision_tower.patch_conv.weight": ("BF16", (64, 3, 14, 14))}
    spec = open_model(str(c.folder(tmp_path / "m", config, [{**text, **tower}])))
    assert spec.architecture == "mistral3"
    assert spec.non_text_params == 64 * 3 * 14 * 14
    assert spec.params == c.size_of(c.llama()) // 2
    assert spec.capabilities == ("vision",)


def test_headers_that_lie_are_refused_at_once():
    good = c.table({"a": ("F32", (2, 2))})

    def refused(data: bytes, size: int | None = None) -> FileFormatError:
        with pytest.raises(FileFormatError) as caught:
            read_tensors(MemorySource(data, "x", size))
        return caught.value

    assert refused(b"").field == "header length"
    assert refused(b"\xff" * 8 + good[8:]).field == "header length"
    assert refused(struct.pack("<Q", 1 << 60) + good[8:], 1 << 62).field == "header length"
    assert refused(good, len(good) + 8).field == "data_offsets"
    assert "incomplete" in refused(good, len(good) + 8).advice
    for text, reason in (
        (b"{ ", "broken header"),
        (b"[]", "broken header"),
        (b'{"a":1}', "broken entry"),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', "unknown type"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "impossible shape"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "4 bytes for shape"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "for shape"),
        (b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}', "impossible shape"),
        (b'{"a":{"dtype":"F32","shape":[' + b"1," * 20 + b'1],"data_offsets":[0,4]}}', "impossible shape"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "broken"),
    ):
        error = refused(struct.pack("<Q", len(text)) + text, 1 << 20)
        assert reason in str(error), text[:60]
        assert error.exit_code == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": -4}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": None}, "llama.embedding_length"),
    ],
)
def test_configurations_that_lie_name_the_field(tmp_path, change, field):
    with pytest.raises(FileFormatError) as caught:
        open_model(str(c.folder(tmp_path / "m", {**c.LLAMA, **change}, [c.llama()])))
    assert caught.value.field == field


@pytest.mark.parametrize("stray", [
    {"down_proj.weight_scale": ("F32", (4,))}, {"down_proj.weight": ("BF16", ())},
    {"down_proj.weight": ("BF16", (0, 4))},
    {"experts.0.down_proj.scales": ("F16", (2, 4))}, {"experts.down_proj_blocks": ("U8", (4,))},
])  # fmt: skip
def test_scales_without_a_matrix_say_nothing_about_a_block(tmp_path, stray):
    tensors = {name: value for name, value in c.llama().items() if "down_proj" not in name}
    tensors |= {f"model.layers.0.mlp.{name}": value for name, value in stray.items()}
    spec = open_model(str(c.folder(tmp_path / "m", c.LLAMA, [tensors])))
    assert weight_profile(spec, "BF16").tensor_bytes > 0
    assert spec.layers[1].ffn == NoFfn()


def test_links_out_of_the_folder_are_refused_and_the_hub_cache_is_not(tmp_path):
    folder = c.folder(tmp_path / "m", c.LLAMA, [c.llama()])
    outside = (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(FileAccessError, match="links out of its folder"):
        open_model(str(folder))
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, source in (("model.safetensors", outside), ("config.json", folder / "config.json")):
        blob = repository / "blobs" / f"blob-{name}"
        blob.write_bytes(source.read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert open_model(str(snapshot)).layers


def test_indexes_that_point_elsewhere_or_nowhere_are_refused(tmp_path):
    folder = c.folder(tmp_path / "m", c.LLAMA, [c.llama()])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd.safetensors"}}))
    with pytest.raises(FileAccessError, match="not a file of its own folder"):
        open_model(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(FileAccessError, match="is missing"):
        open_model(str(folder))
    index.unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileAccessError, match="0 safetensors"):
        open_model(str(folder))
    (folder / "config.json").write_text("not json")
    c.write(folder / "model.safetensors", c.llama())
    with pytest.raises(FileFormatError, match="not JSON"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("name", "layer", "part", "suffix"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "attn_q", "weight"),
        ("model.language_model.layers.3.mlp.down_proj.weight", 3, "ffn_down", "weight"),
        ("model.layers.0.mlp.experts.17.down_proj.weight_scale_inv", 0, "ffn_down_exps", "weight_scale_inv"),
        ("model.layers.0.block_sparse_moe.experts.1.w2.qweight", 0, "ffn_down_exps", "qweight"),
        ("model.layers.0.mlp.gate.weight", 0, "ffn_gate_inp", "weight"),
        ("model.layers.0.mlp.shared_expert_gate.weight", 0, "ffn_gate_inp_shexp", "weight"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", 0, "ffn_up_shexp", "weight"),
        ("backbone.layers.7.mixer.in_proj.weight", 7, "ssm_in", "weight"),
        ("backbone.layers.7.mixer.A_log", 7, "ssm_a", ""),
        ("model.layers.1.mixer.dt_bias", 1, "ssm_dt", "bias"),
        (
            "model.layers.1.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
            1,
            "ffn_up",
            "weight.quant_state.bitsandbytes__nf4",
        ),
        ("lm_head.weight", None, "output", "weight"),
        ("model.embed_tokens.weight", None, "token_embd", "weight"),
        ("transformer.h.4.attn.c_attn.bias", 4, "attn_qkv", "bias"),
        ("something.quite.different", None, "something.quite.different", ""),
    ],
)
def test_names_are_understood(name, layer, part, suffix):
    parsed = parse(name)
    assert (parsed.layer, parsed.part, parsed.suffix) == (layer, part, suffix)
