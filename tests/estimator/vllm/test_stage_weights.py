from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.weights import is_latent, rope_cache_bytes, stage_bounds, stage_weights
from willitrun_probe.units import GIB, MIB


# Logged by vLLM ("model weights take ... GiB"): rows m024, m027, m026, m019, m055, m003, m035, m031, m040 of the truth.
@pytest.mark.parametrize(
    ("name", "quant", "tensor", "pipeline", "gib"),
    [
        ("llama-3.1-8b", "bf16", 1, 1, 14.99),
        ("llama-3.1-8b", "bf16", 2, 1, 7.51),
        ("llama-3.1-8b", "bf16", 1, 4, 4.26),
        ("llama-3.1-8b", "fp8", 1, 1, 8.49),
        ("qwen3-8b", "bf16", 1, 1, 15.27),
        ("llama-3.3-70b", "fp8", 2, 1, 33.88),
        ("mixtral-8x7b", "bf16", 2, 1, 43.51),
        ("llama-4-scout", "bf16", 4, 1, 53.12),
        ("gpt-oss-20b", "mxfp4", 1, 1, 13.64),
    ],
)
def test_weights_per_rank_are_those_of_the_logs(name, quant, tensor, pipeline, gib):
    stages = stage_weights(find_model(name).spec, format_of(quant), tensor_parallel=tensor, pipeline_parallel=pipeline)
    assert max(stage.rank.total_bytes for stage in stages) / GIB == pytest.approx(gib, rel=0.005)


def test_layers_that_do_not_divide_go_before_the_last_stage():
    assert stage_bounds(10, 1) == ((0, 10),)
    assert stage_bounds(10, 4) == ((0, 2), (2, 5), (5, 8), (8, 10))
    with pytest.raises(EstimatorError, match="3 layers"):
        stage_bounds(3, 4)


@given(layers=st.integers(1, 130), stages=st.integers(1, 16))
def test_stages_cover_every_layer_once_and_differ_by_at_most_one(layers, stages):
    if stages > layers:
        return
    bounds = stage_bounds(layers, stages)
    sizes = [last - first for first, last in bounds]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == layers
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)


def test_heads_and_tables_are_where_the_stages_need_them(model):
    untied, tied = model("llama-3.1-8b"), model("llama-3.2-1b")
    first, last = (s.rank for s in stage_weights(untied, format_of("bf16"), pipeline_parallel=2))
    assert first.embedding_bytes == last.output_bytes == 128256 * 4096 * 2
    assert first.output_bytes == last.embedding_bytes == 0
    assert last.step_bytes == last.dense_bytes + last.output_bytes
    first, last = (s.rank for s in stage_weights(tied, format_of("bf16"), pipeline_parallel=2))
    assert first.embedding_bytes == last.embedding_bytes == last.output_bytes == 128256 * 2048 * 2
    whole = stage_weights(tied, format_of("bf16"))[0].rank
    assert whole.total_bytes < first.total_bytes + last.total_bytes


def test_norms_routers_and_latent_projections_are_whole_on_every_rank(model):
    for name in ("qwen3-30b-a3b", "deepseek-v3"):
        spec = model(name)
        one = stage_weights(spec, format_of("bf16"))[0].rank
        eight = stage_weights(spec, format_of("bf16"), tensor_parallel=8)[0].rank
        assert eight.dense_bytes > one.dense_bytes / 8
        assert eight.expert_bytes == pytest.approx(one.expert_bytes / 8)
    assert is_latent(model("deepseek-v3"))
    assert not is_latent(model("qwen3-30b-a3b"))


def test_keys_are_repeated_beyond_their_heads(model):
    spec = model("qwen3-30b-a3b")
    four, eight = (stage_weights(spec, format_of("bf16"), tensor_parallel=n)[0].rank for n in (4, 8))
    keys = 48 * 2 * 2048 * 4 * 128 * 2
    assert eight.dense_bytes > four.dense_bytes / 2 + keys / 16


def test_active_experts_are_the_routed_share(model):
    rank = stage_weights(model("qwen3-30b-a3b"), format_of("fp8"))[0].rank
    assert rank.expert_active_bytes == pytest.approx(rank.expert_bytes * 8 / 128)


def test_towers_can_be_left_out(model):
    spec = model("gemma-3-27b")
    whole, text = (stage_weights(spec, format_of("bf16"), towers=t)[0].rank for t in (True, False))
    assert whole.total_bytes - text.total_bytes == whole.tower_bytes == spec.non_text_params * 2
    assert text.tower_bytes == 0


def test_nvfp4_leaves_dense_matrices_beside_experts_alone(model):
    routed, dense = model("qwen3-30b-a3b"), model("qwen3-8b")
    same = stage_weights(routed, format_of("bf16"))[0].rank.dense_bytes
    assert stage_weights(routed, format_of("nvfp4"))[0].rank.dense_bytes == same
    assert (
        stage_weights(dense, format_of("nvfp4"))[0].rank.dense_bytes
        < 0.4 * stage_weights(dense, format_of("bf16"))[0].rank.dense_bytes
    )


def test_mxfp4_experts_are_padded_to_the_kernels_tiles(model):
    spec = model("gpt-oss-120b")
    wide, narrow = (
        stage_weights(spec, format_of("mxfp4"), expert_tile=tile)[0].rank.total_bytes / GIB for tile in (128, 64)
    )
    assert wide == pytest.approx(65.97, rel=0.005)
    assert narrow == pytest.approx(64.38, rel=0.005)


def test_rotary_tables_grow_with_the_models_length(model):
    assert rope_cache_bytes(model("llama-3.1-8b")) == 32 * MIB
    assert rope_cache_bytes(model("llama-4-scout")) == 2.5 * GIB
    assert rope_cache_bytes(model("gemma-3-12b")) == 9 * 64 * MIB
    assert rope_cache_bytes(model("deepseek-v3")) == 163840 * 64 * 2
    assert rope_cache_bytes(structs.replace(model("gemma-3-1b"), max_context_tokens=32768)) == 2 * 16 * MIB


def test_per_layer_tables_are_stored_but_not_read(model):
    spec = model("gemma-3n-e4b")
    rank = stage_weights(spec, format_of("bf16"))[0].rank
    assert rank.embedding_bytes > 2 * rank.output_bytes
