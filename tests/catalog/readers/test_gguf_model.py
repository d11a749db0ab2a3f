"""From a GGUF file to a model: layers, roles, parts, projectors; equal to the catalog's models of the same shape."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from tests.catalog.readers import gguf_writer as w
from willitrun_catalog.errors import CatalogError, FileAccessError, FileFormatError
from willitrun_catalog.model import Attention, Dense, Mla, Moe, NoFfn, NoMixer, Recurrent
from willitrun_catalog.quant import tensor_types
from willitrun_catalog.readers import open_model
from willitrun_catalog.readers.gguf_model import FILE_TYPES, model_from_file
from willitrun_catalog.shipped import models
from willitrun_estimator.tensors import UnknownArchitecture, tensors
from willitrun_estimator.weights import weight_profile

GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
DIFFERENT = {
    "lfm3": "its class is newer than the engine whose rules are followed, so windows are planned as whole contexts",
    "mllama": "the engine has dropped it; its table has eight more rows than its vocabulary",
    "gemma-embedding": "llama.cpp gives an encoder no cache, the catalog lists what its attention would need",
    "llama": "llama.cpp does not slide the windows of early Mistral models",
}


def shapes():
    seen = set()
    for spec in models():
        key = (spec.architecture, spec.layers, spec.hidden_size, spec.vocab_size, spec.traits, spec.sizes)
        if key not in seen:
            seen.add(key)
            yield spec


def write_like(path: Path, spec, quant: str):
    listed = tensors(spec)
    kinds = tensor_types(quant, listed, spec)
    metadata = w.metadata_of(spec)
    metadata["general.file_type"] = next(number for number, name in FILE_TYPES.items() if name == quant)
    return w.write(path, metadata, [(t.name, t.shape, kind) for t, kind in zip(listed, kinds, strict=True)])


PROFILE = (
    "layers",
    "embedding_bytes",
    "output_bytes",
    "host_extra_bytes",
    "tensor_bytes",
    "unloaded_bytes",
    "params",
    "active_params",
    "matmul_type",
)


SHAPE = ("layers", "hidden_size", "vocab_size", "tied_embeddings", "mtp_layers", "max_context_tokens")


@pytest.mark.slow
def test_every_shape_of_the_catalog_reads_back_from_its_file(tmp_path):
    wrong, equal, unknown = [], 0, set()
    for spec in shapes():
        try:
            path = write_like(tmp_path / "model.gguf", spec, "Q4_K_M")
        except UnknownArchitecture:
            unknown.add(spec.architecture)
            continue
        got = model_from_file(path)
        ours, theirs = weight_profile(got, "Q4_K_M"), weight_profile(spec, "Q4_K_M")
        unlike = [field for field in PROFILE if getattr(ours, field) != getattr(theirs, field)]
        unlike += [f"model.{field}" for field in SHAPE if getattr(got, field) != getattr(spec, field)]
        windowed_llama = spec.architecture == "llama" and any(
            isinstance(mixer, Attention) and mixer.window for layer in spec.layers for mixer in layer.mixers
        )
        if unlike and not (spec.architecture in DIFFERENT and (spec.architecture != "llama" or windowed_llama)):
            wrong.append((spec.name, unlike))
        equal += not unlike
    assert not wrong
    assert equal >= 240
    assert not unknown


@pytest.mark.parametrize("quant", ["Q4_K_M", "IQ3_M", "Q8_0", "BF16", "MXFP4_MOE", "Q2_K"])
def test_weights_are_equal_to_the_byte_in_other_quantizations(tmp_path, quant):
    wanted = {"llama-3.2-1b-instruct", "qwen3-30b-a3b", "gpt-oss-20b", "kimi-linear-48b-a3b-instruct"}
    for spec in (spec for spec in models() if spec.name in wanted):
        got = model_from_file(write_like(tmp_path / "m.gguf", spec, quant))
        assert got.quant == quant
        ours, theirs = weight_profile(got, quant), weight_profile(spec, quant)
        assert {f: getattr(ours, f) for f in PROFILE} == {f: getattr(theirs, f) for f in PROFILE}
        assert ours.file_bytes == got.file_bytes == (tmp_path / "m.gguf").stat().st_size


def gemma_file() -> Path:
    base = os.environ.get("WILLITRUN_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(base) / ("" if os.environ.get("WILLITRUN_CACHE_DIR") else "willitrun-here") / "models" / GEMMA_FILE
    if not path.exists():
        pytest.skip("the test model is not there; run: python scripts/fetch_test_model.py")
    return path


def test_the_real_gemma_file_has_its_known_weights_and_layers():
    path = gemma_file()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GEMMA_SHA256
    got = open_model(str(path))
    catalog = next(spec for spec in models() if spec.architecture == "gemma3" and spec.hidden_size == 640)
    assert got.layers == catalog.layers
    assert (got.file_bytes, got.params, got.quant) == (253_113_024, 268_098_176, "Q4_K_M")
    ours, theirs = weight_profile(got, "Q4_K_M"), weight_profile(catalog, "Q4_K_M")
    assert ours.tensor_bytes == theirs.tensor_bytes == 253_113_024 - 6_525_120
    assert ours.layers == theirs.layers
    assert ours.embedding_bytes == 262144 * 640 // 32 * 34


def small(architecture: str, block: dict, metadata: dict, *, blocks: int = 2, outside=()):
    values = {"block_count": blocks, "context_length": 4096, "embedding_length": 256, **metadata}
    head = {"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in values.items()}}
    listed = [("token_embd.weight", (256, 32), "Q8_0"), *outside]
    for number in range(blocks):
        listed += [(f"blk.{number}.{name}", shape, "F32" if shape[0] % 32 else "Q8_0") for name, shape in block.items()]
    return head, listed


DENSE = {
    "attn_q.weight": (256, 256),
    "attn_k.weight": (256, 64),
    "attn_v.weight": (256, 64),
    "attn_output.weight": (256, 256),
    "ffn_up.weight": (256, 512),
    "ffn_gate.weight": (256, 512),
    "ffn_down.weight": (512, 256),
}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 1}


def test_an_unknown_architecture_is_answered_from_its_tensors_with_a_finding(tmp_path):
    head, listed = small("hypothetical9", DENSE, {**HEADS, "attention.sliding_window": 128})
    spec = model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    assert spec.layers[0].mixers == (Attention(heads=4, kv_heads=1, key_dim=64, value_dim=64),)
    assert spec.layers[0].ffn == Dense(width=512)
    assert spec.tied_embeddings
    assert any("hypothetical9" in finding for finding in spec.findings)
    assert spec.quant == "Q8_0"


def test_blocks_are_what_their_tensors_are(tmp_path):
    kda = {f"ssm_conv1d_{c}.weight": (4, 1, 256) for c in "qkv"} | {"attn_q.weight": (256, 256)}
    head, listed = small("kimi-linear", kda, {**HEADS, "kda.head_dim": 64, "ssm.conv_kernel": 4})
    layer = model_from_file(w.write(tmp_path / "a.gguf", head, listed)).layers[0]
    assert layer.mixers[0].conv_elements == 3 * 3 * 256
    assert layer.mixers[0].state_elements == 64 * 64 * 4
    assert layer.ffn == NoFfn()
    head, listed = small("deci", {"attn_output.weight": (256, 256), "ffn_down.weight": (512, 256)}, HEADS)
    assert model_from_file(w.write(tmp_path / "b.gguf", head, listed)).layers[0].mixers == (NoMixer(),)
    both = DENSE | {"ssm_in.weight": (256, 64), "ssm_conv1d.weight": (4, 64)}
    states = {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.group_count": 1}
    head, listed = small("falcon-h1", both, {**HEADS, **states, "ssm.time_step_rank": 4})
    mixers = model_from_file(w.write(tmp_path / "c.gguf", head, listed)).layers[0].mixers
    assert [type(mixer) for mixer in mixers] == [Attention, Recurrent]
    assert (mixers[1].conv_elements, mixers[1].state_elements) == (3 * 96, 16 * 64)
    rwkv = {"time_mix_w1.weight": (256, 64), "channel_mix_key.weight": (256, 512)}
    head, listed = small("rwkv6", rwkv, {"wkv.head_size": 64})
    mixer = model_from_file(w.write(tmp_path / "d.gguf", head, listed)).layers[0].mixers[0]
    assert (mixer.kind, mixer.conv_elements, mixer.state_elements) == ("rwkv", 512, 256 * 64)


def test_latent_attention_needs_its_own_lengths(tmp_path):
    block = {"attn_q.weight": (256, 768), "attn_kv_a_mqa.weight": (256, 576), "ffn_down.weight": (512, 256)}
    sizes = {"attention.head_count": 4, "attention.kv_lora_rank": 512, "rope.dimension_count": 64}
    modern = {**sizes, "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
              "attention.key_length_mla": 192, "attention.value_length_mla": 128}  # fmt: skip
    head, listed = small("deepseek2", block, modern)
    mixer = model_from_file(w.write(tmp_path / "a.gguf", head, listed)).layers[0].mixers[0]
    assert mixer == Mla(heads=4, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128)
    old = {**sizes, "attention.head_count_kv": 4, "attention.key_length": 192, "attention.value_length": 128}
    head, listed = small("deepseek2", block, old)
    mixer = model_from_file(w.write(tmp_path / "b.gguf", head, listed)).layers[0].mixers[0]
    assert mixer == Attention(heads=4, kv_heads=4, key_dim=192, value_dim=128)


@pytest.mark.parametrize(
    ("architecture", "extra", "full"),
    [
        ("gemma3", {"attention.sliding_window": 512}, [5, 11]),
        ("gemma3", {"attention.sliding_window": 0}, list(range(12))),
        ("gemma3", {"attention.sliding_window": 512, "attention.sliding_window_pattern": 4}, [3, 7, 11]),
        ("gpt-oss", {"attention.sliding_window": 128}, [1, 3, 5, 7, 9, 11]),
        ("cohere2moe", {"attention.sliding_window": 128}, [0, 4, 8]),
        ("phi3", {"attention.sliding_window": 128}, list(range(12))),
        ("gemma2", {}, [1, 3, 5, 7, 9, 11]),
        ("mimo2", {"attention.sliding_window": 9, "attention.sliding_window_pattern": [False] + [True] * 11}, [0]),
    ],
)
def test_windows_follow_the_engine(tmp_path, architecture, extra, full):
    head, listed = small(architecture, DENSE, {**HEADS, **extra}, blocks=12)
    spec = model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    assert [index for index, layer in enumerate(spec.layers) if layer.mixers[0].window is None] == full


def test_chunked_shared_and_next_token_layers(tmp_path):
    head, listed = small("llama4", DENSE, HEADS, blocks=4)
    layers = model_from_file(w.write(tmp_path / "a.gguf", head, listed)).layers
    assert [(m.window, m.chunked) for layer in layers for m in layer.mixers] == [(8192, True)] * 3 + [(None, False)]
    shared = {"attention.sliding_window": 64, "attention.shared_kv_layers": 2,
              "attention.sliding_window_pattern": [True, True, False, True]}  # fmt: skip
    head, listed = small("gemma4", DENSE, {**HEADS, **shared}, blocks=4)
    layers = model_from_file(w.write(tmp_path / "b.gguf", head, listed)).layers
    assert [m.shares_kv for layer in layers for m in layer.mixers] == [False, False, True, True]
    head, listed = small("glm4moe", DENSE, {**HEADS, "nextn_predict_layers": 1}, blocks=3)
    spec = model_from_file(w.write(tmp_path / "c.gguf", head, listed))
    assert (spec.block_count, spec.mtp_layers) == (2, 1)
    assert {tensor.role for tensor in spec.tensors if tensor.layer == 2} == {"extra"}


def test_sizes_that_no_tensor_says_are_read(tmp_path):
    keys = {"hyper_connection.count": 4, "attention.indexer.kpool": 8, "attention.indexer.top_k": 512}
    head, listed = small("glm5-next", DENSE, {**HEADS, **keys})
    spec = model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    assert dict(spec.sizes) == {"streams": 4, "indexer_pool": 8, "indexer_top_k": 512}
    head, listed = small("llama", DENSE, {**HEADS, **keys})
    assert model_from_file(w.write(tmp_path / "b.gguf", head, listed)).sizes == ()


def test_experts_shared_experts_and_counts_per_layer(tmp_path):
    block = {
        "attn_q.weight": (256, 256), "ffn_gate_inp.weight": (256, 8), "ffn_gate_exps.weight": (256, 96, 8),
        "ffn_up_exps.weight": (256, 96, 8), "ffn_down_exps.weight": (96, 256, 8), "ffn_down_shexp.weight": (64, 256),
    }  # fmt: skip
    head, listed = small("qwen3moe", block, {**HEADS, "expert_count": 8, "expert_used_count": [2, 4]})
    layers = model_from_file(w.write(tmp_path / "a.gguf", head, listed)).layers
    assert [layer.ffn for layer in layers] == [
        Moe(experts=8, experts_used=used, width=96, shared_width=64) for used in (2, 4)
    ]


def test_a_split_model_is_read_from_any_part_and_missing_ones_are_named(tmp_path):
    head, listed = small("llama", DENSE, HEADS)
    half = len(listed) // 2
    parts = [listed[:half], listed[half:]]
    paths = []
    for number, tensors_of in enumerate(parts):
        metadata = {"split.no": number, "split.count": 2, "split.tensors.count": len(listed)}
        paths.append(
            w.write(
                tmp_path / f"big-{number + 1:05d}-of-00002.gguf",
                {**head, **metadata} if number == 0 else metadata,
                tensors_of,
            )
        )
    whole = w.write(tmp_path / "whole.gguf", head, listed)
    for path in paths:
        spec = open_model(str(path))
        assert spec.name == "big"
        assert spec.files == tuple(map(str, paths))
        assert spec.file_bytes == sum(path.stat().st_size for path in paths)
        assert spec.layers == open_model(str(whole)).layers
        assert sum(t.elements for t in spec.tensors) == sum(t.elements for t in open_model(str(whole)).tensors)
    paths[1].unlink()
    with pytest.raises(FileAccessError, match=r"big-00002-of-00002\.gguf"):
        open_model(str(paths[0]))
    lonely = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FileFormatError, match="one of 2 parts"):
        open_model(str(lonely))


def test_a_projector_beside_it_is_found_and_is_no_model_itself(tmp_path):
    head, listed = small("llama", DENSE, HEADS)
    model = w.write(tmp_path / "m.gguf", head, listed)
    projector = w.write(
        tmp_path / "mmproj-F16.gguf",
        {"general.architecture": "clip", "general.type": "mmproj"},
        [("v.patch_embd.weight", (14, 14, 3, 64), "F16")],
    )
    spec = open_model(str(model))
    assert (spec.projector, spec.projector_bytes) == (str(projector), projector.stat().st_size)
    with pytest.raises(FileFormatError, match="projector"):
        open_model(str(projector))
    projector.rename(tmp_path / "mmproj-other-model-9b-F16.gguf")
    assert open_model(str(model)).projector is None
    named = w.write(tmp_path / "other-model-9b-Q4_K_M.gguf", head, listed)
    assert open_model(str(named)).projector is not None


def test_a_tower_inside_the_file_is_counted_apart(tmp_path):
    head, listed = small("gemma3", DENSE, HEADS)
    plain = model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    tower = [("v.blk.0.attn_q.weight", (64, 64), "F16"), ("mm.input_projection.weight", (64, 256), "F16")]
    whole = model_from_file(w.write(tmp_path / "b.gguf", head, [*listed, *tower]))
    assert (whole.layers, whole.params, whole.tensors) == (plain.layers, plain.params, plain.tensors)
    assert (whole.non_text_params, whole.projector_bytes) == (64 * 64 + 64 * 256, 2 * (64 * 64 + 64 * 256))
    assert whole.capabilities == ("vision",)


def test_blocks_that_run_in_loops_have_a_cache_each_time(tmp_path):
    head, listed = small("nanbeige", DENSE, {**HEADS, "num_loops": 3})
    assert model_from_file(w.write(tmp_path / "a.gguf", head, listed)).block_count == 6
    head, listed = small("nanbeige", DENSE, {**HEADS, "num_loops": (1 << 31) - 1})
    assert model_from_file(w.write(tmp_path / "b.gguf", head, listed)).block_count == 512


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"block_count": 0}, "llama.block_count"),
        ({"block_count": 100_000}, "llama.block_count"),
        ({"block_count": 3}, "llama.block_count"),
        ({"block_count": "two"}, "llama.block_count"),
        ({"embedding_length": 0}, "llama.embedding_length"),
        ({"context_length": 0}, "llama.context_length"),
        ({"attention.head_count": [4]}, "llama.attention.head_count"),
        ({"nextn_predict_layers": 2}, "llama.nextn_predict_layers"),
        ({"nextn_predict_layers": 9}, "llama.nextn_predict_layers"),
    ],
)
def test_impossible_hyper_parameters_are_named(tmp_path, change, field):
    head, listed = small("llama", DENSE, {**HEADS, **change})
    if change.get("block_count") in {0, 100_000, 3, "two"}:
        _, listed = small("llama", DENSE, HEADS)
    with pytest.raises(FileFormatError) as caught:
        model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    assert caught.value.field == field


def test_a_file_without_architecture_or_tensors_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"general\.architecture"):
        model_from_file(w.write(tmp_path / "a.gguf", {"a": 1}, [("token_embd.weight", (256, 32), "F32")]))
    with pytest.raises(CatalogError, match="no tensors"):
        model_from_file(w.write(tmp_path / "b.gguf", {"general.architecture": "llama"}, []))
    head, listed = small("llama", DENSE, HEADS)
    with pytest.raises(CatalogError, match=r"token_embd\.weight"):
        model_from_file(w.write(tmp_path / "c.gguf", head, listed[1:]))
    with pytest.raises(CatalogError, match="LoRA"):
        model_from_file(w.write(tmp_path / "d.gguf", {**head, "general.type": "adapter"}, listed))


def test_equal_layers_are_one_object(tmp_path):
    head, listed = small("llama", DENSE, HEADS, blocks=30)
    spec = model_from_file(w.write(tmp_path / "a.gguf", head, listed))
    assert len({id(layer) for layer in spec.layers}) == 1
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec
