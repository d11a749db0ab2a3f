"""Sparse attention: an indexer scores all rows of a cache, and the mask leaves the best alone.

Sources: src/models/deepseek32.cpp, glm-dsa.cpp and deepseek4.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator import cache
from willitrun_estimator.compute.form import CELLS, CHOSEN, COMPRESSED, ZERO, U, form
from willitrun_estimator.compute.kernels import has_indexer_kernel
from willitrun_estimator.compute.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Mla
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.operations import Homes

CHOICE = "chosen"
"""The name of the last choice among what blocks share."""
ROTATION = 128
"""Width of the Hadamard matrix that the indexer's keys and queries are turned by."""


def store_keys(b: Builder, mixer: Mla, normed: Node, homes: Homes) -> None:
    """Store this batch's keys for the indexer."""
    g, width = b.graph, mixer.indexer_dim or 0
    matrix = b.rotation("indexer", ROTATION)
    key = b.norm(b.matmul("indexer.attn_k", homes, width, normed), "indexer.k_norm", homes)
    key = b.rope(g.view(key, (width, 1, U)), homes)
    key = g.add("turned", (width, 1, U), matrix, key)
    g.store("set_k", g.cache("cache_i", homes.cache), g.view(key, (width, U)), b.key_index("indexer"))


def _view(b: Builder, name: str, width: int, cells: str, homes: Homes) -> Node:
    """Look at all keys of the indexer's cache."""
    kind = b.settings.kv_type_k
    size = form((cells, cache.kv_row_bytes(kind, width) * b.streams), 1)
    return b.graph.view(
        b.graph.cache(name, homes.cache), (".i",), size=size, gap_bytes=cache.padding_bytes(kind, width)
    )


def sparse_mask(b: Builder, mixer: Mla, low: Node, normed: Node, homes: Homes) -> Node:
    """Score all cells, keep the best, and mask the others; a block without an indexer keeps the last choice."""
    g, width, heads = b.graph, mixer.indexer_dim or 0, mixer.indexer_heads or 0
    fill = _opened(b, homes, 4)
    if heads or CHOICE not in b.shared:
        q = b.matmul("indexer.attn_q_b", homes, heads * width, low)
        q = b.rope(g.view(q, (width, heads, U)), homes)
        q = g.add("turned", (width, heads, U), b.rotation("indexer", ROTATION), q)
        keys = _view(b, "cache_i", width, CELLS, homes)
        weights = g.view(b.matmul("indexer.proj", homes, heads, normed), (heads, U))
        weights = g.add("scaled", (heads, U), weights)
        scores = scored(b, g.view(q, q.dims), keys, weights, b.mask("indexer"), b.settings.kv_type_k)
        b.shared[CHOICE] = g.add("cont", (CHOSEN, U), g.add("top_k", (CHOSEN, U), scores))
    return _masked(b, fill, b.shared[CHOICE], b.mask(CELLS), CELLS)


def chosen_mask(b: Builder, width: int, reads: tuple[Node, Node], plain: Callable[[], Node], homes: Homes) -> Node:
    """Do the same with compressed rows; `plain` adds their plain mask (`build_lid_top_k`, `build_top_k_mask`)."""
    g, low, normed = b.graph, *reads
    heads = dict(b.spec.sizes).get("indexer_heads", 0)
    fill = _opened(b, homes, 2 if b.flash else 4)
    turned = b.rotation("lid", width)
    q = b.matmul("indexer.attn_q_b", homes, heads * width, low)
    q = b.rope(g.view(q, (width, heads, U)), homes)
    q = g.view(g.add("turned", (width, heads, U), turned, g.view(q, q.dims)), q.dims)
    keys = _view(b, "cache_lid", width, COMPRESSED, homes)
    weights = b.matmul("indexer.proj", homes, heads, normed)
    weights = g.view(g.add("scaled", (heads, U), weights, inplace=True), (heads, U))
    allowed = b.further_input("mask_lid", (COMPRESSED, U), element_bytes=2)
    scores = scored(b, q, keys, weights, allowed, b.settings.kv_type_k)
    best = g.add("cont", (CHOSEN, U), g.add("top_k", (CHOSEN, U), scores))
    return _masked(b, fill, best, plain(), COMPRESSED)


def scored(b: Builder, q: Node, keys: Node, weights: Node, allowed: Node, kind: str) -> Node:
    """Score the keys, whose type is `kind`, for every token; the host does where a GPU has no kernel for it."""
    heads = q.dims[1]
    known = has_indexer_kernel(b.backend, heads if isinstance(heads, int) else 0, kind)
    return b.graph.add("indexer", allowed.dims, q, keys, weights, allowed, gpu_supported=known)


def _opened(b: Builder, homes: Homes, element_bytes: int) -> Node:
    """Add the values of the mask where a row is chosen."""
    device = homes.block if homes.block != b.host else 0
    ones = b.graph.leaf("ones", (1, CHOSEN, U), device, element_bytes=element_bytes)
    return b.graph.add("fill", (1, CHOSEN, U), ones, inplace=True, element_bytes=element_bytes)


def _masked(b: Builder, fill: Node, best: Node, base: Node, cells: str) -> Node:
    """Write the chosen rows into a closed mask, and add the plain one."""
    g, size = b.graph, base.element_bytes
    closed = g.add("fill", (cells, U), base, inplace=True, element_bytes=size)
    rows = g.view(closed, (".rows",))
    written = Node("set_rows", (".rows",), ZERO, [fill, g.view(best, (CHOSEN, U)), rows], view_of=closed)
    g.nodes.append(written)
    return g.add("sparse_mask", (cells, U), g.view(written, (cells, U)), base, inplace=True, element_bytes=size)
