"""Gemma 3n's parallel streams: several versions of the hidden state, of which a block works on one.

Source: src/models/gemma3n.cpp of llama.cpp (alternating updates, a learned augmented residual layer, sparse gates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Dense
from willitrun_estimator.compute import attention
from willitrun_estimator.compute.form import Dim, U

if TYPE_CHECKING:
    from willitrun_catalog.model import Layer
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes
    from willitrun_estimator.compute.per_layer import PerLayerInputs

SPARSE_BLOCKS = 10
"""The first blocks whose gates are cut off (`n_layer_sparsity`)."""


def magnitude(b: Builder, source: Node) -> Node:
    """Length of every token's vector."""
    squares = b.graph.add("sqr", source.dims, source, inplace=True)
    return _root(b, squares)


def _root(b: Builder, squares: Node) -> Node:
    dims = (1, *squares.dims[1:])
    total = b.graph.add("sum_rows", dims, squares)
    return b.graph.add("sqrt", dims, total, inplace=True)


def stacked(b: Builder, hidden: Node, streams: int, head: int) -> Node:
    """Make the streams out of the embeddings."""
    g = b.graph
    rest: tuple[Dim, ...] = (b.spec.hidden_size, U, streams - 1)
    repeated = g.add("repeat", rest, hidden)
    added = g.add("altup_proj", rest, g.weight("altup_proj.weight", head), repeated, rows=U)
    scaled = g.add("scaled", rest, added, magnitude(b, hidden), inplace=True)
    scaled = g.add("scaled", rest, scaled, magnitude(b, added), inplace=True)
    return g.add("stacked", (b.spec.hidden_size, U, streams), hidden, scaled)


def merged(b: Builder, source: Node, streams: int, head: int) -> Node:
    """Make one hidden state out of the streams."""
    g = b.graph
    shape: tuple[Dim, ...] = (b.spec.hidden_size, U)
    rest: tuple[Dim, ...] = (*shape, streams - 1)
    weight = g.weight("altup_unembd_proj.weight", head)
    back = g.add("altup_unembd", rest, weight, g.view(source, rest), rows=U)
    scaled = g.add("scaled", rest, back, magnitude(b, g.view(source, shape)), inplace=True)
    scaled = g.add("scaled", rest, scaled, magnitude(b, back), inplace=True)
    out = g.view(source, shape)
    for _ in range(streams - 1):
        out = g.add("sum", shape, out, g.view(scaled, shape), inplace=True)
    return g.add("merged", shape, out, inplace=True)


def _modalities(b: Builder, source: Node, homes: Homes, streams: int) -> Node:
    routed = b.norm(source, "altup_router_norm", homes)
    routed = b.graph.add("scaled", routed.dims, routed, inplace=True)
    out = b.matmul("altup_router", homes, streams, routed)
    return b.graph.add("tanh", out.dims, out, inplace=True)


def _predictions(b: Builder, source: Node, homes: Homes, streams: int) -> Node:
    g, hidden = b.graph, b.spec.hidden_size
    turned = g.add("cont", (streams, hidden, U), g.view(source, (streams, hidden, U), contiguous=False))
    coefficients = b.matmul(
        "altup_predict_coef", homes, streams * streams, _modalities(b, g.view(source, (hidden, U)), homes, streams)
    )
    mixed = g.add("mixed", (hidden, streams, U), turned, g.view(coefficients, (streams, streams, U)))
    back = g.add("cont", (hidden, U, streams), g.view(mixed, (hidden, U, streams), contiguous=False))
    return g.add("predictions", back.dims, back, source, inplace=True)


def _feed(b: Builder, ffn: Dense, source: Node, homes: Homes, *, sparse: bool) -> Node:
    g = b.graph
    normed = b.norm(source, "ffn_norm", homes)
    up = b.matmul("ffn_up", homes, ffn.width, normed)
    gate = b.matmul("ffn_gate", homes, ffn.width, normed)
    if sparse:
        mean = g.add("mean", (1, U), gate)
        apart = g.add("apart", gate.dims, gate, mean, inplace=True)
        deviation = _root(b, g.add("sqr", gate.dims, apart, inplace=True))
        cutoff = g.add("cutoff", (1, U), mean, g.add("scaled", (1, U), deviation, inplace=True), inplace=True)
        gate = g.add("cut", gate.dims, gate, cutoff, inplace=True)
        gate = g.add("relu", gate.dims, gate, inplace=True)
    gate = g.add("gelu", gate.dims, gate, inplace=True)
    out = b.matmul("ffn_down", homes, b.spec.hidden_size, g.add("gated", up.dims, up, gate, inplace=True))
    return b.norm(out, "post_ffw_norm", homes)


def block(b: Builder, layer: Layer, source: Node, homes: Homes, inputs: PerLayerInputs, index: int) -> Node:
    """Add one block between streams and streams."""
    g, hidden = b.graph, b.spec.hidden_size
    streams = dict(b.spec.sizes)["altup_inputs"]
    shape: tuple[Dim, ...] = (hidden, U)
    predictions = _predictions(b, source, homes, streams)
    active = g.view(predictions, shape)
    normed = b.norm(active, "attn_norm", homes)
    mixer = next(m for m in layer.mixers if isinstance(m, Attention))
    finish = attention.attention(b, mixer, normed, homes)
    b.fetch_next()
    mixed = b.norm(b.matmul("attn_output", homes, hidden, finish()), "post_attention_norm", homes)
    mixed = g.add("attn_gated", shape, mixed, active, inplace=True)
    low = b.matmul("laurel_l", homes, dict(b.spec.sizes)["laurel_rank"], normed)
    laurel = b.norm(b.matmul("laurel_r", homes, hidden, low), "laurel_post_norm", homes)
    laurel = g.add("laurel", shape, laurel, normed, inplace=True)
    mixed = g.add("attn_laurel", shape, mixed, laurel, inplace=True)
    mixed = g.add("scaled", shape, mixed, inplace=True)
    ffn = layer.ffn
    fed = _feed(b, ffn, mixed, homes, sparse=index < SPARSE_BLOCKS) if isinstance(ffn, Dense) else mixed
    activated = g.add("activated", shape, fed, mixed, inplace=True)
    innovation = g.add("innovation", shape, activated, active, inplace=True)
    innovation = g.add("repeat", (hidden, U, streams), innovation)
    modalities = _modalities(b, activated, homes, streams)
    coefficients = b.matmul("altup_correct_coef", homes, streams, modalities)
    coefficients = g.add("scaled", coefficients.dims, coefficients, inplace=True)
    coefficients = g.add("cont", (1, U, streams), g.view(coefficients, (1, U, streams), contiguous=False))
    corrected = g.add("corrected", innovation.dims, innovation, coefficients, inplace=True)
    corrected = g.add("corrected", innovation.dims, corrected, predictions, inplace=True)
    scale = b.weight("altup_correct_scale.weight", homes)
    first = g.add("scaled", shape, g.view(corrected, shape), scale, inplace=True, rows=U)
    first = inputs.gated(first, homes)
    rest: tuple[Dim, ...] = (hidden, U, streams - 1)
    others = g.add("others", rest, g.view(corrected, rest), first)
    return g.add("block_out", corrected.dims, g.view(corrected, shape), others)
