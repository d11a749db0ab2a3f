"""Sums of blocks against adding block by block, and guesses against counting."""

from __future__ import annotations

from itertools import accumulate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.find import find_model
from willitrun_catalog.model import Attention
from willitrun_estimator.bounds import Extremes
from willitrun_estimator.cache_sums import MOST_CONTEXTS, CacheSums
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.hardware import devices
from willitrun_estimator.layout import largest, smallest
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.prepared import MOST_KEPT, Prepared, kept
from willitrun_estimator.question import Question
from willitrun_estimator.quick import QuickMemory
from willitrun_estimator.request import Request
from willitrun_estimator.stack import Stack
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

SIZES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 90)), min_size=1, max_size=12)


def stack_of(sizes: list[tuple[int, int]], head: int) -> Stack:
    lean = list(accumulate((size for size, _ in sizes), initial=0))
    experts = list(accumulate((size for _, size in sizes), initial=0))
    return Stack(lean=lean, experts=experts, head_bytes=head, host=lean, host_bytes=3, host_head_bytes=head)


def counted(sizes: list[tuple[int, int]], head: int, first: int, count: int, moved: int) -> int:
    total = 0
    for unit in range(first, first + count):
        total += head if unit == len(sizes) else sizes[unit][0] + (sizes[unit][1] if unit >= moved else 0)
    return total


@given(SIZES, st.integers(0, 40), st.data())
def test_spans_are_what_their_blocks_add_up_to(sizes, head, data):
    stack, units = stack_of(sizes, head), len(sizes) + 1
    first = data.draw(st.integers(0, units))
    count, moved = data.draw(st.integers(0, units - first)), data.draw(st.integers(0, len(sizes)))
    assert stack.gpu_bytes(first, count, moved) == counted(sizes, head, first, count, moved)
    on_gpus = units - first
    host = 3 + counted([(a, b) for a, b in sizes], head, 0, min(first, len(sizes)), 0)
    host += sum(b for index, (_, b) in enumerate(sizes) if first <= index < moved) + (0 if on_gpus else head)
    assert stack.host_use(on_gpus, moved) == host


@given(SIZES, st.integers(1, 40), st.integers(0, 900), st.data())
def test_guesses_are_exact_where_nothing_but_spans_counts(sizes, head, room, data):
    stack, units = stack_of([(a + 1, b) for a, b in sizes], head), len(sizes) + 1
    first, moved = data.draw(st.integers(0, units)), data.draw(st.integers(0, len(sizes)))
    fitting = [n for n in range(units - first + 1) if stack.gpu_bytes(first, n, moved) <= room]
    assert stack.up_to(first, room, moved) == max(fitting)
    end = data.draw(st.integers(0, units))
    fitting = [n for n in range(end + 1) if stack.gpu_bytes(end - n, n, moved) <= room]
    assert stack.down_to(end, room, moved) == max(fitting)
    held = [n for n in range(len(sizes) + 1) if stack.host_use(units - first, n) <= room]
    assert not held or min(stack.most_moved(units - first, room), len(sizes)) == max(held)


@given(st.integers(-5, 20), st.integers(-5, 20), st.integers(-9, 24), st.none() | st.integers(-9, 24))
def test_guesses_do_not_change_what_bisection_finds(low, high, last, guess):
    inside = [n for n in range(low, high + 1) if n <= last]
    assert largest(low, high, lambda n: n <= last, guess) == max(inside, default=None)
    inside = [n for n in range(low, high + 1) if n >= last]
    assert smallest(low, high, lambda n: n >= last, guess) == min(inside, default=None)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-3-12b", "qwen3-30b-a3b", "kimi-linear", "gpt-oss-20b"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_quick_look_knows_weights_caches_and_states_exactly(model, kv_type):
    spec = find_model(model).spec
    plan_on = devices(open_machine("2x RTX 3090, 64 GiB RAM"), Request(), sheet_of)
    settings = Settings(context_tokens=4096, kv_type_k=kv_type, kv_type_v=kv_type)
    prepared, blocks = Prepared(spec), spec.block_count
    quant = "MXFP4_MOE" if spec.native_type == "mxfp4" else "Q4_K_M"
    quick = QuickMemory(prepared, quant, plan_on, settings)
    exact = MemoryModel(prepared.weights(quant), plan_on, settings)
    for units, moved in ((blocks + 1, 0), (blocks - 3, 0), (blocks + 1, blocks // 2), (1, 0), (0, 0)):
        for split in {(units, 0), (units // 2, units - units // 2)}:
            placement = Placement(gpu_layers=units, split=split, cpu_moe_layers=moved)
            for one, other in zip(quick.uses(placement, 10_000), exact.uses(placement, 10_000), strict=True):
                names = ("weights_bytes", "kv_cache_bytes", "recurrent_bytes", "output_bytes")
                assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
            totals = quick.per_device_bytes(placement, 10_000)
            assert totals == tuple(use.total_bytes for use in quick.uses(placement, 10_000))


def test_what_is_kept_is_bounded():
    store: dict[int, int] = {}
    for number in range(3 * MOST_KEPT):
        assert kept(store, number, lambda number=number: number * 2) == number * 2
        assert len(store) <= MOST_KEPT


def test_a_cache_type_that_the_rows_cannot_have_is_not_tried():
    spec = find_model("llama-3.2-1b").spec
    layer = spec.layers[0]
    narrow = Attention(heads=4, kv_heads=1, key_dim=20, value_dim=20)
    odd = msgspec.structs.replace(
        spec, layers=(msgspec.structs.replace(layer, mixers=(narrow,)),) * len(spec.layers), hidden_size=80
    )
    plan_on = devices(open_machine("RTX 3090, 64 GiB RAM"), Request(), sheet_of)
    assert Question(spec, plan_on, Request()).space.kv_types == ("f16", "q8_0")
    assert Question(odd, plan_on, Request()).space.kv_types == ("f16",)
    assert Question(odd, plan_on, Request(kv_type="q8_0")).space.kv_types == ("q8_0",), "what was asked for is tried"


def test_sums_of_many_contexts_are_bounded_and_the_same_again():
    spec = find_model("gemma-3-12b").spec
    sums = CacheSums(spec, Settings(context_tokens=4096, kv_type_k="q8_0", kv_type_v="q8_0"))
    sizes = range(256, 256 * (MOST_CONTEXTS + 5), 256)
    first = [(sums.held(size)[-1], sums.kinds(size), sums.paddings(size)[-1]) for size in sizes]
    assert first == [(sums.held(size)[-1], sums.kinds(size), sums.paddings(size)[-1]) for size in sizes]
    assert [held for held, _, _ in first] == sorted(held for held, _, _ in first)


def test_a_host_of_unknown_speed_leaves_nothing_to_bound():
    assert Extremes(1.0, None, 2.0, None, 1.0).least(0, 0, 10) is None
    assert Extremes(None, None, None, 3.0, None).least(5, 0, 10) == 3.0
