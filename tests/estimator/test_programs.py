"""Programs put together from blocks that were seen elsewhere are those of whole graphs."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator

import pytest

from tests.estimator.simulated import machine
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.shipped import model
from willitrun_estimator.compute import assembly, programs, surroundings
from willitrun_estimator.compute import model as planning
from willitrun_estimator.compute import replay as replay_of
from willitrun_estimator.compute.form import MONOMIALS, Sizes, U, form
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.model import ComputeModel
from willitrun_estimator.compute.programs import Programs, peaks
from willitrun_estimator.compute.replay import Replay
from willitrun_estimator.compute.schedule import schedule
from willitrun_estimator.compute.steps import (
    ARRIVED,
    EARLY,
    GIVE,
    LATEST,
    SINCE,
    TAKE,
    TAKE_FOR_GOOD,
    TAKE_WEIGHT,
    Steps,
    code,
    decode,
)
from willitrun_estimator.compute.trace import traced
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import weight_profile

CONTEXT = 8192


def layouts(spec: ModelSpec, draw: random.Random, count: int) -> Iterator[tuple[int, Placement]]:
    """Draw layouts: GPUs, units on them, how they are split, and whose experts stay behind."""
    units = spec.block_count + 1
    for _ in range(count):
        gpus = draw.choice([0, 1, 2, 3, 4])
        given = draw.choice([units, units, units // 2, draw.randint(0, units)]) if gpus else 0
        cuts = sorted(draw.randint(0, given) for _ in range(gpus - 1))
        split = (
            () if not gpus else tuple(after - before for before, after in zip([0, *cuts], [*cuts, given], strict=True))
        )
        moved = draw.choice([0, draw.randint(0, units)])
        yield gpus, Placement(gpu_layers=given, split=split, cpu_moe_layers=moved)


def buffers(spec: ModelSpec, drawn: list[tuple[int, Placement]], settings: Settings) -> list[tuple[int, ...]]:
    weights = weight_profile(spec, "Q4_K_M")
    return [ComputeModel(weights, machine(gpus), settings).bytes(placement, CONTEXT) for gpus, placement in drawn]


def compare(spec: ModelSpec, count: int, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    drawn = [*layouts(spec, random.Random(spec.name), count)]
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    found = buffers(spec, drawn, settings)
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(planning, "Programs", lambda *, alike, **rest: Programs(alike=alike and False, **rest))
    assert found == buffers(spec, drawn, settings)


@pytest.mark.parametrize(
    "name",
    ["qwen3-30b-a3b", "gpt-oss-20b", "lfm2-24b-a2b", "kimi-linear-48b-a3b-instruct", "falcon-h1-1.5b-instruct"],
)
def test_what_was_seen_in_one_layout_holds_in_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(model(name), 8, monkeypatch, Settings(context_tokens=CONTEXT))


def test_ordinary_models_need_no_layout_planned_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    for name in ("qwen3-30b-a3b", "gpt-oss-20b", "kimi-linear-48b-a3b-instruct"):
        spec = model(name)
        buffers(spec, [*layouts(spec, random.Random(1), 8)], Settings(context_tokens=CONTEXT))
    assert all(kept.looks is not None for kept in planning._SHAPES.values())


def test_layouts_of_a_shape_share_what_was_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    spec = model("qwen3-30b-a3b")
    built = []
    build = ComputeModel._graph

    def watched(self: ComputeModel, blocks, *rest):  # type: ignore[no-untyped-def]
        built.append(len(blocks))
        return build(self, blocks, *rest)

    monkeypatch.setattr(ComputeModel, "_graph", watched)
    drawn = [(1, Placement(gpu_layers=49, split=(49,), cpu_moe_layers=moved)) for moved in (10, 11, 30)]
    buffers(spec, drawn, Settings(context_tokens=CONTEXT))
    assert built == [7]
    buffers(spec, [(2, Placement(gpu_layers=49, split=(20, 29)))], Settings(context_tokens=CONTEXT))
    buffers(spec, [(3, Placement(gpu_layers=49, split=(15, 15, 19)))], Settings(context_tokens=CONTEXT))
    buffers(spec, [(4, Placement(gpu_layers=49, split=(10, 15, 14, 10)))], Settings(context_tokens=CONTEXT))
    assert built == [7, 7, 6]
    buffers(spec, [(6, Placement(gpu_layers=49, split=(8, 9, 8, 9, 7, 8)))], Settings(context_tokens=CONTEXT))
    assert len(built) == 3


def test_what_a_split_needs_for_later_blocks_is_taken_where_it_begins() -> None:
    """Two blocks on a GPU that look at an input each in a way of its own: both copies are there from the start."""
    graph = Graph(1)
    x = graph.input("x", (64, U))
    for _ in range(3):
        graph.end()
        own = graph.view(graph.input("own", (32, U)), (32, U))
        x = graph.add("sum", (64, U), x, own, graph.weight("0/up", 0))
    graph.end()
    graph.end()
    sections = traced(schedule(graph, offload=True, large={U: True}, pipeline=False))
    assert [len(section.arrivals[0].codes) for section in sections] == [0, 0, 1, 1, 0]
    assert [section.splits for section in sections] == [False, True, False, False, False]
    found = peaks(graph, Sizes(8, 0, 0, 0).values(), (128, 32), offload=True, large={U: True}, pipeline=False)
    assert found[0] >= 8 * 4 * (64 + 3 * 32)


def test_steps_are_packed() -> None:
    assert decode(code(77, LATEST, ARRIVED)) == (77, LATEST, ARRIVED)


def test_states_are_shared_by_lines_that_begin_alike() -> None:
    forms = [form((1000,)), form((50,))]
    take = Steps((code(0, TAKE, SINCE), code(1, TAKE, SINCE)), ())
    give = Steps((code(0, GIVE, SINCE), code(0, GIVE, SINCE)), ())
    replay = Replay(forms, (1,) * len(MONOMIALS), 128)
    assert replay.peak([(take, ()), (give, ())] * 5) == 4096 + 256
    assert len(replay) == 2
    assert replay.peak([(take, ()), (take, ())]) == 2 * (4096 + 256)
    assert len(replay) == 3


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(planning, "MOST_LINES", 2)
    for name in ("MOST_PROGRAMS", "MOST_REPLAYS", "MOST_SECTIONS"):
        monkeypatch.setattr(programs, name, 2)
    monkeypatch.setattr(replay_of, "MOST_MOVES", 2)
    spec, wanted = model("gpt-oss-20b"), Settings(context_tokens=CONTEXT)
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(2), wanted)
    placements = [Placement(gpu_layers=25, split=(first, 25 - first)) for first in range(9, 15)]
    found = [known.bytes(placement, tokens) for tokens in (CONTEXT, 2 * CONTEXT) for placement in placements]
    kept = next(iter(planning._SHAPES.values()))
    assert len(kept._programs) <= 2
    assert len(kept._replays) <= 2
    assert len(known._lines) <= 2
    again = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(2), wanted)
    assert found[:6] == [again.bytes(placement, CONTEXT) for placement in placements]


def test_shapes_are_bounded_by_what_all_of_them_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(surroundings, "MOST_PARTS", 2)
    spec = model("gpt-oss-20b")
    drawn = [*layouts(spec, random.Random(1), 6)]
    every = [Settings(context_tokens=CONTEXT, parallel=slots) for slots in (1, 2, 3)]
    found = [buffers(spec, drawn, wanted) for wanted in every]
    sizes = [kept.size for kept in planning._SHAPES.values()]
    assert len(sizes) > 3
    assert min(sizes) > 0
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(planning, "MOST_KEPT", 2 * max(sizes))
    assert found == [buffers(spec, drawn, wanted) for wanted in every]
    assert 1 <= len(planning._SHAPES) < len(sizes)
    assert sum(kept.size for kept in planning._SHAPES.values()) <= 2 * max(sizes)


def test_copies_of_weights_have_the_size_they_are_given() -> None:
    steps = Steps((code(0, TAKE_WEIGHT, ARRIVED), code(0, GIVE, ARRIVED)), ((0, "up"),))
    replay = Replay([], (1,) * len(MONOMIALS), 128)
    assert replay.peak([(steps, (1000,)), (steps, (100,))]) == 1024


def test_the_latest_is_last_and_what_is_taken_for_good_does_not_count() -> None:
    forms = [form((32,)), form((64,))]
    steps = Steps(
        (
            code(0, TAKE_FOR_GOOD, EARLY),
            code(0, TAKE, ARRIVED),
            code(1, TAKE, SINCE),
            code(0, LATEST, ARRIVED),
            code(1, GIVE, SINCE),
            code(0, GIVE, SINCE),
        ),
        (),
    )
    replay = Replay(forms, (1,) * len(MONOMIALS), 128)
    assert replay.peak([(steps, ())]) == 128 + 128 + 256
    assert replay.peak([(steps, ()), (Steps((code(1, TAKE, SINCE),), ()), ())]) == 128 + 128 + 256


def test_layouts_planned_for_themselves_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(planning, "MOST_KNOWN", 1)
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 1)
    spec, wanted = model("gemma-3n-e2b-it"), Settings(context_tokens=CONTEXT)
    whole, half = Placement(gpu_layers=31, split=(31,)), Placement(gpu_layers=15, split=(15,))
    more = Placement(gpu_layers=16, split=(16,))
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(1), wanted)
    found = [known.bytes(placement, CONTEXT) for placement in (whole, half, more)]
    again = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(1), wanted)
    assert found[::-1] == [again.bytes(placement, CONTEXT) for placement in (more, half, whole)]
    assert next(iter(planning._SHAPES.values())).looks is None


def test_a_section_on_a_device_without_a_name_is_of_no_use() -> None:
    steps = Steps((code(0, TAKE, SINCE),), ())
    section = assembly.Section(False, (((3, steps),), (), (), (), (), ()))
    assert section.renamed({0: 0}) is None
    assert section.renamed({3: 1}) == assembly.Section(False, (((1, steps),), (), (), (), (), ()))
