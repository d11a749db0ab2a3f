from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from willitrun_catalog.find import find_model
from willitrun_catalog.model import Attention, Dense, Layer, Moe, NoFfn, Recurrent
from willitrun_catalog.shipped import model_names
from willitrun_estimator.device import Device
from willitrun_estimator.vllm.formats import FORMATS, format_of
from willitrun_estimator.vllm.parallel import alike, indivisible, needs_expert_parallel, splits

BF16 = format_of("bf16")


def degrees(found):
    return [(one.tensor_parallel, one.pipeline_parallel, one.data_parallel) for one in found]


def test_heads_vocabulary_and_widths_must_divide(model):
    assert "vocabulary of 151936 rows" in indivisible(model("qwen3-14b"), BF16, 5)
    assert "heads" in indivisible(model("llama-3.2-3b"), BF16, 16)
    assert indivisible(model("llama-3.1-8b"), BF16, 8) is None
    assert indivisible(model("qwen3-14b"), BF16, 1) is None


def with_layer(spec, layer):
    return structs.replace(spec, layers=(layer,), vocab_size=2**10)


def test_every_kind_of_layer_has_its_own_reason(model):
    spec = model("llama-3.1-8b")
    heads = Attention(heads=12, kv_heads=3, key_dim=128, value_dim=128)
    assert "KV heads" in indivisible(with_layer(spec, Layer(mixers=(heads,), ffn=NoFfn())), BF16, 4)
    state = Recurrent(kind="mamba2", conv_elements=9, state_elements=9, inner_dim=64, heads=6, groups=2)
    assert "recurrent" in indivisible(with_layer(spec, Layer(mixers=(state,), ffn=NoFfn())), BF16, 4)
    grouped = structs.replace(state, heads=8, groups=2)
    assert "groups" in indivisible(with_layer(spec, Layer(mixers=(grouped,), ffn=NoFfn())), BF16, 4)
    fine = structs.replace(state, heads=8, groups=4)
    assert indivisible(with_layer(spec, Layer(mixers=(fine,), ffn=NoFfn())), BF16, 4) is None
    narrow = Layer(mixers=(), ffn=Dense(width=1023))
    assert "1023" in indivisible(with_layer(spec, narrow), BF16, 2)
    shared = Layer(mixers=(), ffn=Moe(experts=8, experts_used=2, width=512, shared_width=1023))
    assert "1023" in indivisible(with_layer(spec, shared), BF16, 2)


def test_grouped_formats_need_whole_groups_on_every_rank(model):
    spec = model("qwen2.5-72b")
    assert indivisible(spec, BF16, 8) is None
    assert "29568" in indivisible(spec, format_of("gptq"), 8)
    assert indivisible(spec, format_of("gptq"), 1) is None


def test_experts_that_do_not_split_are_dealt_whole(model):
    spec = model("qwen3-30b-a3b")
    assert not needs_expert_parallel(spec, format_of("fp8"), 1)
    assert not needs_expert_parallel(spec, BF16, 4)
    assert needs_expert_parallel(spec, format_of("fp8"), 4)


def test_fast_links_take_tensor_parallel_and_slow_ones_offer_stages(model, machine):
    spec = model("llama-3.3-70b")
    fast = splits(spec, BF16, machine("NVIDIA H100 SXM5 80 GB", 4).gpus)
    assert (1, 2, 1) not in degrees(fast)
    assert {(1, 1, 1), (1, 1, 4), (2, 1, 2), (4, 1, 1)} <= set(degrees(fast))
    slow = splits(spec, BF16, machine("NVIDIA GeForce RTX 3090", 2).gpus)
    assert set(degrees(slow)) == {(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)}


def test_what_does_not_divide_goes_through_a_pipeline(model, machine):
    three = splits(model("llama-3.3-70b"), BF16, machine("NVIDIA H100 SXM5 80 GB", 3).gpus)
    assert (1, 3, 1) in degrees(three)
    assert all(one.tensor_parallel != 3 for one in three)


def test_given_degrees_stay(model, machine):
    gpus = machine("NVIDIA H100 SXM5 80 GB", 4).gpus
    assert degrees(splits(model("llama-3.3-70b"), BF16, gpus, tensor_parallel=2, pipeline_parallel=2)) == [(2, 2, 1)]
    assert splits(model("qwen3-14b"), BF16, gpus, tensor_parallel=3) == ()


def test_ranks_are_equal_gpus(gpu):
    mixed = (gpu("NVIDIA GeForce RTX 3090"), gpu("NVIDIA GeForce RTX 4090"), gpu("NVIDIA GeForce RTX 3090"))
    assert alike(mixed) == (0, 2)
    assert alike(()) == ()


def test_uneven_experts_without_whole_shares_are_not_offered(model, machine):
    spec = model("qwen3-30b-a3b")
    layer = spec.layers[0]
    odd = structs.replace(spec, layers=(structs.replace(layer, ffn=structs.replace(layer.ffn, experts=7, width=96)),))
    found = splits(odd, format_of("fp8"), machine("NVIDIA H100 SXM5 80 GB", 2).gpus)
    assert all(one.tensor_parallel == 1 for one in found)
    even = splits(spec, format_of("fp8"), machine("NVIDIA H100 SXM5 80 GB", 4).gpus, tensor_parallel=4)
    assert [one.expert_parallel for one in even] == [True]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(model_names())), quant=st.sampled_from(sorted(FORMATS)), count=st.integers(1, 8))
def test_no_offered_split_can_fail_on_divisibility(name, quant, count):
    spec, checkpoint = find_model(name).spec, FORMATS[quant]
    gpus = tuple(
        Device(
            name="H100", backend="cuda", family="hopper", memory_total_bytes=1, memory_free_bytes=1,
            bandwidth_bytes_per_s=1.0, index=i,
        )
        for i in range(count)
    )  # fmt: skip
    for one in splits(spec, checkpoint, gpus):
        assert one.ranks == len(one.gpus) <= count
        assert one.pipeline_parallel <= spec.block_count
        assert indivisible(spec, checkpoint, one.tensor_parallel) is None
        if one.expert_parallel:
            assert all(x.ffn.experts % one.tensor_parallel == 0 for x in spec.layers if isinstance(x.ffn, Moe))
