"""Cache and state bytes, against figures that llama.cpp printed and against its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.model import Attention, Dense, Layer, Mla, ModelSpec, Moe, NoFfn, NoMixer, Recurrent
from willitrun_catalog.shipped import model
from willitrun_estimator import cache
from willitrun_estimator.cache_sums import CacheSums
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.placement import Settings

MIB = 1 << 20
FULL = Layer(mixers=(Attention(heads=32, kv_heads=8, key_dim=128, value_dim=128),), ffn=Dense(width=14336))
WINDOWED = Layer(
    mixers=(Attention(heads=32, kv_heads=4, key_dim=128, value_dim=64, window=1024),), ffn=Dense(width=14336)
)


def spec(*layers: Layer, architecture: str = "llama") -> ModelSpec:
    return ModelSpec(
        name="m",
        title="M",
        architecture=architecture,
        source="test",
        hidden_size=4096,
        vocab_size=1000,
        tied_embeddings=False,
        max_context_tokens=131072,
        layers=layers,
    )


@pytest.mark.parametrize(
    ("kv_type", "mib"),
    [("f16", 4096.0), ("q8_0", 2176.0), ("q4_0", 1152.0), ("q5_1", 1536.0), ("f32", 8192.0), ("iq4_nl", 1152.0)],
)
def test_full_attention_cache_of_llama_3_1_8b(kv_type: str, mib: float) -> None:
    settings = Settings(context_tokens=32768, kv_type_k=kv_type, kv_type_v=kv_type)
    assert cache.kv_bytes(model("llama-3.1-8b-instruct"), settings) == mib * MIB


def test_latent_cache_keeps_one_row_and_no_values() -> None:
    settings = Settings(context_tokens=131072)
    assert cache.kv_bytes(model("deepseek-v3"), settings) == 131072 * 61 * 576 * 2


def test_window_cache_holds_the_window_and_one_micro_batch() -> None:
    settings = Settings(context_tokens=131072)
    gpt = model("gpt-oss-20b")
    full = 12 * 131072 * 2 * 8 * 64 * 2
    assert cache.kv_bytes(gpt, settings) == full + 12 * 768 * 2 * 8 * 64 * 2
    wide = Settings(context_tokens=131072, ubatch=2048)
    assert cache.kv_bytes(gpt, wide) == full + 12 * 2304 * 2 * 8 * 64 * 2
    assert cache.kv_bytes(gpt, Settings(context_tokens=131072, swa_full=True)) == 2 * full


def test_phi_ignores_its_window() -> None:
    assert cache.kv_bytes(spec(WINDOWED, architecture="phi3"), Settings(context_tokens=8192)) == 8192 * 4 * 192 * 2


@pytest.mark.parametrize("name", ["mistral-7b-instruct-v0.1", "ministral-8b-instruct-2410"])
def test_llama_reads_no_window(name: str) -> None:
    mistral = model(name)
    assert mistral.architecture == "llama"
    assert all(cache.layer_window(mistral, layer) is None for layer in mistral.layers)
    row = cache.layer_row_bytes(mistral, mistral.layers[0], Settings(context_tokens=32768))[cache.Span()]
    assert cache.kv_bytes(mistral, Settings(context_tokens=32768)) == 32768 * row * mistral.block_count


def test_an_encoder_keeps_no_cache() -> None:
    assert cache.kv_bytes(model("embeddinggemma-300m"), Settings(context_tokens=2048)) == 0


def test_unified_slots_share_cells_and_widen_the_window() -> None:
    four = Settings(context_tokens=8192, parallel=4)
    shared = Settings(context_tokens=8192, parallel=4, kv_unified=True)
    assert cache.stream_cells(four) == (2048, 4)
    assert cache.stream_cells(shared) == (8192, 1)
    assert cache.window_cells(1024, shared, 8192) == 4608
    assert cache.window_cells(1024, four, 2048) == 1536


def test_context_is_padded_to_256() -> None:
    assert cache.kv_bytes(spec(FULL), Settings(context_tokens=5000)) == 5120 * 2 * 1024 * 2


def test_values_are_padded_to_the_widest_row_without_flash_attention() -> None:
    settings = Settings(context_tokens=1024, flash_attention=False)
    narrow = cache.layer_kv_bytes(spec(FULL, WINDOWED), WINDOWED, settings)
    assert narrow == 1024 * (512 + 1024) * 2


def test_shared_and_absent_caches_are_empty() -> None:
    shared = Layer(
        mixers=(Attention(heads=8, kv_heads=2, key_dim=64, value_dim=64, shares_kv=True),), ffn=Dense(width=64)
    )
    nothing = Layer(mixers=(NoMixer(),), ffn=NoFfn())
    both = spec(shared, nothing)
    assert cache.kv_bytes(both, Settings(context_tokens=4096)) == 0
    assert cache.layer_window(both, nothing) is None


def test_sparse_indexers_keep_keys_of_their_own() -> None:
    latent = Layer(
        mixers=(Mla(heads=8, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128, indexer_heads=4, indexer_dim=128),),
        ffn=Moe(experts=8, experts_used=2, width=64),
    )
    assert cache.kv_bytes(spec(latent), Settings(context_tokens=256)) == 256 * (576 + 128) * 2


@pytest.mark.parametrize(
    ("name", "mib"), [("nemotron-nano-9b-v2", 138.80), ("falcon-h1-7b-instruct", 133.80), ("qwen3.5-27b", 149.62)]
)
def test_states_do_not_grow_with_the_context(name: str, mib: float) -> None:
    short, long = Settings(context_tokens=256), Settings(context_tokens=131072, kv_type_k="q8_0")
    assert cache.state_bytes(model(name), short) == cache.state_bytes(model(name), long)
    assert cache.state_bytes(model(name), short) / MIB == pytest.approx(mib, abs=0.006)


def test_every_slot_and_rollback_has_its_state() -> None:
    layer = Layer(mixers=(Recurrent(kind="mamba2", conv_elements=10, state_elements=90),), ffn=NoFfn())
    settings = Settings(context_tokens=256, parallel=3)
    assert cache.state_bytes(spec(layer), settings, rollbacks=2) == 4 * 100 * 3 * 3


def test_logits_take_a_row_per_slot() -> None:
    assert cache.output_bytes(spec(FULL), Settings(context_tokens=256, parallel=2)) == 2 * 4 * 1000


def test_gpu_tensors_end_with_a_padded_row() -> None:
    odd = Layer(mixers=(Attention(heads=4, kv_heads=1, key_dim=256, value_dim=256),), ffn=Dense(width=64))
    settings = Settings(context_tokens=4096, kv_type_k="q8_0", kv_type_v="f16")
    assert cache.padding_bytes("q8_0", 256) == 272
    assert cache.padding_bytes("q8_0", 1024) == 0
    assert cache.padding_bytes("f16", 256) == 0
    assert CacheSums(spec(odd), settings).paddings(4096)[-1] == 384
    assert CacheSums(spec(WINDOWED), settings).paddings(4096)[-1] == 0


def test_unknown_types_and_odd_rows_are_refused() -> None:
    with pytest.raises(EstimatorError, match="unknown KV cache type 'q9'"):
        cache.kv_row_bytes("q9", 64)
    with pytest.raises(EstimatorError, match="40 elements cannot be stored as q8_0") as caught:
        cache.kv_row_bytes("q8_0", 40)
    assert "f16" in caught.value.advice


@given(
    tokens=st.integers(1, 300_000),
    more=st.integers(0, 100_000),
    parallel=st.integers(1, 8),
    unified=st.booleans(),
    ubatch=st.sampled_from([64, 512, 2048]),
)
def test_more_context_never_needs_a_smaller_cache(
    tokens: int, more: int, parallel: int, unified: bool, ubatch: int
) -> None:
    two = spec(FULL, WINDOWED)
    settings = Settings(context_tokens=tokens, parallel=parallel, kv_unified=unified, ubatch=ubatch)
    cells, streams = cache.stream_cells(settings)
    assert cells % 256 == 0
    assert streams in {1, parallel}
    assert cache.kv_bytes(two, settings) <= cache.kv_bytes(two, settings, tokens + more)
    assert cache.kv_bytes(two, settings) <= cache.kv_bytes(
        two,
        Settings(
            context_tokens=tokens + 256 * parallel, swa_full=True, parallel=parallel, kv_unified=unified, ubatch=ubatch
        ),
    )


def test_blocks_without_attention_have_values_where_these_are_stored_transposed() -> None:
    spec = model("llama-3.3-nemotron-super-49b-v1.5")
    flash = cache.kv_bytes(spec, Settings(context_tokens=32768))
    slow = cache.kv_bytes(spec, Settings(context_tokens=32768, flash_attention=False))
    without = sum(not any(isinstance(m, Attention) for m in layer.mixers) for layer in spec.layers)
    assert slow - flash == without * 1024 * 2 * 32768
    assert slow == 8256 * 1024 * 1024


def test_some_indexers_keep_values_too() -> None:
    # "MiniMax-M3, 4096 cells: 594 MiB", planned by llama.cpp
    assert cache.kv_bytes(model("minimax-m3"), Settings(context_tokens=4096)) == 594 * 1024 * 1024


def test_caches_of_next_token_blocks_in_hybrid_models() -> None:
    spec = model("nemotron-3-super-120b-a12b")
    settings = Settings(context_tokens=4096)
    assert cache.row_bytes(cache.next_token_caches(spec, settings)) == {cache.Span(): 1024}
    assert cache.next_token_caches(model("qwen3.5-0.8b"), settings) == ()
    state = cache.state_bytes(spec, settings)
    assert cache.kv_bytes(spec, settings) + state == pytest.approx(200.6875 * 1024 * 1024)
    quantized = CacheSums(spec, Settings(context_tokens=4096, kv_type_k="q8_0", kv_type_v="q8_0"))
    assert quantized.paddings(4096)[-1] > quantized.paddings(4096)[-2]


@pytest.mark.parametrize(
    ("name", "settings", "held"),
    [
        ("deepseek-v4-flash", Settings(context_tokens=32768), 271466496),
        ("deepseek-v4-flash", Settings(context_tokens=32768, kv_type_k="q8_0", kv_type_v="q8_0"), 149938176),
        ("deepseek-v4-flash", Settings(context_tokens=32768, parallel=4, kv_unified=True), 1085865984),
        ("glm-5.3-flash", Settings(context_tokens=131072), 2736324608),
    ],
)
def test_compressed_caches_are_as_the_planner_has_them(name: str, settings: Settings, held: int) -> None:
    found = model(name)
    assert cache.kv_bytes(found, settings) + cache.state_bytes(found, settings) == held
    assert CacheSums(found, settings).held(settings.context_tokens)[-1] == held


def test_a_token_takes_a_share_of_a_compressed_row() -> None:
    found = model("deepseek-v4-flash")
    local, sparse, dense = (found.layers[index].mixers[0] for index in (0, 2, 3))
    settings = Settings(context_tokens=4096)
    assert cache.mixer_row_bytes(found, local, settings) == 1024
    assert cache.mixer_row_bytes(found, sparse, settings) == (1024 + 256) / 4
    assert cache.mixer_row_bytes(found, dense, settings) == 1024 / 128
    assert cache.mixer_caches(found, NoMixer(), settings) == ()


def test_next_token_blocks_of_compressed_models_have_windows() -> None:
    found = structs.replace(model("deepseek-v4-flash"), mtp_layers=1)
    settings = Settings(context_tokens=4096)
    assert cache.next_token_caches(found, settings) == ((cache.Span(window=128), "f16", 512),)
    assert cache.model_window(structs.replace(found, sizes=())) == 128
