"""Embeddings of their own for every block, as Gemma 3n and Gemma 4 E have (src/models/gemma4.cpp, gemma3n.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.compute.form import U

if TYPE_CHECKING:
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


EMBEDDED, SELECTED = "embedded", "per_layer_selected"
"""Names of the scaled embeddings and of a token's rows among what blocks share."""


class PerLayerInputs:
    """Looks the rows up at the start, projects them where the first block asks for its slice."""

    def __init__(self, b: Builder, width: int, streams: int, first: int) -> None:
        """`width` is the length of one block's embedding, `first` the device of block 0, which has the projection."""
        self._builder = b
        self.streams = streams
        """How many a block stands between."""
        self._width = width
        self._first = first
        tokens = b.token_input("per_layer_tokens")
        blocks = b.spec.block_count
        table = b.graph.weight("per_layer_token_embd.weight", b.host)
        rows = b.graph.add("per_layer_rows", (width * blocks, U), table, tokens, rows=0)
        shape = (width, blocks, U)
        b.shared[SELECTED] = b.graph.add("per_layer_selected", shape, b.graph.view(rows, shape), inplace=True)

    def slice(self) -> Node:
        """Give one block's embeddings."""
        projected = self._builder.once("per_layer", self._project)
        return self._builder.graph.view(projected, (self._width, U))

    def _project(self) -> Node:
        g, shared = self._builder.graph, self._builder.shared
        width, blocks = self._width, self._builder.spec.block_count
        shape = (width, blocks, U)
        matrix = g.weight("per_layer_model_proj.weight", self._first)
        out = g.add("per_layer_proj", (width * blocks, U), matrix, shared[EMBEDDED], rows=U)
        out = g.add("scaled", out.dims, out, inplace=True)
        out = g.add("norm", shape, g.view(out, shape), inplace=True)
        out = g.add("normed", shape, out, g.weight("per_layer_proj_norm.weight", self._first), inplace=True, rows=U)
        out = g.add("sum", shape, out, shared[SELECTED], inplace=True)
        out = g.add("scaled", shape, out, inplace=True)
        return g.add("per_layer", (width, U, blocks), g.view(out, (width, U, blocks), contiguous=False))

    def gated(self, source: Node, homes: Homes) -> Node:
        """Gate the block's embeddings by its result, and project them back to the hidden size."""
        b = self._builder
        gate = b.matmul("inp_gate", homes, self._width, source)
        gate = b.graph.add("gelu", gate.dims, gate, inplace=True)
        gate = b.graph.add("gated", gate.dims, gate, self.slice(), inplace=True)
        return b.norm(b.matmul("proj", homes, b.spec.hidden_size, gate), "post_norm", homes)
