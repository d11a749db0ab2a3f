"""Hyper-connections: several residual streams that every block reads a mixture of, and writes back to all of.

Source: build_hc_pre, build_hc_post and build_hc_head of src/models/deepseek4.cpp and glm5-next.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.compute.form import ROWS, Dim, U

if TYPE_CHECKING:
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes

STREAMS = 4
"""`hyper_connection.count`: other numbers are refused."""
MIXTURES = (2 + STREAMS) * STREAMS
"""What is learned of a token's streams: how to read them, how to write to them, and how they mix."""


def stacked(b: Builder, hidden: Node) -> Node:
    """Start all streams with the embeddings."""
    size = b.spec.hidden_size
    return b.graph.add("streams", (size, STREAMS, U), b.graph.view(hidden, (size, 1, U)))


def mixtures(b: Builder, source: Node, place: str, homes: Homes) -> Node:
    """Add what decides how a block reads and writes."""
    g = b.graph
    wide: tuple[Dim, ...] = (STREAMS * b.spec.hidden_size, U)
    normed = g.add("norm", wide, g.view(source, wide), inplace=True)
    return b.matmul(f"hc_{place}_fn", homes, MIXTURES, normed)


def _gate(b: Builder, mixed: Node, place: str, homes: Homes) -> Node:
    """Add one share of the mixtures, scaled, shifted and put between 0 and 1."""
    g = b.graph
    part = g.part(mixed, (STREAMS, U), MIXTURES)
    scale = g.view(b.weight(f"hc_{place}_scale.weight", homes), (1,))
    gate = g.add("scaled", (STREAMS, U), part, scale)
    base = g.view(b.weight(f"hc_{place}_base.weight", homes), (STREAMS,))
    gate = g.add("shifted", (STREAMS, U), gate, base, inplace=True)
    return g.add("sigmoid", (STREAMS, U), gate, inplace=True)


def read(b: Builder, source: Node, mixed: Node, place: str, homes: Homes) -> Node:
    """Mix the streams to what the block works on."""
    gate = _gate(b, mixed, place, homes)
    return b.graph.add("hc_pre", (b.spec.hidden_size, U), source, gate)


def ways(b: Builder, mixed: Node, place: str, homes: Homes) -> tuple[Node, Node]:
    """Add how the block writes to each stream, and how the streams mix."""
    post = _gate(b, mixed, place, homes)
    return post, _comb(b, mixed, place, homes)


def _comb(b: Builder, mixed: Node, place: str, homes: Homes) -> Node:
    weights = (b.weight(f"hc_{place}_{part}.weight", homes) for part in ("scale", "base"))
    return b.graph.add("hc_comb", (STREAMS, STREAMS, U), mixed, *weights)


def write(b: Builder, out: Node, source: Node, ways: tuple[Node, Node]) -> Node:
    """Write a block's result to all streams."""
    return b.graph.add("hc_post", (b.spec.hidden_size, STREAMS, U), out, source, *ways)


def write_one_by_one(b: Builder, out: Node, source: Node, mixed: Node, place: str, homes: Homes) -> Node:
    """Do the same in single operations, and add the ways when they are read."""
    g, size = b.graph, b.spec.hidden_size
    shape: tuple[Dim, ...] = (size, U)
    post = _gate(b, mixed, place, homes)
    comb: Node | None = None
    streams: list[Node] = []
    for number in range(STREAMS):
        one = g.add("written", shape, out, g.part(post, (1, U), STREAMS), inplace=True)
        if comb is None:
            comb = _comb(b, mixed, place, homes)
        for _ in range(STREAMS):
            stream = g.part(source, shape, STREAMS * size)
            part = g.add("mixed", shape, stream, g.part(comb, (1, U), STREAMS * STREAMS))
            one = g.add("sum", shape, one, part, inplace=True)
        turned = g.view(one, (size, 1, U))
        streams.append(g.add("joined", (size, number + 1, U), streams[-1], turned) if streams else turned)
    return streams[-1]


def picked(b: Builder, source: Node) -> Node:
    """Keep the rows that get logits, of all streams."""
    g, size = b.graph, b.spec.hidden_size
    ids = b.further_input("out_ids", (ROWS,))
    rows = g.add("get_rows", (STREAMS * size, ROWS), g.view(source, (STREAMS * size, U)), ids)
    return g.view(rows, (size, STREAMS, ROWS))


def head(b: Builder, source: Node, home: int) -> Node:
    """Mix the streams of the rows that get logits to one hidden state (DeepSeek V4)."""
    g, size = b.graph, b.spec.hidden_size
    wide: tuple[Dim, ...] = (STREAMS * size, ROWS)
    normed = g.add("norm", wide, g.view(source, wide), inplace=True)
    mixed = g.add("hc_head", (STREAMS, ROWS), g.weight("output_hc_fn.weight", home), normed)
    mixed = g.add("scaled", (STREAMS, ROWS), mixed, g.weight("output_hc_scale.weight", home), inplace=True)
    gate = g.add("shifted", (STREAMS, ROWS), mixed, g.weight("output_hc_base.weight", home), inplace=True)
    parts: list[Node] = []
    for _ in range(STREAMS):
        stream = g.view(source, (size, ROWS), contiguous=False)
        part = g.add("mixed", (size, ROWS), stream, g.view(gate, (1, ROWS), contiguous=False))
        parts.append(g.add("sum", (size, ROWS), parts[-1], part, inplace=True) if parts else part)
    return parts[-1]


def mean(b: Builder, source: Node) -> Node:
    """Take the mean of the streams of the rows that get logits (GLM 5.3)."""
    g, size = b.graph, b.spec.hidden_size
    out = g.view(source, (size, ROWS), contiguous=False)
    for _ in range(STREAMS - 1):
        out = g.add("sum", (size, ROWS), out, g.view(source, (size, ROWS), contiguous=False), inplace=True)
    return out
