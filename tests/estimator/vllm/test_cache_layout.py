from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from willitrun_catalog.find import find_model
from willitrun_catalog.model import Attention, Dense, Layer, Mla, ModelSpec, Recurrent
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.cache import (
    CacheLayout,
    blocks_per_request,
    cache_layout,
    cache_tokens,
    concurrency,
    element_bytes,
    has_state,
    pool_blocks,
)
from willitrun_estimator.vllm.versions import rules
from willitrun_probe.units import GIB

OLD, NEW = rules((0, 19)), rules((0, 33))


def spec_of(*layers, architecture="llama"):
    return ModelSpec(
        name="m", title="M", architecture=architecture, source="catalog", hidden_size=64, vocab_size=128,
        tied_embeddings=False, max_context_tokens=131072, layers=tuple(layers),
    )  # fmt: skip


def attention(window=None, kv_heads=8, dim=128, **other):
    mixer = Attention(heads=32, kv_heads=kv_heads, key_dim=dim, value_dim=dim, window=window, **other)
    return Layer(mixers=(mixer,), ffn=Dense(width=128))


def held(spec, ruled, pool_gib, length, *, tokens=8192, prefix=False, **options):
    layout = cache_layout(spec, ruled, **options)
    per = blocks_per_request(layout, ruled, context_tokens=length, max_num_batched_tokens=tokens, prefix_caching=prefix)
    blocks = pool_blocks((layout,), (round(pool_gib * GIB),))
    return (
        cache_tokens(layout, ruled, blocks, per_request=per, context_tokens=length),
        round(concurrency(blocks, per), 2),
        layout,
    )


# Pools and what the log printed for them: rows m024, m017, m004, m010, m006, m077, m069 and m136 of the truth.
@pytest.mark.parametrize(
    ("name", "minor", "pool", "length", "batched", "options", "tokens", "requests"),
    [
        ("llama-3.1-8b", 19, 58.11, 8192, 8192, {}, 476016, 58.11),
        ("llama-3.1-8b", 19, 58.11, 8192, 8192, {"kv_type": "fp8"}, 952032, 116.21),
        ("llama-3.3-70b", 19, 54.09, 8192, 8192, {"tensor_parallel": 4}, 708992, 86.55),
        ("gemma-3-27b", 19, 19.53, 8192, 8192, {}, 36560, 4.46),
        ("gemma-2-27b", 19, 20.59, 8192, 8192, {}, 58672, 7.16),
        ("gpt-oss-120b", 10, 45.32, 16384, 2048, {"tensor_parallel": 4}, 2640144, 284.25),
        ("gemma-4-26b-a4b", 20, 40.61, 8192, 4096, {}, 177440, 35.75),
    ],
)
def test_tokens_and_concurrency_are_those_of_the_logs(name, minor, pool, length, batched, options, tokens, requests):
    ruled = rules((0, minor))
    printed, most, _ = held(find_model(name).spec, ruled, pool, length, tokens=batched, **options)
    assert printed == pytest.approx(tokens, rel=0.0005)
    assert most == pytest.approx(requests, rel=0.0005, abs=0.011)


def test_a_page_of_attention_holds_one_recurrent_state(model):
    spec = model("qwen3.6-35b-a3b")
    assert cache_layout(spec, OLD).attention_block_tokens == 1056
    assert cache_layout(spec, OLD, kv_type="fp8").attention_block_tokens == 2096
    assert cache_layout(spec, OLD, draft_tokens=15).attention_block_tokens == 1168
    assert cache_layout(model("qwen3-next-80b-a3b"), OLD).attention_block_tokens == 544
    assert cache_layout(model("nemotron-3-nano-30b"), OLD, kv_type="fp8").attention_block_tokens == 4176
    tokens, most, layout = held(spec, rules((0, 24)), 5.98, 131072, kv_type="fp8", prefix=True)
    assert most == pytest.approx(4.33, abs=0.01)
    assert tokens == pytest.approx(567978, rel=0.002)
    assert has_state(layout)
    assert [(group.kind, group.count) for group in layout.groups] == [("full", 1), ("state", 3)]


def test_latent_blocks_beside_states_come_in_steps_of_128(model):
    spec = model("kimi-linear")
    assert cache_layout(spec, NEW).attention_block_tokens % 128 == 0
    assert cache_layout(spec, OLD).attention_block_tokens % 16 == 0
    assert cache_layout(spec, OLD).attention_block_tokens <= cache_layout(spec, NEW).attention_block_tokens


def test_latent_rows_are_not_split_and_heads_are_repeated(model):
    latent, grouped = model("deepseek-v2-lite"), model("qwen3-30b-a3b")
    assert cache_layout(latent, OLD).block_bytes == cache_layout(latent, OLD, tensor_parallel=8).block_bytes
    assert cache_layout(latent, OLD).block_bytes == 16 * 27 * 1152
    four, eight = (cache_layout(grouped, OLD, tensor_parallel=n).block_bytes for n in (4, 8))
    assert four == eight


def test_a_sparse_indexer_keeps_keys_of_its_own():
    mla = Mla(heads=128, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128, indexer_heads=64, indexer_dim=128)
    plain = Mla(heads=128, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128)
    sparse = spec_of(*[Layer(mixers=(mla,), ffn=Dense(width=8))] * 2)
    assert cache_layout(sparse, NEW).block_bytes == 2 * 16 * (1152 + 132)
    assert cache_layout(sparse, NEW, kv_type="fp8").block_bytes == 2 * 16 * (656 + 132)
    dense = spec_of(Layer(mixers=(plain,), ffn=Dense(width=8)))
    assert cache_layout(dense, NEW, kv_type="fp8").block_bytes == 16 * 576


def test_layers_that_read_another_layers_cache_keep_none():
    spec = spec_of(attention(), attention(shares_kv=True))
    assert cache_layout(spec, NEW).block_bytes == 16 * 8 * 256 * 2


def test_groups_are_of_the_rarest_kind_unless_the_kinds_are_close():
    spread = spec_of(*[attention()] * 10, *[attention(window=1024)] * 52)
    assert [(group.kind, group.count) for group in cache_layout(spread, NEW).groups] == [("full", 1), ("window", 6)]
    assert cache_layout(spread, NEW).block_bytes == 10 * 16 * 4096
    close = spec_of(*[attention()] * 13, *[attention(window=1024)] * 12)
    assert cache_layout(close, NEW).block_bytes == 13 * 16 * 4096


def test_pages_of_other_sizes_take_more_tokens_or_are_padded():
    doubled = spec_of(attention(kv_heads=4), attention(window=1024))
    assert {group.block_tokens for group in cache_layout(doubled, NEW).groups} == {16, 32}
    padded = spec_of(attention(kv_heads=3), attention(window=1024))
    layout = cache_layout(padded, NEW)
    assert {group.block_tokens for group in layout.groups} == {16}
    assert layout.block_bytes == 16 * 4096
    one_kind = spec_of(attention(kv_heads=3), attention(kv_heads=8))
    assert cache_layout(one_kind, NEW).block_bytes == 16 * (3 + 8) * 512


def test_chunks_and_windows_hold_what_is_in_flight():
    chunked = cache_layout(spec_of(attention(window=8192, chunked=True)), OLD)
    window = cache_layout(spec_of(attention(window=1024)), OLD)
    request = {"context_tokens": 65536, "max_num_batched_tokens": 2048, "prefix_caching": True}
    assert blocks_per_request(chunked, OLD, **request) == (8192 + 2048) // 16
    assert blocks_per_request(window, OLD, **request) == 192 + 1
    assert blocks_per_request(window, NEW, **request) == 320 + 1


def test_a_model_of_states_alone_needs_one_block_a_request():
    mixer = Recurrent(kind="mamba2", conv_elements=300, state_elements=1000, conv_kernel=4)
    layout = cache_layout(spec_of(*[Layer(mixers=(mixer,), ffn=Dense(width=8))] * 3), OLD)
    assert layout.block_bytes == 3 * (600 + 2000)
    assert layout.attention_block_tokens == 0
    per = blocks_per_request(layout, OLD, context_tokens=4096, max_num_batched_tokens=2048, prefix_caching=False)
    assert per == 1
    assert cache_tokens(layout, OLD, 10, per_request=1, context_tokens=4096) == 40960


def test_a_model_without_a_cache_never_fills_one():
    empty = CacheLayout(block_bytes=0, groups=(), attention_block_tokens=0)
    assert cache_layout(spec_of(), NEW) == empty
    assert pool_blocks((empty,), (10**9,)) == 1
    assert concurrency(1, 0) == float("inf")


def test_stages_share_the_blocks_of_the_smallest(model):
    spec = model("llama-3.1-8b")
    stages = tuple(cache_layout(spec, NEW, stage=stage) for stage in ((0, 16), (16, 32)))
    whole = cache_layout(spec, NEW)
    assert [layout.block_bytes * 2 for layout in stages] == [whole.block_bytes] * 2
    assert pool_blocks(stages, (10 * whole.block_bytes, 3 * whole.block_bytes)) == 6
    assert pool_blocks(stages, (10 * whole.block_bytes, -1)) == 0


def test_kv_types_in_both_engines_words():
    assert [element_bytes(word) for word in ("auto", "f16", "fp8_e4m3", "q8_0", "float32")] == [2, 2, 1, 1, 4]
    with pytest.raises(EstimatorError, match="q4_0"):
        element_bytes("q4_0")


@settings(max_examples=60)
@given(pool=st.integers(2**30, 2**36), length=st.integers(16, 131072), shorter=st.integers(1, 16))
def test_shorter_requests_and_larger_pools_hold_more(pool, length, shorter):
    layout = cache_layout(find_model("gpt-oss-20b").spec, NEW)

    def per(tokens):
        return blocks_per_request(layout, NEW, context_tokens=tokens, max_num_batched_tokens=2048, prefix_caching=True)

    few, many = pool_blocks((layout,), (pool,)), pool_blocks((layout,), (2 * pool,))
    assert many >= 2 * few
    assert per(max(1, length // shorter)) <= per(length)
