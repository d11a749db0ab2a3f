"""Where what is held throughout a graph is counted, and what no device asks for."""

from __future__ import annotations

from willitrun_estimator.compute.form import U
from willitrun_estimator.compute.graph import Graph
from willitrun_estimator.compute.schedule import Schedule, schedule


def scheduled(graph: Graph) -> Schedule:
    return schedule(graph, offload=True, large={U: True}, pipeline=False)


def test_a_leaf_belongs_to_the_section_that_first_computes_on_its_device() -> None:
    graph = Graph(2)
    leaves = [graph.leaf("held", (64, U), device, kept=True) for device in (0, 1, 2)]
    x = graph.add("start", (64, U), graph.weight("embedding", 2), graph.input("x", (64, U)), rows=0)
    graph.end()
    x = graph.add("up", (64, U), graph.weight("0/up", 1), x)
    graph.end()
    graph.add("end", (64, U), graph.weight("end", 1), x)
    graph.end()
    planned = scheduled(graph)
    assert [planned.first(device) for device in (2, 1)] == [0, 1]
    assert planned.first(0) == 0, "no section computes on it"
    assert [leaf.place for leaf in leaves] == planned.early[0][:3]


def test_what_nothing_asks_for_goes_where_most_of_its_sources_are() -> None:
    graph = Graph(1)
    odd = graph.add("odd", (64, U), picks_device=False)
    ends = [
        graph.add("end", (64, U), odd, *(graph.cache("cache", 1) for _ in range(count)), picks_device=False)
        for count in (1, 2)
    ]
    graph.end()
    graph.end()
    planned = scheduled(graph)
    assert [planned.devices[node.place] for node in (odd, *ends)] == [0, 0, 1]
