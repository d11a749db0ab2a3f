"""Attention and latent attention as nodes of the graph (src/llama-graph.cpp: build_attn, build_attn_mha)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Mla
from willitrun_estimator import cache
from willitrun_estimator.compute import indexer
from willitrun_estimator.compute.form import CELLS, WINDOW, ZERO, Dim, Form, U, form, plus
from willitrun_estimator.compute.kernels import has_flash_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


def attention(  # noqa: C901, PLR0912, PLR0915
    b: Builder, mixer: Attention, normed: Node, homes: Homes
) -> Callable[[], Node]:
    """Add grouped-query attention; the function that is returned adds what llama.cpp computes only when it is read.

    That function gives (heads x value_dim, tokens), without the output projection.
    """
    g = b.graph
    queries, keys, values = (
        mixer.heads * mixer.key_dim,
        mixer.kv_heads * mixer.key_dim,
        mixer.kv_heads * mixer.value_dim,
    )
    shape: tuple[Dim, ...] = (mixer.key_dim, mixer.heads, U)
    kv_shape: tuple[Dim, ...] = (mixer.key_dim, mixer.kv_heads, U)
    both: Node | None = None
    windowed = b.window is not None and cache.effective_window(b.spec, mixer) is not None
    cells = WINDOW if windowed else CELLS
    value_shape: tuple[Dim, ...] = (mixer.value_dim, mixer.kv_heads, U)
    keys_first = b.window is not None
    """Caches with windows take keys before values (the two kinds of `llm_graph_context::build_attn`)."""
    rotate_k = cache.is_quantized(b.settings.kv_type_k) and mixer.key_dim % 64 == 0
    matrix = mixer.key_dim & -mixer.key_dim
    """Width of the rotation of keys: the largest power of two that divides a head (`build_input_k_rot`)."""
    rotate_v = cache.is_quantized(b.settings.kv_type_v) and mixer.value_dim % 64 == 0

    def projected(name: str, width: int) -> Node:
        out = b.matmul(name, homes, width, normed)
        return b.norm(out, name + "_norm", homes) if b.whole_qk_norm and name + "_norm.weight" in homes.parts else out

    def headed(source: Node, name: str) -> Node:
        normal = name + ".weight" in homes.parts and not b.whole_qk_norm
        return b.norm(source, name, homes) if normal else source

    def placed(source: Node, name: str) -> Node:
        if b.style.rotated_norm:
            if homes.rotary:
                return g.add("norm", source.dims, b.rope(source, homes), inplace=True)
            return (
                g.add("scaled", source.dims, source, b.token_input("attn_scale"), inplace=True)
                if "_q" in name
                else source
            )
        if b.style.norm_after_rope:
            return headed(b.rope(source, homes, windowed=windowed), name)
        return b.rope(headed(source, name), homes, windowed=windowed)

    def query(source: Node) -> Node:
        turned = placed(source, "attn_q_norm")
        return b.rotated(turned, shape, "k" + cells, matrix) if rotate_k else turned

    def key(source: Node) -> Node:
        turned = placed(source, "attn_k_norm")
        return b.rotated(turned, kv_shape, "k" + cells, matrix) if rotate_k else turned

    def value(source: Node) -> Node:
        return b.rotated(source, value_shape, "v" + cells, 64) if rotate_v else source

    def gated(out: Node) -> Node:
        if "attn_gate.weight" in homes.parts:
            heads = (mixer.heads, U) if b.style.head_gate else out.dims
            width = mixer.heads if b.style.head_gate else mixer.heads * mixer.value_dim
            gate = g.add("sigmoid", heads, b.matmul("attn_gate", homes, width, normed), inplace=True)
            return g.add("gated", out.dims, out, gate, inplace=True)
        if both is None:
            return out
        gate = g.add("gate", out.dims, g.view(both, out.dims, contiguous=False))
        gate = g.add("sigmoid", out.dims, gate, inplace=True)
        return g.add("gated", out.dims, out, gate, inplace=True)

    k = v = None
    strided = None
    if "attn_qkv.weight" in homes.parts:
        fused = b.matmul("attn_qkv", homes, queries + keys + values, normed)
        q = query(g.part(fused, shape, queries + keys + values))
        v = value(g.part(fused, value_shape, queries + keys + values))
        row = queries + keys + values
        strided = plus(form((row, U)), form((values - row,)))
        k = key(g.part(fused, kv_shape, queries + keys + values))
    else:
        if b.style.gated_query:
            both = b.matmul("attn_q", homes, 2 * queries, normed)
            whole = g.view(both, (2 * mixer.key_dim, mixer.heads, U))
            q = query(g.view(whole, shape, contiguous=False))
        else:
            q = query(g.view(projected("attn_q", queries), shape))
        if not mixer.shares_kv:
            shared = None
            if keys_first:
                first = projected("attn_k", keys)
                shared = None if "attn_v.weight" in homes.parts else first
                k = key(g.view(first, kv_shape))
            source = shared if shared is not None else b.matmul("attn_v", homes, values, normed)
            seen = g.view(source, value_shape)
            v = value(g.add("norm", value_shape, seen, inplace=True) if b.style.value_norm else seen)
            if not keys_first:
                k = key(g.view(projected("attn_k", keys), kv_shape))
    streams = b.streams
    key_bytes = form((cells, cache.kv_row_bytes(b.settings.kv_type_k, keys) * streams), 1)
    value_bytes = form((cells, cache.kv_row_bytes(b.settings.kv_type_v, values) * streams), 1)
    gap_k = cache.padding_bytes(b.settings.kv_type_k, mixer.key_dim)
    gap_v = cache.padding_bytes(b.settings.kv_type_v, mixer.value_dim)
    cache_k = g.cache("cache_k", homes.cache)
    cache_v = g.cache("cache_v", homes.cache)
    if k is not None and v is not None:
        g.store("set_k", cache_k, g.view(k, (keys, U)), b.key_index(cells))
        if b.flash:
            # A slice of the fused projection is copied with its gaps.
            part = g.view(v, (values, U), size=None if rotate_v else strided, contiguous=False)
            g.store("set_v", cache_v, part, b.value_index(cells, values))
        else:
            row = cache.largest_value_row(b.spec)
            whole = g.view(v, (values, U))
            if values < row:
                whole = g.add("pad", (row, U), whole)
            flat = g.view(whole, (1, row, U), size=None if rotate_v or values < row else strided)
            g.store("set_v", cache_v, flat, b.value_index(cells, row))
    out = (mixer.value_dim, mixer.heads, U)
    sinks = [b.weight("attn_sinks.weight", homes)] if "attn_sinks.weight" in homes.parts else []
    if b.flash:
        q = g.view(g.view(q, shape), (mixer.key_dim, U, mixer.heads), contiguous=False)
        kview = g.view(
            g.view(cache_k, (".k",), size=key_bytes), (".k", ".p"), size=key_bytes, contiguous=False, gap_bytes=gap_k
        )
        vview = g.view(
            g.view(cache_v, (".v",), size=value_bytes),
            (".v", ".p"),
            size=value_bytes,
            contiguous=False,
            gap_bytes=gap_v,
        )
        scratch = metal_scratch(b, mixer, cells) if b.backend == "metal" else ZERO
        if b.copies_cache and b.settings.kv_type_k != "f16":
            scratch = plus(scratch, form((cells, keys * streams), 2))
        if b.copies_cache and b.settings.kv_type_v != "f16":
            scratch = plus(scratch, form((cells, values * streams), 2))
        result = g.add(
            "flash",
            out,
            *(q, kview, vview, b.mask(cells), *sinks),
            gpu_extra=scratch,
            picks_device=False,
            gpu_supported=has_flash_kernel(
                b.backend,
                mixer.key_dim,
                mixer.value_dim,
                mixer.heads // mixer.kv_heads,
                b.settings.kv_type_k,
                b.settings.kv_type_v,
            ),
        )

        def finish() -> Node:
            turned = b.rotated(result, out, "v" + cells, 64) if rotate_v else result
            return gated(g.view(turned, (mixer.heads * mixer.value_dim, U)))

        return finish
    vview = g.view(
        g.view(cache_v, (".v",), size=value_bytes), (".v", ".p"), size=value_bytes, contiguous=False, gap_bytes=gap_v
    )
    kview = g.view(
        g.view(cache_k, (".k",), size=key_bytes), (".k", ".p"), size=key_bytes, contiguous=False, gap_bytes=gap_k
    )
    q = g.view(g.view(q, shape), (mixer.key_dim, U, mixer.heads), contiguous=False)
    scores = g.add("kq", (cells, U, mixer.heads), kview, q)
    soft = g.add("soft_max", (cells, U, mixer.heads), scores, b.mask(cells), *sinks, inplace=True, rows=U)
    result = g.add("kqv", (mixer.value_dim, U, mixer.heads), vview, soft)
    turned = g.view(result, out, contiguous=False)
    mixed = g.add("cont", (mixer.heads * mixer.value_dim, U), turned)

    def finish_slow() -> Node:
        return gated(b.rotated(mixed, mixed.dims, "v" + cells, 64) if rotate_v else mixed)

    return finish_slow


def metal_scratch(b: Builder, mixer: Attention, cells: str) -> Form:
    """Sum what Metal keeps behind attention's result, whatever the kernel.

    `ggml_metal_op_flash_attn_ext_extra_pad`, `_blk`, `_tmp` and `_kv_f16` (ggml-metal-ops.cpp): a padded chunk of 64
    cells, a byte per block of 8 tokens and 64 cells, 32 partial results of up to 32 tokens, and both caches in f16.
    """
    rows = mixer.kv_heads * (mixer.key_dim + mixer.value_dim)
    padded = form((64 * rows * mixer.kv_heads,), 2)
    partial = form((32 * 32 * mixer.heads * (mixer.value_dim + 2),))
    blocks = form((cells, max(1, b.settings.ubatch // 512)), 1)
    held = plus(padded, form((U, 64), 2), partial, blocks)
    return plus(held, form((cells, rows * b.streams), 2)) if b.rules.metal_copies else held


def latent_attention(  # noqa: PLR0915
    b: Builder, mixer: Mla, normed: Node, homes: Homes
) -> Node:
    """Multi-head latent attention with absorbed projections (src/models/deepseek2.cpp)."""
    g = b.graph
    heads, rank, rope = mixer.heads, mixer.kv_rank, mixer.rope_dim
    query_dim = mixer.nope_dim + rope
    low = normed
    if mixer.indexer_dim:
        indexer.store_keys(b, mixer, normed, homes)
    if mixer.q_rank:
        low = b.norm(b.matmul("attn_q_a", homes, mixer.q_rank, normed), "attn_q_a_norm", homes)
        q = b.matmul("attn_q_b", homes, heads * query_dim, low)
    else:
        q = b.matmul("attn_q", homes, heads * query_dim, normed)
    split = g.view(q, (query_dim, heads, U))
    nope = g.view(g.view(split, (mixer.nope_dim, heads, U), contiguous=False), (".p", U), contiguous=False)
    absorbed = g.add("absorbed", (rank, U, heads), b.weight("attn_k_b.weight", homes), nope, rows=U)
    turned = g.view(absorbed, (rank, heads, U), contiguous=False)
    q_rope = b.rope(g.view(split, (rope, heads, U), contiguous=False), homes)
    q = g.add("q", (rank + rope, heads, U), turned, q_rope)
    compressed = b.matmul("attn_kv_a_mqa", homes, rank + rope, normed)
    latent = b.norm(g.view(compressed, (rank, U), contiguous=False), "attn_kv_a_norm", homes)
    latent = g.view(latent, (rank, 1, U))
    k_rope = b.rope(g.view(compressed, (rope, 1, U), contiguous=False), homes)
    k = g.add("k", (rank + rope, 1, U), latent, k_rope)
    cache_k = g.cache("cache_k", homes.cache)
    row = rank + rope
    g.store("set_k", cache_k, g.view(k, (row, U)), b.key_index(CELLS))
    key_bytes = form((CELLS, cache.kv_row_bytes(b.settings.kv_type_k, row) * b.streams), 1)
    tail = cache.kv_row_bytes(b.settings.kv_type_k, row) - cache.kv_row_bytes(b.settings.kv_type_k, rank)
    part_bytes = plus(key_bytes, form((-tail,), 1))
    if b.flash:
        q = g.view(g.view(q, (row, heads, U)), (row, U, heads), contiguous=False)
        kview = g.view(cache_k, (".k",), size=key_bytes)
        gap = cache.padding_bytes(b.settings.kv_type_k, row)
        kperm = g.view(kview, (".k", ".p"), size=key_bytes, contiguous=False, gap_bytes=gap)
        vperm = g.view(g.view(kview, (".v",), size=part_bytes), (".v", ".p"), size=part_bytes, contiguous=False)
        mask = b.mask(CELLS) if not b.sparse else indexer.sparse_mask(b, mixer, low, normed, homes)
        copied = b.copies_cache and b.settings.kv_type_k != "f16"
        # V is a part of K, unless both are copied from the host.
        width = row + rank if homes.cache == b.host else row
        scratch = form((CELLS, width * b.streams), 2) if copied else ZERO
        kv_types = (b.settings.kv_type_k, b.settings.kv_type_v)
        result = g.add(
            "flash",
            (rank, heads, U),
            *(q, kperm, vperm, mask),
            gpu_extra=scratch,
            picks_device=False,
            gpu_supported=has_flash_kernel(b.backend, row, rank, heads, *kv_types),
        )
        turned = g.view(result, (rank, U, heads), contiguous=False)
        values = g.add("v_b", (mixer.value_dim, U, heads), b.weight("attn_v_b.weight", homes), turned, rows=U)
        turned = g.view(values, (mixer.value_dim, heads, U), contiguous=False)
        return g.view(g.add("cont", (mixer.value_dim, heads, U), turned), (heads * mixer.value_dim, U))
    kview = g.view(cache_k, (".k",), size=key_bytes)
    part = g.view(g.view(kview, (".v",), size=part_bytes), (".v", ".p"), size=part_bytes, contiguous=False)
    values = g.add("v_cont", (CELLS, rank * b.streams), part, element_bytes=2, rows=1)
    kperm = g.view(kview, (".k", ".p"), size=key_bytes, contiguous=False)
    q = g.view(g.view(q, (row, heads, U)), (row, U, heads), contiguous=False)
    scores = g.add("kq", (CELLS, U, heads), kperm, q)
    mask = b.mask(CELLS) if not b.sparse else indexer.sparse_mask(b, mixer, low, normed, homes)
    soft = g.add("soft_max", (CELLS, U, heads), scores, mask, inplace=True, picks_device=False)
    mixed = g.add("kqv", (rank, U, heads), values, soft)
    out = g.add("v_b", (mixer.value_dim, U, heads), b.weight("attn_v_b.weight", homes), mixed, rows=U)
    turned = g.view(out, (mixer.value_dim, heads, U), contiguous=False)
    return g.add("cont", (heads * mixer.value_dim, U), turned)


def latent_output(b: Builder, mixer: Mla, latent: Node, normed: Node, homes: Homes) -> Node:
    """Gate the heads where the architecture does (Ling 3, Kimi K3), and project to the hidden size."""
    g = b.graph
    if "attn_gate.weight" in homes.parts:
        width = mixer.heads * mixer.value_dim
        gate = b.matmul("attn_gate", homes, mixer.heads if b.style.head_gate else width, normed)
        if b.style.head_gate:
            shape: tuple[Dim, ...] = (mixer.value_dim, mixer.heads, U)
            gate = g.add("sigmoid", (1, mixer.heads, U), g.view(gate, (1, mixer.heads, U)), inplace=True)
            latent = g.add("cont", (width, U), g.add("gated", shape, g.view(latent, shape), gate, inplace=True))
        else:
            gate = g.add("sigmoid", (width, U), gate, inplace=True)
            latent = g.add("gated", (width, U), latent, gate, inplace=True)
    return b.matmul("attn_output", homes, b.spec.hidden_size, latent)
