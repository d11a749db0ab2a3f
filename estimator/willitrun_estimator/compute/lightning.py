"""Lightning attention of MiniMax-Text-01 (src/models/minimax-01.cpp): linear, with one decaying state a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.compute.form import Dim, U, form

if TYPE_CHECKING:
    from willitrun_catalog.model import Recurrent
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


def lightning(b: Builder, mixer: Recurrent, held: tuple[Node, Node], normed: Node, homes: Homes) -> Node:
    """Add what tokens of the batch see of one another and what they see of the state, which then decays.

    `held` is the states' cache and the slots' states, already fetched.
    """
    g = b.graph
    heads, dim = mixer.heads, mixer.head_dim
    inner = heads * dim
    shape: tuple[Dim, ...] = (dim, heads, U)
    turned: tuple[Dim, ...] = (dim, U, heads)
    steps: tuple[Dim, ...] = (1, heads, U)
    pairs: tuple[Dim, ...] = (U, U, heads)
    size = tuple(-(-amount // b.slots) for amount in form(pairs))
    square: tuple[Dim, ...] = (dim, dim, heads, b.slots)

    def decay(name: str, dims: tuple[Dim, ...]) -> Node:
        """Weigh by distance: each token from the batch's ends, and each pair of tokens of a slot."""
        distances = b.further_input(name, dims, size if dims is pairs else None)
        exponent = g.add("scaled", dims, distances, inplace=True, size=distances.size)
        return g.add("decay", dims, exponent, inplace=True, size=distances.size)

    store, state = held
    fused = b.matmul("attn_qkv", homes, 3 * inner, g.view(normed, normed.dims))
    fused = g.add("silu", (3 * inner, U), fused, inplace=True)
    old = g.view(state, square)
    q = g.part(fused, shape, 3 * inner)
    seen = g.add("weighted", shape, q, decay("query_decay", steps))
    seen = g.add("from_state", turned, old, g.view(seen, turned, contiguous=False))
    v = g.add("turned", (U, dim, heads), g.part(fused, shape, 3 * inner))
    k = g.part(fused, shape, 3 * inner)
    scores = g.add("scores", pairs, g.view(k, turned, contiguous=False), g.view(q, turned, contiguous=False), size=size)
    scores = g.add("weighted", pairs, scores, decay("pair_decay", pairs), inplace=True, size=size)
    mixed = g.add("from_batch", turned, v, scores)
    mixed = g.add("sum", turned, seen, mixed, inplace=True)
    rate = g.add("scaled", (heads,), b.further_input("slopes", (heads,)), inplace=True)
    rate = g.add("scaled", (heads,), rate, inplace=True)
    rate = g.add("decay", (heads,), rate, inplace=True)
    old = g.add("weighted", square, old, g.view(rate, (1, 1, heads)))
    keys = g.add("weighted", shape, k, decay("key_decay", steps))
    keys = g.add("turned", (U, dim, heads), g.view(keys, (".turned",), contiguous=False))
    fresh = g.add("from_keys", square, keys, v)
    fresh = g.add("sum", square, old, fresh, inplace=True)
    g.store("save_state", store, fresh)
    b.fetch_next()
    gate = b.matmul("attn_gate", homes, inner, g.view(normed, normed.dims))
    gate = g.add("sigmoid", (inner, U), gate, inplace=True)
    out = g.add("cont", shape, g.view(mixed, shape, contiguous=False))
    out = b.norm(g.view(out, (inner, U)), "attn_norm_2", homes)
    out = g.add("gated", (inner, U), gate, out, inplace=True)
    out = b.matmul("attn_output", homes, b.spec.hidden_size, out)
    return g.view(out, out.dims)
