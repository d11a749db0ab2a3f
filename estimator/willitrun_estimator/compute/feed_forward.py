"""Feed-forward networks and routed experts as nodes of the graph (src/llama-graph.cpp: build_ffn, build_moe_ffn)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Dense
from willitrun_estimator.compute.form import form
from willitrun_estimator.compute.style import SCALED_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Moe
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.form import Dim
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


HASHED = "ffn_gate_tid2eid.weight"
"""A table of the experts of every token of the vocabulary."""
LATENT = ("ffn_latent", "ffn_routed")
"""Projections that experts stand between (Nemotron 3 Super, Kimi K3): `_down` before, `_up` and a norm after."""
SUMMED = 3
"""Experts' results that are added one by one; further ones write over the same sum."""


def dense(b: Builder, ffn: Dense, normed: Node, homes: Homes, suffix: str = "") -> Node:
    """Add a gated or plain feed-forward network."""
    g = b.graph
    tokens = normed.dims[-1]
    if b.style.situ:
        gate = b.matmul("ffn_gate" + suffix, homes, ffn.width, normed)
        hidden = situ(b, gate, lambda: b.matmul("ffn_up" + suffix, homes, ffn.width, normed))
    elif ffn.gated and f"ffn_gate{suffix}.weight" not in homes.parts:
        both = b.matmul("ffn_up", homes, 2 * ffn.width, normed)
        hidden = g.add("glu", (ffn.width, tokens), both)
    elif ffn.gated:
        gate = b.matmul("ffn_gate" + suffix, homes, ffn.width, normed)
        up = b.matmul("ffn_up" + suffix, homes, ffn.width, normed)
        hidden = g.add("glu", (ffn.width, tokens), gate, up)
    else:
        hidden = b.matmul("ffn_up" + suffix, homes, ffn.width, normed)
        hidden = g.add("activation", (ffn.width, tokens), hidden, inplace=True)
    return b.matmul("ffn_down" + suffix, homes, b.spec.hidden_size, hidden)


def situ(b: Builder, gate: Node, projected: Callable[[], Node]) -> Node:
    """Gate by beta x tanh(gate / beta) x sigmoid(gate), the other half by a tanh of its own (Kimi K3)."""
    g = b.graph
    bounded = g.add("bounded", gate.dims, gate, inplace=True)
    open_ = g.add("sigmoid", gate.dims, gate, inplace=True)
    gate = g.add("gate", gate.dims, bounded, open_, inplace=True)
    up = g.add("bounded", gate.dims, projected(), inplace=True)
    return g.add("situ", gate.dims, gate, up, inplace=True)


def experts(
    b: Builder,
    ffn: Moe,
    normed: Node,
    homes: Homes,
    logits: Node | None = None,
    read: Callable[[], Node] | None = None,
) -> Node:
    """Add a router, the chosen experts side by side, their weighted sum, and the shared expert.

    `logits` are the router's where it has them already, `read` adds what the experts read where the router reads
    something else.
    """
    return routed(b, ffn, normed, homes, logits, read)()


def routed(  # noqa: C901, PLR0912, PLR0915
    b: Builder,
    ffn: Moe,
    normed: Node,
    homes: Homes,
    logits: Node | None = None,
    read: Callable[[], Node] | None = None,
) -> Callable[[], Node]:
    """Add experts up to their sum; what is returned adds what llama.cpp computes only when it is read."""
    g = b.graph
    tokens = normed.dims[-1]
    used, hidden_size = ffn.experts_used, b.spec.hidden_size
    latent = next((name for name in LATENT if name + "_down.weight" in homes.parts), None)
    if latent is not None:
        hidden_size = dict(b.spec.sizes).get("latent_dim", hidden_size)
    if logits is None:
        logits = b.matmul("ffn_gate_inp", homes, ffn.experts, normed)
    chances = g.add("probabilities", (ffn.experts, tokens), logits, inplace=True)
    flat = g.view(chances, (1, ffn.experts, tokens))
    ranked = chances
    balance = next((name for name in ("exp_probs_b.bias", "exp_probs_b") if name in homes.parts), None)
    if balance is not None:
        ranked = g.add("biased", (ffn.experts, tokens), chances, b.weight(balance, homes), inplace=True)
    if HASHED in homes.parts:
        # The first blocks of DeepSeek V4 route by token, without looking at it.
        chosen = g.add("chosen", (used, tokens), b.weight(HASHED, homes), b.token_input("tokens"), rows=0)
    else:
        order = g.add("argsort", (ffn.experts, tokens), ranked, element_bytes=4)
        chosen = g.part(order, (used, tokens), ffn.experts)
    weights = g.view(g.add("weights", (1, used, tokens), flat, chosen), (used, tokens))
    if not b.style.plain_weights:
        total = g.add("sum_rows", (1, tokens), weights)
        total = g.add("clamped", (1, tokens), total, inplace=True)
        weights = g.add("weights_norm", (used, tokens), weights, total, inplace=True)
    weights = g.view(weights, (1, used, tokens))
    if b.spec.architecture in SCALED_WEIGHTS:
        weights = g.add("weights_scaled", (1, used, tokens), weights)
    seen = b.matmul(latent + "_down", homes, hidden_size, normed) if latent is not None else normed
    single = g.view(seen if read is None else read(), (hidden_size, 1, tokens))
    if b.style.weights_first:
        single = g.add("repeat", (hidden_size, used, tokens), single)
        single = g.add("weighted", (hidden_size, used, tokens), single, weights, inplace=True)

    def chosen_by(name: str, width: int, source: Node) -> Node:
        dims: tuple[Dim, ...] = (width, used, tokens)
        out = g.add(name, dims, b.weight(name + ".weight", homes, routed=True), source, chosen, rows=tokens)
        if name + ".bias" in homes.parts:
            bias = b.weight(name + ".bias", homes, routed=True)
            out = g.add(name + "_bias", dims, out, bias, chosen, inplace=True, rows=tokens)
        if name + ".scale" in homes.parts:
            scale = g.view(b.weight(name + ".scale", homes, routed=True), (1, ffn.experts), size=form((ffn.experts,)))
            scale = g.add("repeat", (1, ffn.experts, tokens), scale)
            scale = g.add("scales", (1, used, tokens), scale, chosen)
            out = g.add("scaled", dims, out, scale, inplace=True)
        return out

    if "ffn_gate_up_exps.weight" in homes.parts:
        both = chosen_by("ffn_gate_up_exps", 2 * ffn.width, single)
        hidden = g.add(
            "glu",
            (ffn.width, used, tokens),
            g.view(both, (".gate",), contiguous=False),
            g.view(both, (".up",), contiguous=False),
        )
    elif b.style.situ:
        gate = chosen_by("ffn_gate_exps", ffn.width, single)
        hidden = situ(b, gate, lambda: chosen_by("ffn_up_exps", ffn.width, single))
    elif ffn.gated:
        first, second = (
            ("ffn_up_exps", "ffn_gate_exps") if b.style.up_experts_first else ("ffn_gate_exps", "ffn_up_exps")
        )
        gate = chosen_by(first, ffn.width, single)
        up = chosen_by(second, ffn.width, single)
        hidden = g.add("glu", (ffn.width, used, tokens), gate, up)
    else:
        hidden = chosen_by("ffn_up_exps", ffn.width, single)
        hidden = g.add("activation", (ffn.width, used, tokens), hidden, inplace=True)
    down = chosen_by("ffn_down_exps", hidden_size, hidden)
    weighted = down
    if not b.style.weights_first:
        weighted = g.add("weighted", (hidden_size, used, tokens), down, weights, inplace=True)
    parts = [g.view(weighted, (hidden_size, tokens), contiguous=False) for _ in range(min(used, SUMMED))]
    out = parts[0]
    if used == 1:
        out = g.add("cont", (hidden_size, tokens), out)
    for part in parts[1:]:
        out = g.add("sum", (hidden_size, tokens), out, part, inplace=True)
    b.fetch_next()

    def finish() -> Node:
        whole = out
        hidden_size = b.spec.hidden_size
        if latent is not None:
            if latent + "_norm.weight" in homes.parts:
                whole = b.norm(whole, latent + "_norm", homes)
            whole = b.matmul(latent + "_up", homes, hidden_size, whole)
        if ffn.shared_width and "ffn_up_shexp.weight" in homes.parts:
            shared = dense(b, Dense(width=ffn.shared_width, gated=ffn.gated), normed, homes, "_shexp")
            if "ffn_gate_inp_shexp.weight" in homes.parts:
                gate = b.matmul("ffn_gate_inp_shexp", homes, 1, normed)
                gate = g.add("sigmoid", (1, tokens), gate, inplace=True)
                shared = g.add("gated", (hidden_size, tokens), shared, gate, inplace=True)
            whole = g.add("with_shared", (hidden_size, tokens), whole, shared, inplace=True)
        return whole

    return finish


def beside(b: Builder, ffn: Moe, source: Node, homes: Homes) -> Node:
    """Add experts and a dense network side by side, each with its norms, the router with a scale (Gemma 4)."""
    g = b.graph
    router = g.add("norm", source.dims, source, inplace=True)
    router = g.add("scaled", source.dims, router, inplace=True)
    router = g.add("scaled", source.dims, router, b.weight("ffn_gate_inp.scale", homes), inplace=True)
    logits = b.matmul("ffn_gate_inp", homes, ffn.experts, router)
    summed = experts(b, ffn, source, homes, logits, lambda: b.norm(source, "pre_ffw_norm_2", homes))
    normed = b.norm(source, "ffn_norm", homes)
    network = dense(b, Dense(width=ffn.shared_width, gated=ffn.gated), normed, homes)
    network = b.norm(network, "post_ffw_norm_1", homes)
    summed = b.norm(summed, "post_ffw_norm_2", homes)
    return g.add("sum", source.dims, network, summed, inplace=True)
