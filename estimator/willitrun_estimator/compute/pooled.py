"""Latent attention whose indexer scores pools of tokens instead of single ones.

Source: build_dsa_layer, build_kpool_select and build_inp_kpool of src/models/glm5-next.cpp of llama.cpp. Its cache has
a token's key, its gate and, in the last token of a pool, the pooled key side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator import cache
from willitrun_estimator.compute import indexer
from willitrun_estimator.compute.extent import pool_of
from willitrun_estimator.compute.form import CELLS, CHOSEN, COMPRESSED, GROUPS, ZERO, Form, U, form, plus
from willitrun_estimator.compute.kernels import gathers_rows, has_flash_kernel
from willitrun_estimator.compute.node import Node

if TYPE_CHECKING:
    from willitrun_catalog.model import Mla
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.operations import Homes

KEY, GATE, POOLED = range(3)
"""The parts of a row of the indexer's cache."""


def start(b: Builder) -> None:
    """Add the inputs that llama.cpp asks for before any block."""
    pool = pool_of(b.spec)
    b.further_input("pool_cells", (COMPRESSED,))
    b.further_input("pool_idxs", (pool, COMPRESSED))
    _pool_mask(b)
    b.further_input("tail_idxs", (pool - 1, U))
    b.further_input("gather_mask", (".slots", U), _slots(pool))


def _pool_mask(b: Builder) -> Node:
    return b.further_input("pool_mask", (COMPRESSED, U), element_bytes=2)


def _slots(pool: int, element_bytes: int = 4) -> Form:
    """Bytes of what is chosen for a micro-batch: whole pools, and the tokens behind the last one."""
    return plus(form((pool, CHOSEN, U), element_bytes), form((pool - 1, U), element_bytes))


def pooled_attention(b: Builder, mixer: Mla, normed: Node, homes: Homes) -> Node:
    """Add a block's attention without its output projection."""
    g = b.graph
    heads, rank, value_dim = mixer.heads, mixer.kv_rank, mixer.value_dim
    store = g.cache("cache_i", homes.cache)
    if mixer.indexer_dim:
        _store_keys(b, mixer, normed, store, homes)
    low = b.norm(b.matmul("attn_q_a", homes, mixer.q_rank or 0, normed), "attn_q_a_norm", homes)
    q = g.view(b.matmul("attn_q_b", homes, heads * mixer.nope_dim, low), (mixer.nope_dim, heads, U))
    q = g.view(q, (".p", U), contiguous=False)
    q = g.add("absorbed", (rank, U, heads), b.weight("attn_k_b.weight", homes), q, rows=U)
    latent = b.norm(b.matmul("attn_kv_a_mqa", homes, rank, normed), "attn_kv_a_norm", homes)
    cache_k = g.cache("cache_k", homes.cache)
    g.store("set_k", cache_k, g.view(g.view(latent, (rank, 1, U)), (rank, U)), b.key_index(CELLS))
    size = form((CELLS, cache.kv_row_bytes(b.settings.kv_type_k, rank) * b.streams), 1)
    q = g.view(g.view(q, (rank, heads, U), contiguous=False), (rank, U, heads), contiguous=False)
    gap = cache.padding_bytes(b.settings.kv_type_k, rank)
    whole = g.view(cache_k, (".k",), size=size)
    keys, values = (g.view(whole, (".k", ".p"), size=size, contiguous=False, gap_bytes=gap) for _ in range(2))

    def mask() -> Node:
        if mixer.indexer_dim or indexer.CHOICE not in b.shared:
            b.shared[indexer.CHOICE] = _choose(b, mixer, (low, normed), store, homes)
        return g.view(b.shared[indexer.CHOICE], (CELLS, U))

    if b.flash:
        copied = b.copies_cache and b.settings.kv_type_k != "f16"
        apart = homes.cache == b.host
        out = g.add(
            "flash",
            (rank, heads, U),
            *(q, keys, values, mask()),
            gpu_extra=form((CELLS, (2 if apart else 1) * rank * b.streams), 2) if copied else ZERO,
            picks_device=False,
            gpu_supported=has_flash_kernel(b.backend, rank, rank, heads, b.settings.kv_type_k, b.settings.kv_type_k),
        )
        out = g.view(out, (rank, U, heads), contiguous=False)
        out = g.add("v_b", (value_dim, U, heads), b.weight("attn_v_b.weight", homes), out, rows=U)
        out = g.add("cont", (value_dim, heads, U), g.view(out, (value_dim, heads, U), contiguous=False))
        return g.view(out, (heads * value_dim, U))
    values = g.add("v_cont", (CELLS, rank * b.streams), values, element_bytes=2, rows=1)
    scores = g.add("kq", (CELLS, U, heads), keys, q)
    soft = g.add("soft_max", (CELLS, U, heads), scores, mask(), inplace=True, picks_device=False)
    out = g.add("kqv", (rank, U, heads), values, soft)
    out = g.add("v_b", (value_dim, U, heads), b.weight("attn_v_b.weight", homes), out, rows=U)
    return g.add("cont", (heads * value_dim, U), g.view(out, (value_dim, heads, U), contiguous=False))


def _look(b: Builder, store: Node, width: int, part: int, parts: int) -> Node:
    """Look at some of the three parts of every row of the indexer's cache."""
    kind = b.settings.kv_type_k
    row = cache.kv_row_bytes(kind, 3 * width)
    gap = cache.kv_row_bytes(kind, parts * width) - row
    size = plus(form((CELLS, row * b.streams), 1), form((gap,), 1))
    return b.graph.view(
        store, (f".{part}",), size=size, contiguous=False, gap_bytes=cache.padding_bytes(kind, parts * width)
    )


def _store_keys(b: Builder, mixer: Mla, normed: Node, store: Node, homes: Homes) -> None:
    """Store this batch's keys and gates, and the pooled keys of the pools that it completes."""
    g, width, pool = b.graph, mixer.indexer_dim or 0, pool_of(b.spec)
    key = b.norm(b.matmul("indexer.attn_k", homes, width, normed), "indexer.k_norm", homes)
    gate = b.matmul("indexer_compressor_gate", homes, width, normed)
    both = g.add("joined", (2 * width, U), key, gate)
    nothing = g.leaf("nothing", (width, U), homes.block if homes.block != b.host else 0)
    nothing = g.add("fill", (width, U), nothing, inplace=True)
    packed = g.add("joined", (3 * width, U), both, nothing)
    index = b.key_index("indexer")
    g.store("set_k", store, g.view(g.view(packed, (3 * width, 1, U)), packed.dims), index)
    members = b.further_input("new_pools", (pool, GROUPS))
    members = g.view(members, (".all", GROUPS), size=members.size)
    rows = g.add(
        "rows",
        (2 * width, pool, GROUPS),
        _look(b, store, width, KEY, 2),
        members,
        rows=0,
        gpu_supported=gathers_rows(b.settings.kv_type_k),
    )
    shape, turned = (width, pool, GROUPS), (pool, width, GROUPS)
    places = b.weight("indexer_compressor_ape.weight", homes)
    logits = g.add("placed", shape, g.view(rows, shape, contiguous=False), places, inplace=True)
    logits = g.add("cont", turned, g.view(logits, turned, contiguous=False))
    shares = g.add("soft_max", turned, g.view(logits, turned), inplace=True)
    keys = g.add("cont", turned, g.view(rows, turned, contiguous=False))
    mixed = g.add("weighted", turned, g.view(shares, turned), keys, inplace=True)
    summed = g.add("sum_rows", (1, width, GROUPS), mixed)
    last = b.further_input("new_pools_last", (GROUPS,), element_bytes=8)
    g.store("set_pooled", store, g.view(summed, (width, GROUPS)), last)


def _choose(b: Builder, mixer: Mla, reads: tuple[Node, Node], store: Node, homes: Homes) -> Node:
    """Score all pools, order the best, and open the mask for their tokens and for those behind the last pool."""
    g, low, normed = b.graph, *reads
    width, heads, pool = mixer.indexer_dim or 0, mixer.indexer_heads or 0, pool_of(b.spec)
    q = g.view(b.matmul("indexer.attn_q_b", homes, heads * width, low), (width, heads, U))
    pools = g.add(
        "rows",
        (width, COMPRESSED),
        _look(b, store, width, POOLED, 1),
        b.further_input("pool_cells", (COMPRESSED,)),
        rows=0,
        gpu_supported=gathers_rows(b.settings.kv_type_k),
    )
    weights = b.matmul("indexer.proj", homes, heads, normed)
    weights = g.add("scaled", (heads, U), weights, inplace=True)
    scores = indexer.scored(b, q, g.view(pools, (width, 1, COMPRESSED)), weights, _pool_mask(b), "f32")
    best = g.add("top_k", (CHOSEN, U), scores)
    floats = g.view(g.add("cast", (CHOSEN, U), best), (1, CHOSEN, U))
    values = g.add("rows", (1, CHOSEN, U), g.view(scores, (1, COMPRESSED, U)), best, rows=0)
    order = g.add("argsort", (CHOSEN, U), g.view(values, (CHOSEN, U)))
    sorted_ = g.add("rows", (1, CHOSEN, U), floats, order, rows=0)
    sorted_ = g.add("cont", (CHOSEN, U), g.view(sorted_, (CHOSEN, U)))
    best = g.add("cast", (CHOSEN, U), sorted_)
    cells = b.further_input("pool_idxs", (pool, COMPRESSED))
    members = g.add("rows", (pool, CHOSEN, U), cells, g.view(best, (".all", CHOSEN, U)), rows=0)
    tail = b.further_input("tail_idxs", (pool - 1, U))
    slots = _slots(pool)
    chosen = g.add("joined", (".slots", U), g.view(members, members.dims), tail, size=slots)
    return _opened(b, chosen, slots)


def _opened(b: Builder, chosen: Node, slots: Form) -> Node:
    """Write zeros into a closed mask, a slot without a token into a row of its own behind it, and add the plain one."""
    g, size = b.graph, 2 if b.flash else 4
    seed = g.add("cast", (1,), g.view(chosen, (1,)))
    zero = g.add("fill", (1,), seed, inplace=True)
    zeros = g.add("zeros", (".slots", U), zero, size=slots)
    index = g.add("cast", (".slots", U), chosen, size=slots)
    behind = g.add("arange", (".behind",), size=plus(form((pool_of(b.spec), CHOSEN)), form((pool_of(b.spec) - 1,))))
    index = g.add("apart", (".slots", U), index, behind, size=slots, inplace=True)
    live = b.further_input("gather_mask", (".slots", U), slots)
    live = g.add("exp", (".slots", U), g.view(live, (".slots", U), size=slots), size=slots, inplace=True)
    index = g.add("live", (".slots", U), index, live, size=slots, inplace=True)
    index = g.add("behind", (".slots", U), index, behind, size=slots, inplace=True)
    index = g.add("cast", (".slots", U), index, size=slots)
    closed = g.add("cast", (1,), seed, element_bytes=2) if b.flash else seed
    closed = g.add("fill", (1,), closed, inplace=True, element_bytes=size)
    long = plus(form((CELLS, U), size), _slots(pool_of(b.spec), size))
    closed = g.add("closed", (".long", U), closed, size=long, element_bytes=size)
    rows = g.view(closed, (".rows",))
    written = Node("set_rows", (".rows",), ZERO, [g.view(zeros, (".zeros",)), index, rows], view_of=closed)
    g.nodes.append(written)
    base = g.view(b.mask(CELLS), (CELLS, U))
    return g.add("sparse_mask", (CELLS, U), g.view(written, (CELLS, U)), base, inplace=True, element_bytes=size)
