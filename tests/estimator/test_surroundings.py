"""Equal surroundings do the same: layouts put together from sections of others are those of whole graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.estimator.simulated import machine
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.shipped import model, models
from willitrun_estimator.compute import model as planning
from willitrun_estimator.compute.assembly import Inputs, Program, expanded
from willitrun_estimator.compute.form import U
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.kinds import Kind, Layout, Looks, names_of
from willitrun_estimator.compute.model import ComputeModel
from willitrun_estimator.compute.programs import Programs
from willitrun_estimator.compute.schedule import schedule
from willitrun_estimator.compute.shared import Shared, Uses
from willitrun_estimator.compute.showing import Edges, Showing, edges_of, filled_of
from willitrun_estimator.compute.steps import EARLY, GIVE, INPUTS, LATEST, SINCE, TAKE, Known, Steps, code
from willitrun_estimator.compute.surroundings import Place, Seen
from willitrun_estimator.device import Backend
from willitrun_estimator.expert_parts import expert_parts
from willitrun_estimator.placement import Override, Placement, Settings
from willitrun_estimator.weights import weight_profile

CONTEXT = 8192
UNLIKE = (
    "gpt-oss-20b",
    "lfm2-24b-a2b",
    "kimi-linear-48b-a3b-instruct",
    "falcon-h1-1.5b-instruct",
    "glm-5.3-flash",
    "minimax-m3",
    "deepseek-v4-flash",
    "gemma-4-e2b-it",
    "minimax-text-01",
    "nemotron-3-nano-4b",
)
"""Models whose blocks hand on or share tensors in different ways."""


@st.composite
def placements(draw: st.DrawFn, spec: ModelSpec, gpus: int) -> Placement:
    """Draw where units live, whose experts stay behind, which of them are apart, and where caches are."""
    blocks = spec.block_count
    given = draw(st.sampled_from([blocks + 1, blocks // 2]) | st.integers(0, blocks + 1)) if gpus else 0
    cuts = sorted(draw(st.lists(st.integers(0, given), min_size=gpus - 1, max_size=gpus - 1))) if gpus else []
    split = tuple(end - start for start, end in zip([0, *cuts], [*cuts, given], strict=True)) if gpus else ()
    apart = []
    for block, parts in enumerate(expert_parts(spec, "Q4_K_M")) if gpus else ():
        if parts and draw(st.integers(0, 3)) == 0:
            names = draw(st.lists(st.sampled_from([name for name, _ in parts]), min_size=1, unique=True))
            device = draw(st.none() | st.integers(0, gpus - 1))
            apart.append(Override(block=block, tensors=tuple(names), device=device, bytes=1))
    return Placement(
        gpu_layers=given,
        split=split,
        cpu_moe_layers=draw(st.just(0) | st.integers(0, blocks)),
        overrides=tuple(apart),
        kv_on_host=draw(st.integers(0, 5)) == 0,
    )


@st.composite
def layouts(draw: st.DrawFn, spec: ModelSpec, most: int) -> tuple[Settings, Backend, list[tuple[int, Placement]]]:
    """Draw settings and some layouts to plan one after the other."""
    backend: Backend = draw(st.sampled_from(["cuda", "cuda", "vulkan", "metal"]))
    wanted = Settings(
        context_tokens=CONTEXT,
        flash_attention=draw(st.booleans()),
        parallel=draw(st.sampled_from([1, 4])),
        op_offload=draw(st.integers(0, 3)) > 0,
    )
    gpus = draw(st.lists(st.integers(0, 1 if backend == "metal" else 4), min_size=1, max_size=most))
    return wanted, backend, [(count, draw(placements(spec, count))) for count in gpus]


def told(program: Program) -> list[list[tuple[object, ...]]]:
    """Return what a program does, whoever shares its steps."""
    return [[(steps.codes, steps.weights, block if steps.weights else 0) for steps, block in line] for line in program]


def check(spec: ModelSpec, drawn: tuple[Settings, Backend, list[tuple[int, Placement]]]) -> list[Programs]:
    """Plan layouts one after the other, and each as a whole."""
    wanted, backend, placed = drawn
    planning._SHAPES.clear()
    for gpus, placement in placed:
        compute = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(gpus, backend), wanted)
        kinds, head, programs = compute._kinds(placement), compute._head(placement), compute._programs(placement)

        def build(
            blocks: Sequence[int],
            compute: ComputeModel = compute,
            kinds: tuple[Kind, ...] = kinds,
            placement: Placement = placement,
            programs: Programs = programs,
        ) -> Graph:
            return compute._graph([(block, kinds[block]) for block in blocks], placement, programs.known)

        found = programs.program(kinds, head, gpus, build)
        every = range(len(kinds))
        assert told(found) == told(expanded(programs._traced(build(every)), every, gpus, programs._inputs)), placement
    return [*planning._SHAPES.values()]


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHAPES", OrderedDict())


@pytest.mark.parametrize("name", UNLIKE)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_put_together_as_of_one_graph(name: str, data: st.DataObject) -> None:
    spec = model(name)
    kept = check(spec, data.draw(layouts(spec, 4)))
    assert all(programs.looks is not None for programs in kept)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_same_of_every_architecture(data: st.DataObject) -> None:
    seen: dict[str, ModelSpec] = {}
    for spec in models():
        known = seen.get(spec.architecture)
        if known is None or spec.block_count < known.block_count:
            seen[spec.architecture] = spec
    for spec in seen.values():
        check(spec, data.draw(layouts(spec, 4)))


def seen_of(kinds: list[Kind], host: int) -> tuple[Layout, list[object]]:
    """Return the keys of blocks that read one copy each where they live."""
    layout = Layout([Kind("before", *[host] * 4), *kinds, Kind("behind", *[kinds[-1].block] * 4)], host, Looks(1, 0), 0)
    seen = Seen()
    edges = [Edges(kind.block, kind.block, free=True, asks=1) for kind in layout.kinds]
    uses = [Uses(((kind.block, place > 0, (1,) * (place > 0)),), 0, 0, ()) for place, kind in enumerate(layout.kinds)]
    assert seen.learn(layout, edges, uses)
    parts = [part for part in seen.parts(layout) if part is not None]
    return layout, [place.key for place in seen.places(layout, parts)]


def test_a_gpu_is_told_by_what_it_has_to_do_not_by_its_number() -> None:
    _, few = seen_of([Kind(0, *[0] * 4)] * 4 + [Kind(0, *[2] * 4)] * 4, 3)
    _, many = seen_of([Kind(0, *[1] * 4)] * 6 + [Kind(0, *[4] * 4)] * 9, 5)
    assert few[3] == many[4]
    assert few[4] == many[6]
    assert few[5] == many[7]
    assert few[6] == few[3]
    assert len(set(few)) == 6


def test_gpu_0_is_told_from_others_beside_the_host() -> None:
    assert names_of([1, 2, 3], 3, first=True) == {3: -1, 0: 0, 1: 1, 2: 2}
    assert names_of([0, 2], 3, first=False) == {3: -1, 0: 1, 2: 2}
    assert names_of([0], 0, first=True) == {0: -1}


def test_what_a_graph_shows_otherwise_is_not_learned() -> None:
    kinds = [Kind("before", *[1] * 4), *[Kind(0, *[0] * 4)] * 3, Kind("behind", *[0] * 4)]
    layout = Layout(kinds, 1, Looks(1, 0), 0)
    edges: list[Edges | None] = [Edges(kind.block, kind.block, free=True, asks=1) for kind in kinds]
    uses = [Uses(((kind.block, 0, ()),), 0, 0, ()) for kind in kinds]
    assert Seen().learn(layout, edges, uses)
    nothing_of_its_own = [*edges[:2], None, *edges[3:]]
    assert not Seen().learn(layout, nothing_of_its_own, uses)
    unlike = [*edges[:2], Edges(0, 0, free=True, asks=2), *edges[3:]]
    assert not Seen().learn(layout, unlike, uses)
    nameless = [*uses[:2], Uses(((5, 0, ()),), 0, 0, ()), *uses[3:]]
    assert not Seen().learn(layout, edges, nameless)
    seen = Seen()
    assert seen.learn(layout, edges, uses)
    assert not seen.learn(layout, edges, [*uses[:2], Uses(((0, 1, (1,)),), 0, 0, ()), *uses[3:]])
    assert len(seen) > 0
    seen.clear()
    assert len(seen) == 0
    assert seen.parts(layout) == [None] * 5


def shown(graph: Graph) -> Showing:
    graph.end()
    return Showing(graph, [str(number) for number in range(len(graph.sections))])


def graph_of_three(host: int = 1) -> Graph:
    """A mask that the first block makes of an input and all look at, and weights on the GPU."""
    graph = Graph(host)
    x = graph.add("embedded", (64, U), graph.weight("token_embd", host), graph.input("tokens", (U,)), rows=0)
    graph.end()
    mask = graph.add("mask", (64, U), graph.input("cells", (64, U)), graph.weight("0/m", 0))
    for number in range(3):
        x = graph.add("sum", (64, U), x, graph.view(mask, (64, U)), graph.weight(f"{number}/up", 0))
        graph.view(mask, (32, U))
        graph.end()
    graph.add("logits", (9, U), graph.weight("output", 0), x)
    return graph


def test_what_one_block_makes_for_all_is_shared_and_what_it_hands_on_is_not() -> None:
    graph = graph_of_three()
    showing = shown(graph)
    shared = Shared()
    assert shared.handed(showing) == (1, [0, 1, 1, 1, 1])
    assert len(shared.lasting) == 2
    planned = schedule(graph, offload=True, large={U: True}, pipeline=False)
    uses = shared.uses(showing, planned)
    (mask, home), *rest = uses[1].made
    assert (home, rest) == (0, [])
    assert [one.direct & mask for one in uses] == [0, mask, mask, mask, 0]
    assert [one.kept for one in uses] == [0, mask, mask, mask, 0]
    assert uses[2].copies == ((0, 0, ()),)
    (device, bits, asked) = uses[1].copies[0]
    assert (device, bits, len(asked)) == (0, sum(asked), 2)
    assert shared.rooted(bits) == bits
    assert edges_of(planned, [0, 1, 1, 1, 1])[1] == Edges(0, 0, free=True, asks=1)
    assert filled_of(planned) == [False, True, True, True, True]


def test_only_the_first_of_a_structure_may_ask_for_inputs() -> None:
    graph = Graph(1)
    for _ in range(3):
        graph.add("sum", (8, U), graph.input("x", (8, U)), graph.weight("w", 0))
        graph.end()
    assert Showing(graph, ["a", "b", "c"]).orderly
    assert not Showing(graph, ["a", None, None]).orderly


def test_a_section_without_a_device_of_its_own_has_no_edges() -> None:
    graph = Graph(1)
    x = graph.add("sum", (8, U), graph.input("x", (8, U)))
    graph.end()
    odd = graph.add("up", (8, U), x, graph.weight("0/up", 0))
    graph.add("odd", (8, U), odd, gpu_supported=False)
    graph.end()
    planned = schedule(graph, offload=True, large={}, pipeline=False)
    assert edges_of(planned, [0, 1]) == [None, Edges(0, 0, free=False, asks=1)]


def test_inputs_are_named_by_their_place_among_those_left() -> None:
    known = Known()
    take = Steps((code(7, TAKE, INPUTS), code(8, TAKE, EARLY), code(9, TAKE, INPUTS), code(9, TAKE, INPUTS)), ())
    give = Steps((code(0, GIVE, INPUTS), code(2, LATEST, INPUTS)), ())
    leaf = Steps((code(0, GIVE, EARLY), code(1, GIVE, INPUTS)), ())
    other = Steps((code(3, TAKE, SINCE),), ())
    inputs = Inputs(known)
    line = [(take, 0), (other, 1), (give, 2), (leaf, 3)]
    found = [steps.codes for steps, _ in inputs.placed(line)]
    assert found == [
        (code(7, TAKE, EARLY), code(8, TAKE, EARLY), code(9, TAKE, EARLY), code(9, TAKE, EARLY)),
        other.codes,
        (code(0, GIVE, EARLY), code(2, LATEST, EARLY)),
        (code(0, GIVE, EARLY), code(0, GIVE, EARLY)),
    ]
    assert inputs.placed(line)[0][0] is inputs.placed(line)[0][0]
    assert len(inputs) == 7


def test_a_split_is_filled_by_the_first_copy_that_it_begins_with() -> None:
    graph = Graph(1)
    x = graph.add("first", (8, U), graph.weight("0/a", 0), graph.weight("0/b", 0))
    graph.end()
    x = graph.add("second", (8, U), x, graph.weight("1/a", 0))
    graph.end()
    graph.add("third", (8, U), x, graph.input("x", (8, U)), graph.weight("2/a", 0))
    graph.end()
    assert filled_of(schedule(graph, offload=True, large={}, pipeline=False)) == [False, False, True]


@pytest.mark.parametrize("name", ["learn", "places"])
def test_surroundings_that_do_not_explain_what_sections_do_are_given_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexplained(self: Seen, layout: Layout, *_: object) -> bool | list[Place]:
        names = {device: device for device in range(layout.host + 1)}
        return name == "places" and [Place("anywhere", names) for _ in layout.kinds]

    monkeypatch.setattr(Seen, name, unexplained)
    spec = model("gpt-oss-20b")
    placed = [(1, Placement(gpu_layers=25, split=(25,))), (2, Placement(gpu_layers=25, split=(12, 13)))]
    kept = check(spec, (Settings(context_tokens=CONTEXT), "cuda", placed))
    assert [programs.looks for programs in kept] == [None, None]
