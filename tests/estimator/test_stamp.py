"""Blocks that were built before do what they would if they were built again."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from tests.estimator.simulated import machine
from tests.estimator.test_programs import layouts
from willitrun_catalog.shipped import model
from willitrun_estimator.compute import model as planning
from willitrun_estimator.compute import stamp
from willitrun_estimator.compute.builder import Builder
from willitrun_estimator.compute.form import U
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.model import ComputeModel
from willitrun_estimator.compute.node import Node
from willitrun_estimator.compute.operations import Homes
from willitrun_estimator.compute.shape import shape_of
from willitrun_estimator.placement import Settings
from willitrun_estimator.weights import weight_profile

CONTEXT = 8192
NAMES = (
    "llama-3.1-8b-instruct", "minicpm4-8b", "mixtral-8x22b-instruct-v0.1", "lfm2-24b-a2b", "granite-4.0-h-tiny",
    "deepseek-v3.2", "glm-5.3-flash", "minimax-m3", "gemma-4-e4b-it", "falcon-h1-1.5b-instruct",
)  # fmt: skip
"""Rope factors, windows, states that are fetched ahead, leaves, residual streams, blocks of positions, two mixers."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(stamp, "STAMPS", OrderedDict())


def buffers(name: str) -> list[tuple[int, ...]]:
    spec = model(name)
    weights, settings = weight_profile(spec, "Q4_K_M"), Settings(context_tokens=CONTEXT)
    drawn = layouts(spec, random.Random(name), 5)
    return [ComputeModel(weights, machine(gpus), settings).bytes(placement, CONTEXT) for gpus, placement in drawn]


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_the_same_wherever_it_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    again = buffers(name)
    assert stamp.STAMPS
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    monkeypatch.setattr(stamp, "find", lambda _: None)
    assert buffers(name) == again


def test_stamps_are_bounded_and_the_latest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "MOST_STAMPS", 3)
    found = buffers("granite-4.0-h-tiny")
    assert len(stamp.STAMPS) == 3
    first = next(iter(stamp.STAMPS))
    stamp.find(first)
    assert [*stamp.STAMPS][-1] == first
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())
    assert buffers("granite-4.0-h-tiny") == found


def block(shared: dict[object, Node], read: Node) -> Graph:
    """Return a graph of which the last section reads one tensor of the first."""
    graph = Graph(1)
    start = graph.add("start", (64, U), graph.weight("embedding", 1))
    unnamed = graph.add("unnamed", (64, U), start)
    shared["stream"] = start
    graph.end()
    graph.add("end", (64, U), {"start": start, "unnamed": unnamed}[read.name], inplace=True)
    return graph


@pytest.mark.parametrize(("name", "kept"), [("start", True), ("unnamed", False)])
def test_a_block_that_reads_what_has_no_name_is_not_kept(name: str, kept: bool) -> None:
    shared: dict[object, Node] = {}
    graph = block(shared, Node(name, (), ()))
    stamp.keep("key", graph.end((0, 1)), dict(shared), shared, 0, 0)
    assert (stamp.find("key") is not None) is kept


def test_a_block_that_hands_an_older_tensor_on_is_not_kept() -> None:
    shared: dict[object, Node] = {}
    graph = block(shared, Node("start", (), ()))
    before = {"stream": shared["stream"], "other": graph.nodes[0]}
    section = graph.end((0, 1))
    stamp.keep("key", section, before, {"stream": shared["stream"], "other": shared["stream"]}, 0, 0)
    assert stamp.find("key") is None


def test_blocks_of_unknown_structure_are_built_each_time() -> None:
    spec = model("llama-3.1-8b-instruct")
    shape = shape_of(spec)
    homes = [Homes(0, 0, 0, number=number, parts=shape.parts[number]) for number in range(2)]
    builder = Builder(spec, Settings(context_tokens=CONTEXT), host=1, outside=shape.outside)
    graph = builder.build(tuple((spec.layers[one.number], one) for one in homes), 0)
    assert len(graph.sections) == 4
    assert not stamp.STAMPS
