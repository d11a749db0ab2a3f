"""Residual streams that are banked and mixed again before every part, as Kimi K3 has them (src/models/kimi-k3.cpp)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from willitrun_catalog.model import Dense, Mla, Moe, Recurrent
from willitrun_estimator.compute import attention, feed_forward, recurrent
from willitrun_estimator.compute.form import U

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Layer
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes

    Stream = Callable[[], Node]
    """Adds the residual stream where it is first read."""

BLOCKS_BANKED = 12
"""Every so many blocks the stream is banked and begins anew (`attn_res_block_size` of moonshotai/Kimi-K3)."""


class Bank:
    """The streams banked so far, one after the other in one tensor."""

    def __init__(self, b: Builder) -> None:
        self._builder = b
        self._count = 0
        self._stack: Stream | None = None

    def push(self, stream: Node) -> None:
        """Bank a stream; the tensor that holds it is made where it is read."""
        g = self._builder.graph
        shape = (self._builder.spec.hidden_size, 1, U)
        before, count = self._stack, self._count + 1

        def stacked() -> Node:
            held = None if before is None else before()
            single = g.view(stream, shape)
            return single if held is None else g.add("banked", (shape[0], count, U), held, single)

        self._stack, self._count = cache(stacked), count

    def mixed(self, stream: Stream, score: Node) -> Node:
        """Add the sum of all banked streams and the current one, weighted by the softmax of their scores."""
        if self._stack is None:
            return stream()
        g, hidden, count = self._builder.graph, self._builder.spec.hidden_size, self._count
        banked = self._stack()
        held = g.add("norm", banked.dims, banked, inplace=True)
        held = g.add("scored", banked.dims, held, score, inplace=True, rows=U)
        held = g.view(g.add("sum_rows", (1, count, U), held), (count, U))
        current = stream()
        own = g.add("norm", (hidden, U), current, inplace=True)
        own = g.add("scored", (hidden, U), own, score, inplace=True, rows=U)
        own = g.add("sum_rows", (1, U), own)
        chances = g.add("scores", (count + 1, U), held, own)
        chances = g.add("soft_max", (count + 1, U), chances, inplace=True)
        shares = g.add("cont", (count, U), g.part(chances, (count, U), count + 1))
        out = g.add("mixed", (hidden, U), banked, shares)
        share = g.add("cont", (1, U), g.part(chances, (1, U), count + 1))
        own = g.add("weighted", (hidden, U), current, share, inplace=True)
        return g.add("sum", (hidden, U), out, own, inplace=True)


def block(b: Builder, bank: Bank, layer: Layer, stream: Stream, homes: Homes, index: int) -> Stream:
    """Add a block of mixed streams; gives what adds the rest of it where the next block reads its result."""
    g, hidden = b.graph, b.spec.hidden_size
    source = bank.mixed(stream, b.weight("attn_res_score.weight", homes))
    banked = index % BLOCKS_BANKED == 0
    if banked:
        bank.push(stream())
    normed = b.norm(source, "attn_norm", homes)
    finish = _mixer(b, layer, normed, homes)

    @cache
    def attended() -> Node:
        return finish() if banked else g.add("residual", (hidden, U), stream(), finish(), inplace=True)

    def read() -> Node:
        return b.norm(bank.mixed(attended, b.weight("ffn_res_score.weight", homes)), "ffn_norm", homes)

    ffn = layer.ffn
    if isinstance(ffn, Dense):
        network = ffn

        def rest() -> Node:
            return feed_forward.dense(b, network, read(), homes)

    elif isinstance(ffn, Moe):
        rest = feed_forward.routed(b, ffn, read(), homes)
    else:
        return attended

    @cache
    def result() -> Node:
        before = attended()
        return g.add("block_out", (hidden, U), before, rest(), inplace=True)

    return result


def _mixer(b: Builder, layer: Layer, normed: Node, homes: Homes) -> Stream:
    first = layer.mixers[0]
    if isinstance(first, Mla):
        mixer, latent = first, attention.latent_attention(b, first, normed, homes)
        return lambda: attention.latent_output(b, mixer, latent, normed, homes)
    if isinstance(first, Recurrent):
        return recurrent.kda(b, first, normed, homes)
    return lambda: normed
