"""Sparse attention: an indexer scores all rows of a cache, and the mask leaves the best alone.

Sources: src/models/deepseek32.cpp, glm-dsa.cpp and deepseek4.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator import cache
from willitrun_estimator.compute.form import CELLS, CHOSEN, COMPRESSED, ZERO, U, form
from willitrun_estimator.compute.graph import Node

if TYPE_CHECKING:
    from willitrun_catalog.model import Mla
    from willitrun_estimator.compute.builder import Builder, Homes


def chosen_mask(b: Builder, width: int, reads: tuple[Node, Node], base: Node, homes: Homes) -> Node:
    """Score the compressed rows, keep the best, and mask the others (`build_lid_top_k`, `build_top_k_mask`)."""
    g, low, normed = b.graph, *reads
    heads = dict(b.spec.sizes)["indexer_heads"]
    fill = opened(b, homes)
    turned = b.rotation("lid", width)
    q = b.matmul("indexer.attn_q_b", homes, heads * width, low)
    q = b.rope(g.view(q, (width, heads, U)), homes)
    q = g.view(g.add("turned", (width, heads, U), turned, g.view(q, q.dims)), q.dims)
    size = form((COMPRESSED, cache.kv_row_bytes(b.settings.kv_type_k, width) * b.streams), 1)
    gap = cache.padding_bytes(b.settings.kv_type_k, width)
    keys = g.view(g.cache("cache_lid", homes.cache), (".i",), size=size, gap_bytes=gap)
    weights = b.matmul("indexer.proj", homes, heads, normed)
    weights = g.add("scaled", (heads, U), weights, inplace=True)
    allowed = b.further_input("mask_lid", (COMPRESSED, U), element_bytes=2)
    scores = g.add("indexer", (COMPRESSED, U), q, keys, g.view(weights, (heads, U)), allowed)
    best = g.add("top_k", (CHOSEN, U), scores)
    best = g.add("cont", (CHOSEN, U), best)
    return masked(b, fill, best, base, COMPRESSED)


def opened(b: Builder, homes: Homes) -> Node:
    """Add the values of the mask where a row is chosen."""
    size = 2 if b.flash else 4
    ones = b.graph.leaf("ones", (1, CHOSEN, U), homes.block if homes.block != b.host else 0, element_bytes=size)
    return b.graph.add("fill", (1, CHOSEN, U), ones, inplace=True, element_bytes=size)


def masked(b: Builder, fill: Node, best: Node, base: Node, cells: str) -> Node:
    """Write the chosen rows into a closed mask, and add the plain one."""
    g, size = b.graph, base.element_bytes
    closed = g.add("fill", (cells, U), base, inplace=True, element_bytes=size)
    rows = g.view(closed, (".rows",))
    written = Node("set_rows", (".rows",), ZERO, [fill, g.view(best, (CHOSEN, U)), rows], view_of=closed)
    g.nodes.append(written)
    return g.add("sparse_mask", (cells, U), g.view(written, (cells, U)), base, inplace=True, element_bytes=size)
