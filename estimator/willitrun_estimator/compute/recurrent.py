"""Mixers with a recurrent state as nodes of the graph (src/models/mamba-base.cpp, delta-net-base.cpp, kimi-linear.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.compute.form import U, Dim, form, plus

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Recurrent

    from willitrun_estimator.compute.builder import Builder, Homes
    from willitrun_estimator.compute.graph import Node


def recurrent(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Add a mixer with a state, its output projection included."""
    if mixer.kind == "kda":
        return kda(b, mixer, normed, homes)
    return mamba2(b, mixer, normed, homes)


def load_state(b: Builder, name: str, elements: int, homes: Homes) -> tuple[Node, Node]:
    """Fetch the slots' states out of their cache; returns the cache and the rows."""
    g = b.graph
    store = g.cache(name, homes.cache)
    rows = g.view(store, (".state",), size=form((elements, b.slots)))
    g.store("clear", store, rows)
    return store, g.add("state_rows", (elements, b.slots), rows, b.state_index(), rows=0)


def convolution_input(b: Builder, state: Node, fresh: Node, channels: int, kernel: int, store: Node) -> Node:
    """Put the last tokens of the previous batch before this one's and save the new last ones."""
    g = b.graph
    old = g.view(state, (kernel - 1, channels, b.slots), contiguous=False)
    turned = g.view(fresh, (".turned", channels), size=form((channels, U)), contiguous=False)
    joined = g.add(
        "conv_input",
        (".joined", channels),
        old,
        turned,
        size=plus(form((channels, U)), form((kernel - 1, channels, b.slots))),
        rows=channels,
    )
    # A strided look is copied with its gaps: every channel's row but the tail of the last one.
    span = plus(form((channels, U)), form((kernel - 1, channels, b.slots)))
    last = g.view(joined, (".last", channels), size=span, contiguous=False)
    g.store("save_conv", store, last)
    return joined


def mamba2(
    b: Builder, mixer: Recurrent, normed: Node, homes: Homes, *, between: Callable[[], None] | None = None
) -> Node:
    """Mamba-2: one input projection, a short convolution and the selective scan.

    `between` adds what llama.cpp computes after the scan and before the gate.
    """
    g = b.graph
    inner, state, groups, heads = mixer.inner_dim, mixer.state_dim, mixer.groups, mixer.heads
    channels = inner + 2 * groups * state
    conv_store, conv_state = b.fetched() or load_state(b, "cache_r", mixer.conv_elements, homes)
    projected = b.matmul("ssm_in", homes, 2 * inner + 2 * groups * state + heads, normed)
    whole = g.view(projected, projected.dims)
    fresh = g.view(whole, (channels, U), contiguous=False)
    joined = convolution_input(b, conv_state, fresh, channels, mixer.conv_kernel, conv_store)
    store = g.cache("cache_s", homes.cache)
    old = g.view(store, (".state",), size=form((mixer.state_elements, b.slots)))
    g.store("clear", store, old)
    mixed = g.add("ssm_conv", (channels, U), joined, b.weight("ssm_conv1d.weight", homes))
    if "ssm_conv1d.bias" in homes.parts:
        mixed = g.add("conv_bias", (channels, U), mixed, b.weight("ssm_conv1d.bias", homes), inplace=True)
    mixed = g.add("silu", (channels, U), mixed, inplace=True)
    head_dim = inner // heads
    x = g.view(mixed, (head_dim, heads, U), contiguous=False)
    steps = g.add("dt", (heads, U), g.view(whole, (heads, U), contiguous=False))
    steps = g.add("dt_bias", (heads, U), steps, b.weight("ssm_dt.bias", homes), inplace=True)
    decay = b.weight("ssm_a", homes)
    left = g.view(mixed, (state, groups, U), contiguous=False)
    right = g.view(mixed, (state, groups, U), contiguous=False)
    scanned = g.add(
        "ssm_scan",
        (".scan",),
        old,
        x,
        steps,
        decay,
        left,
        right,
        b.state_index(),
        size=plus(form((inner, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    g.store("save_state", store, g.view(scanned, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False))
    b.fetch_next()
    if between is not None:
        between()
    gate = g.add("z", (head_dim, heads, U), g.view(whole, (head_dim, heads, U), contiguous=False))
    y = g.view(scanned, (head_dim, heads, U))
    skip = g.add("x_d", (head_dim, heads, U), x, b.weight("ssm_d", homes))
    y = g.add("y", (head_dim, heads, U), y, skip, inplace=True)
    gated = g.add("swiglu", (head_dim, heads, U), gate, y)
    if "ssm_norm.weight" in homes.parts:
        gated = b.norm(g.view(gated, (inner // groups, groups, U)), "ssm_norm", homes)
    flat = g.view(gated, (inner, U))
    return b.matmul("ssm_out", homes, b.spec.hidden_size, flat)


def kda(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Kimi delta attention: three convolutions, a fused delta rule, an output gate."""
    g = b.graph
    heads, dim = mixer.heads, mixer.head_dim
    inner = heads * dim
    shape: tuple[Dim, ...] = (dim, heads, U)
    conv_store, conv_state = load_state(b, "cache_r", mixer.conv_elements, homes)
    joined = [
        convolution_input(
            b,
            conv_state,
            g.view(b.matmul(f"attn_{part}", homes, inner, normed), (inner, U)),
            inner,
            mixer.conv_kernel,
            conv_store,
        )
        for part in "qkv"
    ]
    store, state = load_state(b, "cache_s", mixer.state_elements, homes)
    mixed = []
    for part, source in zip("qkv", joined, strict=True):
        conv = g.add("ssm_conv", (inner, U), source, b.weight(f"ssm_conv1d_{part}.weight", homes))
        silu = g.add("silu", (inner, U), g.view(conv, (inner, U)), inplace=True)
        out = g.view(silu, shape)
        if part != "v":
            out = g.add("norm", shape, out, inplace=True)
        mixed.append(out)
    low = b.matmul("ssm_f_a", homes, dim, normed)
    decay = b.matmul("ssm_f_b", homes, inner, low)
    decay = g.add("decay_bias", (inner, U), decay, b.weight("ssm_dt.bias", homes), inplace=True)
    decay = g.add("softplus", (inner, U), decay, inplace=True)
    decay = g.add("decay", shape, g.view(decay, shape), b.weight("ssm_a", homes), inplace=True)
    beta = g.view(b.matmul("ssm_beta", homes, heads, normed), (1, heads, U))
    beta = g.add("sigmoid", (1, heads, U), beta, inplace=True)
    delta = g.add(
        "gated_delta_net",
        (".delta",),
        *mixed,
        g.view(decay, shape),
        beta,
        g.view(state, (dim, dim, heads)),
        size=plus(form((inner, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    g.store("save_state", store, g.view(delta, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False))
    out = g.add("cont", shape, g.view(delta, shape, contiguous=False))
    out = g.add("normed", shape, g.view(out, shape), b.weight("ssm_norm.weight", homes), inplace=True)
    low = b.matmul("ssm_g_a", homes, dim, g.view(normed, normed.dims))
    gate = g.view(b.matmul("ssm_g_b", homes, inner, low), shape)
    gate = g.add("sigmoid", shape, gate, inplace=True)
    out = g.add("gated", shape, out, gate, inplace=True)
    flat = g.add("cont", (inner, U), out)
    return b.matmul("attn_output", homes, b.spec.hidden_size, flat)
