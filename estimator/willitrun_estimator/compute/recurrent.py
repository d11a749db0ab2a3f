"""Mixers with a recurrent state as nodes of the graph.

Sources: src/models/mamba-base.cpp, delta-net-base.cpp, kimi-linear.cpp and lfm2.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator.compute.form import Dim, U, form, plus
from willitrun_estimator.compute.lightning import lightning

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Recurrent
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


def recurrent(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Callable[[], Node]:
    """Add a mixer with a state; what is returned adds what is left of it, the output projection included."""
    if mixer.kind == "kda":
        return kda(b, mixer, normed, homes)
    add = {"gated-delta-net": gated_delta_net, "shortconv": short_convolution, "mamba1": mamba1, "lightning": linear}
    mixed = add.get(mixer.kind, mamba2)(b, mixer, normed, homes)
    return lambda: mixed


def linear(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Lightning attention, whose states are fetched at once."""
    return lightning(b, mixer, b.fetched() or fetch_ahead(b, mixer, homes), normed, homes)


def fetch_ahead(b: Builder, mixer: Recurrent, homes: Homes) -> tuple[Node, Node]:
    """Fetch the state that a block asks for before anything else."""
    convolution = load_state(b, "cache_r", mixer.conv_elements, homes)
    return load_state(b, "cache_s", mixer.state_elements, homes) if mixer.kind == "lightning" else convolution


def load_state(b: Builder, name: str, elements: int, homes: Homes) -> tuple[Node, Node]:
    """Fetch the slots' states out of their cache; returns the cache and the rows."""
    g = b.graph
    store = g.cache(name, homes.cache)
    rows = g.view(store, (".state",), size=form((elements, b.slots)))
    g.store("clear", store, rows)
    fetched = g.add("state_rows", (elements, b.slots), rows, b.state_index(), rows=0)
    other_states(b, store, rows)
    return store, fetched


def other_states(b: Builder, store: Node, rows: Node) -> None:
    """Move the states of sequences that are not in the batch: none, but an empty tensor still divides free blocks."""
    g = b.graph
    g.store("move", store, g.add("other_rows", (0, b.slots), rows, b.state_index(others=True), rows=0))


def convolution_input(b: Builder, state: Node, fresh: Node, channels: int, kernel: int, store: Node) -> Node:
    """Put the last tokens of the previous batch before this one's and save the new last ones."""
    g = b.graph
    window = (kernel - 1) * channels
    whole = state.dims[0] if isinstance(state.dims[0], int) else window
    apart = form((whole * (b.slots - 1) + window,))
    old = g.view(state, (kernel - 1, channels, b.slots), size=apart, contiguous=False)
    turned = g.view(fresh, (".turned", channels), size=form((channels, U)), contiguous=False)
    joined = g.add(
        "conv_input",
        (".joined", channels),
        old,
        turned,
        size=plus(form((channels, U)), form((kernel - 1, channels, b.slots))),
        rows=channels,
    )
    # A strided look is copied with its gaps, all but what the last row has beyond it.
    span = plus(form((channels, U)), form((kernel - 1, channels, b.slots)), form((U,), -(4 // b.slots)))
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
    row = 2 * inner + 2 * groups * state + heads
    whole = g.view(projected, projected.dims)
    fresh = g.part(whole, (channels, U), row)
    joined = convolution_input(b, conv_state, fresh, channels, mixer.conv_kernel, conv_store)
    store = g.cache("cache_s", homes.cache)
    old = g.view(store, (".state",), size=form((mixer.state_elements, b.slots)))
    g.store("clear", store, old)
    mixed = g.add("ssm_conv", (channels, U), joined, b.weight("ssm_conv1d.weight", homes))
    mixed = g.add("conv_bias", (channels, U), mixed, b.weight("ssm_conv1d.bias", homes), inplace=True)
    mixed = g.add("silu", (channels, U), mixed, inplace=True)
    head_dim = inner // heads
    x = g.part(mixed, (head_dim, heads, U), channels)
    steps = g.add("dt", (heads, U), g.part(whole, (heads, U), row))
    steps = g.add("dt_bias", (heads, U), steps, b.weight("ssm_dt.bias", homes), inplace=True)
    decay = b.weight("ssm_a", homes)
    left = g.part(mixed, (state, groups, U), channels)
    right = g.part(mixed, (state, groups, U), channels)
    scanned = g.add(
        "ssm_scan",
        (".scan",),
        g.view(old, (".states",), size=form((mixer.state_elements, b.slots))),
        x,
        steps,
        decay,
        left,
        right,
        b.state_index(),
        size=plus(form((inner, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    other_states(b, store, old)
    g.store(
        "save_state", store, g.view(scanned, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False)
    )
    b.fetch_next()
    if between is not None:
        between()
    gate = g.add("z", (head_dim, heads, U), g.part(whole, (head_dim, heads, U), row))
    y = g.view(scanned, (head_dim, heads, U))
    skip = g.add("x_d", (head_dim, heads, U), x, b.weight("ssm_d", homes))
    y = g.add("y", (head_dim, heads, U), y, skip, inplace=True)
    gated = g.add("swiglu", (head_dim, heads, U), gate, y)
    if "ssm_norm.weight" in homes.parts:
        gated = b.norm(g.view(gated, (inner // groups, groups, U)), "ssm_norm", homes)
    flat = g.view(gated, (inner, U))
    return b.matmul("ssm_out", homes, b.spec.hidden_size, flat)


def kda(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Callable[[], Node]:
    """Kimi delta attention: three convolutions, a fused delta rule, an output gate.

    What is returned adds what llama.cpp computes only when it is read: the gate and the output projection.
    """
    g = b.graph
    heads, dim = mixer.heads, mixer.head_dim
    inner = heads * dim
    shape: tuple[Dim, ...] = (dim, heads, U)
    conv_store, conv_state = b.fetched() or load_state(b, "cache_r", mixer.conv_elements, homes)
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
        taps = g.view(b.weight(f"ssm_conv1d_{part}.weight", homes), (mixer.conv_kernel, inner))
        conv = g.add("ssm_conv", (inner, U), source, taps)
        silu = g.add("silu", (inner, U), g.view(conv, (inner, U)), inplace=True)
        out = g.view(silu, shape)
        if part != "v":
            out = g.add("norm", shape, out, inplace=True)
        mixed.append(out)
    decay = low_rank(b, "ssm_f", mixer, normed, homes)
    decay = g.add("decay_bias", (inner, U), decay, b.weight("ssm_dt.bias", homes), inplace=True)
    decay = g.add("softplus", (inner, U), decay, inplace=True)
    decay = g.view(decay, shape)
    decay = g.add("decay", shape, decay, g.view(b.weight("ssm_a", homes), (1, heads)), inplace=True)
    beta = g.view(b.matmul("ssm_beta", homes, heads, normed), (1, heads, U))
    beta = g.add("sigmoid", (1, heads, U), beta, inplace=True)
    delta = g.add(
        "gated_delta_net",
        (".delta",),
        *mixed,
        g.view(decay, shape),
        beta,
        g.view(state, (dim, dim, heads, b.slots)),
        size=plus(form((inner, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    g.store("save_state", store, g.view(delta, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False))

    def finish() -> Node:
        out = g.add("cont", shape, g.view(delta, shape, contiguous=False))
        out = g.add("normed", shape, g.view(out, shape), b.weight("ssm_norm.weight", homes), inplace=True)
        gate = g.view(low_rank(b, "ssm_g", mixer, g.view(normed, normed.dims), homes), shape)
        gate = g.add("sigmoid", shape, gate, inplace=True)
        out = g.add("gated", shape, out, gate, inplace=True)
        flat = g.add("cont", (inner, U), out)
        return b.matmul("attn_output", homes, b.spec.hidden_size, flat)

    return finish


def low_rank(b: Builder, name: str, mixer: Recurrent, source: Node, homes: Homes) -> Node:
    """Project to a gate of all heads: by two matrices (Kimi Linear), or by one (Ling 3, Kimi K3)."""
    whole = mixer.heads * mixer.head_dim
    if name + "_b.weight" in homes.parts:
        return b.matmul(name + "_b", homes, whole, b.matmul(name + "_a", homes, mixer.head_dim, source))
    return b.matmul(name if name + ".weight" in homes.parts else name + "_a", homes, whole, source)


def mamba1(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Mamba: the scan's parameters are projected from its input; `heads` holds the rank of the time step."""
    g = b.graph
    inner, state, rank = mixer.inner_dim, mixer.state_dim, mixer.heads
    conv_store, conv_state = b.fetched() or load_state(b, "cache_r", mixer.conv_elements, homes)
    projected = b.matmul("ssm_in", homes, 2 * inner, g.view(normed, normed.dims))
    fresh = g.part(projected, (inner, U), 2 * inner)
    joined = convolution_input(b, conv_state, fresh, inner, mixer.conv_kernel, conv_store)
    store = g.cache("cache_s", homes.cache)
    old = g.view(store, (".state",), size=form((mixer.state_elements, b.slots)))
    g.store("clear", store, old)
    mixed = g.add("ssm_conv", (inner, U), joined, b.weight("ssm_conv1d.weight", homes))
    mixed = g.add("conv_bias", (inner, U), mixed, b.weight("ssm_conv1d.bias", homes), inplace=True)
    mixed = g.add("silu", (inner, U), mixed, inplace=True)
    x = g.view(mixed, (1, inner, U))
    parameters = b.matmul("ssm_x", homes, rank + 2 * state, mixed)
    low = g.part(parameters, (rank, U), rank + 2 * state)
    normal = "ssm_dt_norm.weight" in homes.parts
    low = b.norm(low, "ssm_dt_norm", homes) if normal else g.add("cont", (rank, U), low)
    steps = b.matmul("ssm_dt", homes, inner, low)
    left = g.part(parameters, (state, 1, U), rank + 2 * state)
    if normal:
        left = b.norm(left, "ssm_b_norm", homes)
    right = g.part(parameters, (state, 1, U), rank + 2 * state)
    if normal:
        right = b.norm(right, "ssm_c_norm", homes)
    scanned = g.add(
        "ssm_scan",
        (".scan",),
        g.view(old, (".states",), size=form((mixer.state_elements, b.slots))),
        x,
        steps,
        b.weight("ssm_a", homes),
        left,
        right,
        b.state_index(),
        size=plus(form((inner, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    other_states(b, store, old)
    g.store(
        "save_state", store, g.view(scanned, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False)
    )
    b.fetch_next()
    gate = g.add("z", (inner, U), g.part(projected, (inner, U), 2 * inner))
    y = g.view(scanned, (inner, U))
    skip = g.add("x_d", (inner, U), mixed, b.weight("ssm_d", homes), inplace=True)
    y = g.add("y", (inner, U), y, skip, inplace=True)
    gated = g.add("swiglu", (inner, U), gate, y)
    out = b.matmul("ssm_out", homes, b.spec.hidden_size, gated)
    return g.view(out, out.dims)


def gated_delta_net(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Gated delta net of Qwen3-Next and Qwen3.5: `heads` x `head_dim` values, `groups` x `state_dim` keys."""
    g = b.graph
    keys, values = mixer.groups * mixer.state_dim, mixer.heads * mixer.head_dim
    channels = 2 * keys + values
    conv_store, conv_state = load_state(b, "cache_r", mixer.conv_elements, homes)
    fresh = b.matmul("attn_qkv", homes, channels, normed)
    joined = convolution_input(b, conv_state, g.view(fresh, (channels, U)), channels, mixer.conv_kernel, conv_store)
    store, state = load_state(b, "cache_s", mixer.state_elements, homes)
    mixed = g.add("ssm_conv", (channels, U), joined, b.weight("ssm_conv1d.weight", homes))
    mixed = g.add("silu", (channels, U), mixed, inplace=True)
    heads: list[Node] = []
    for _ in range(2):
        part = g.add(
            "l2_norm", (mixer.state_dim, mixer.groups, U), g.part(mixed, (mixer.state_dim, mixer.groups, U), channels)
        )
        if b.style.repeated_keys and mixer.groups != mixer.heads:
            part = g.add("repeat", (mixer.state_dim, mixer.heads, U), g.view(part, part.dims))
        heads.append(g.view(part, part.dims))
    v = g.part(mixed, (mixer.head_dim, mixer.heads, U), channels)
    shape: tuple[Dim, ...] = (mixer.heads, U)
    if "ssm_ba.weight" in homes.parts:
        both = b.matmul("ssm_ba", homes, 2 * mixer.heads, normed)
        decay = g.add("cont", shape, g.view(both, shape, contiguous=False))
        beta = g.add("cont", shape, g.view(both, shape, contiguous=False))
    else:
        decay = g.view(b.matmul("ssm_alpha", homes, mixer.heads, normed), shape)
        beta = g.view(b.matmul("ssm_beta", homes, mixer.heads, normed), shape)
    decay = g.add("decay_bias", shape, decay, b.weight("ssm_dt.bias", homes), inplace=True)
    decay = g.add("decay", shape, decay, b.weight("ssm_a", homes), inplace=True)
    beta = g.add("sigmoid", shape, beta, inplace=True)
    delta = g.add(
        "gated_delta_net",
        (".delta",),
        *heads,
        v,
        g.view(decay, shape),
        beta,
        g.view(state, (mixer.head_dim, mixer.state_dim, mixer.heads, b.slots)),
        size=plus(form((values, U)), form((mixer.state_elements, b.slots))),
        rows=1,
    )
    g.store("save_state", store, g.view(delta, (".new",), size=form((mixer.state_elements, b.slots)), contiguous=False))
    out_shape: tuple[Dim, ...] = (mixer.head_dim, mixer.heads, U)
    out = b.norm(g.view(delta, out_shape, contiguous=False), "ssm_norm", homes)
    gate = g.view(b.matmul("attn_gate", homes, values, normed), out_shape)
    gate = g.add("silu", out_shape, gate, inplace=True)
    out = g.add("gated", out_shape, out, gate, inplace=True)
    out = b.matmul("ssm_out", homes, b.spec.hidden_size, g.view(out, (values, U)))
    return g.view(out, out.dims)


def short_convolution(b: Builder, mixer: Recurrent, normed: Node, homes: Homes) -> Node:
    """Gated short convolution of LFM2 (src/models/lfm2.cpp)."""
    g = b.graph
    hidden = b.spec.hidden_size
    shape: tuple[Dim, ...] = (hidden, U)
    conv_store, conv_state = b.fetched() or load_state(b, "cache_r", mixer.conv_elements, homes)
    projected = b.matmul("shortconv.in_proj", homes, 3 * hidden, normed)
    turned = g.view(projected, (".turned",), contiguous=False)
    left = g.view(turned, (hidden, U), contiguous=False)
    right = g.view(turned, (hidden, U), contiguous=False)
    x = g.view(turned, (hidden, U), contiguous=False)
    gated = g.add("bx", shape, left, x)
    joined = convolution_input(b, conv_state, gated, hidden, mixer.conv_kernel, conv_store)
    b.fetch_next()
    conv = g.add("ssm_conv", shape, joined, b.weight("shortconv.conv.weight", homes))
    out = g.add("gated", shape, right, conv, inplace=True)
    out = b.matmul("shortconv.out_proj", homes, hidden, out)
    return g.view(out, out.dims)
