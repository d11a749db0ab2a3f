"""Attention over a window of plain rows and over compressed rows of all that lies before it.

Source: src/models/deepseek4.cpp of llama.cpp, whose names for the two kinds of compressed attention are CSA (few
tokens a row, the best rows chosen by an indexer) and HCA (many tokens a row). Inputs follow `llm_graph_input_dsv4`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from willitrun_estimator import cache
from willitrun_estimator.compute import indexer
from willitrun_estimator.compute.form import (
    COMPRESSED,
    GROUPS,
    HEAVY,
    HEAVY_GROUPS,
    HEAVY_LASTING,
    LASTING,
    WINDOW,
    ZERO,
    Dim,
    Form,
    U,
    form,
    plus,
)
from willitrun_estimator.compute.kernels import has_flash_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Attention
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes


class Compressor(NamedTuple):
    """What makes one row out of several tokens."""

    name: str
    """Of its cache and inputs."""
    prefix: str
    """Of its tensors."""
    width: int
    """Of a row."""
    ratio: int
    cells: str
    groups: str
    lasting: str

    @property
    def parts(self) -> int:
        """Groups of tokens that go into a row: with the small ratio a row overlaps the one before it."""
        return 2 if self.ratio == cache.SPARSE_RATIO else 1

    @property
    def held(self) -> int:
        """Rows of its state per sequence."""
        return self.parts * self.ratio


def compressed_attention(b: Builder, mixer: Attention, normed: Node, homes: Homes) -> Node:
    """Add a block's attention, its output projections included."""
    g, width, heads = b.graph, mixer.key_dim, mixer.heads
    sizes = dict(b.spec.sizes)
    row: Compressor | None = None
    if mixer.indexer_dim:
        row = Compressor("csa", "attn_compressor", width, cache.SPARSE_RATIO, COMPRESSED, GROUPS, LASTING)
        scored = row._replace(name="lid", prefix="indexer_compressor", width=mixer.indexer_dim)
        compress(b, row, normed, homes)
        compress(b, scored, normed, homes)
    elif mixer.window is None:
        row = Compressor("hca", "attn_compressor", width, cache.HEAVY_RATIO, HEAVY, HEAVY_GROUPS, HEAVY_LASTING)
        compress(b, row, normed, homes)
    quantized = cache.is_quantized(b.settings.kv_type_k)
    if quantized:
        b.rotation("raw", width)
    low = b.norm(b.matmul("attn_q_a", homes, sizes.get("q_rank", 0), normed), "attn_q_a_norm", homes)
    shape: tuple[Dim, ...] = (width, heads, U)
    q = g.view(b.matmul("attn_q_b", homes, heads * width, low), shape)
    q = b.rope(g.add("norm", shape, q, inplace=True), homes)
    q = b.rotated(q, shape, "raw", width) if quantized else q
    kv = b.norm(b.matmul("attn_kv", homes, width, normed), "attn_kv_a_norm", homes)
    kv = b.rope(g.view(kv, (width, 1, U)), homes)
    kv = b.rotated(kv, (width, 1, U), "raw", width) if quantized else kv
    cache_k = g.cache("cache_k", homes.cache)
    g.store("set_k", cache_k, g.view(kv, (width, U)), b.key_index(WINDOW))
    keys = cache_view(b, cache_k, width, WINDOW)
    q = g.view(g.view(q, shape), (width, U, heads), contiguous=False)
    lengths: tuple[str, ...] = (WINDOW,)
    if row is not None:
        lengths = (WINDOW, row.cells)
        further = cache_view(b, g.cache("cache_" + row.name, homes.cache), width, row.cells)
        element = cache.kv_row_bytes(b.settings.kv_type_k, width)
        size = plus(*(form((length, element * b.streams), 1) for length in lengths))
        keys = g.add("k_all", (".k_all",), keys, further, size=size, picks_device=False)

    def mask() -> Node:
        near = b.mask(WINDOW)
        if row is None:
            return near
        element_bytes = 2 if b.flash else 4

        def plain() -> Node:
            return b.further_input("mask_" + row.name, (row.cells, U), element_bytes=element_bytes)

        width = mixer.indexer_dim
        base = indexer.chosen_mask(b, width, (low, normed), plain, homes) if width else plain()
        size = plus(*(form((length, U), element_bytes) for length in lengths))
        return g.add("mask_all", (".mask_all", U), near, base, size=size, element_bytes=element_bytes)

    out = _attend(b, mixer, homes, (q, keys), mask, lengths)
    if quantized:
        out = b.rotated(out, (heads * width, U), "raw", width)
    out = b.rope(g.view(out, shape), homes)
    groups, rank = sizes.get("o_groups", 1), sizes.get("o_rank", 0)
    parts = g.view(g.view(out, (heads * width // groups, groups, U)), (".p", U, groups), contiguous=False)
    low = g.add("wo_a", (rank, U, groups), b.weight("attn_output_a.weight", homes), parts, rows=U)
    low = g.add("cont", (rank * groups, U), g.view(low, (rank, groups, U), contiguous=False))
    return b.matmul("attn_output_b", homes, b.spec.hidden_size, low)


def cache_view(b: Builder, store: Node, width: int, cells: str) -> Node:
    """Look at all rows of a K cache."""
    size = form((cells, cache.kv_row_bytes(b.settings.kv_type_k, width) * b.streams), 1)
    gap = cache.padding_bytes(b.settings.kv_type_k, width)
    return b.graph.view(store, (".k",), size=size, gap_bytes=gap)


def _attend(
    b: Builder,
    mixer: Attention,
    homes: Homes,
    reads: tuple[Node, Node],
    mask: Callable[[], Node],
    lengths: tuple[str, ...],
) -> Node:
    """Attend to the rows of all caches side by side (`build_attn_mha`, V is K); `mask` adds the mask."""
    g, width, heads = b.graph, mixer.key_dim, mixer.heads
    q, keys = reads
    sinks = b.weight("attn_sinks.weight", homes)
    turned, values = (
        g.view(keys, (".k", ".p"), size=keys.size, contiguous=False, gap_bytes=keys.gap_bytes) for _ in range(2)
    )
    if b.flash:
        copied = b.copies_cache and b.settings.kv_type_k != "f16"
        scratch = plus(*(form((length, width * b.streams), 2) for length in lengths)) if copied else ZERO
        result = g.add(
            "flash",
            (width, heads, U),
            *(q, turned, values, mask(), sinks),
            gpu_extra=scratch,
            picks_device=False,
            gpu_supported=has_flash_kernel(b.backend, width, width, heads, b.settings.kv_type_k, b.settings.kv_type_k),
        )
        return g.view(result, (heads * width, U))

    def over(*dims: Dim, element_bytes: int = 4) -> Form:
        return plus(*(form((length, *dims), element_bytes) for length in lengths))

    values = g.add("v_cont", (".v",), values, size=over(width * b.streams, element_bytes=2), rows=1)
    scores = g.add("kq", (".kq", U, heads), turned, q, size=over(U, heads))
    soft = g.add("soft_max", (".kq", U, heads), scores, mask(), sinks, size=over(U, heads), inplace=True, rows=U)
    mixed = g.add("kqv", (width, U, heads), values, soft)
    return g.add("cont", (heads * width, U), g.view(mixed, (width, heads, U), contiguous=False))


def compress(b: Builder, row: Compressor, normed: Node, homes: Homes) -> None:
    """Store the rows that this batch completes, and keep the tokens of the one that it does not."""
    g, wide = b.graph, row.parts * row.width
    rotated = row.name == "lid" or cache.is_quantized(b.settings.kv_type_k)
    if rotated:
        b.rotation(row.name, row.width)
    read: tuple[Dim, ...] = (row.parts * row.ratio, row.width, row.groups)

    def rows(part: str, fresh: Node) -> tuple[Node, Node]:
        store = g.cache(f"state_{row.name}_{part}", homes.cache)
        old = g.view(store, (wide, row.held * b.streams))
        known = form((wide, row.held * b.streams))
        joined = g.add("joined", (".joined", wide), old, fresh, size=plus(known, form((wide, U))))
        if row.parts > 1:
            joined = _with_empty_row(b, joined, wide)
        index = b.further_input(f"{row.name}_read", (row.parts * row.ratio, row.groups))
        found = g.add("rows", (wide, row.parts * row.ratio, row.groups), joined, index, rows=0)
        if row.parts > 1:
            # The first half of a row belongs to the group before, the second to its own.
            halves = [
                g.add("cont", (row.width, row.ratio, row.groups), g.view(found, (".half",), contiguous=False))
                for _ in range(row.parts)
            ]
            found = g.add("halves", (row.width, row.parts * row.ratio, row.groups), *(map(_whole, halves)))
        return store, g.add("cont", read, g.view(found, read, contiguous=False))

    def _whole(node: Node) -> Node:
        return g.view(node, node.dims)

    kept = b.matmul(row.prefix + "_kv", homes, wide, normed)
    value_store, values = rows("kv", kept)
    score = b.matmul(row.prefix + "_gate", homes, wide, normed)
    places = b.weight(row.prefix + "_ape.weight", homes)
    place = g.add("ape", (wide, U), places, b.token_input(row.name + "_pos"), rows=0)
    score = g.add("score", (wide, U), score, place, inplace=True)
    score_store, scores = rows("score", score)
    scores = g.add("soft_max", read, scores, inplace=True)
    mixed = g.add("weighted", read, values, scores, inplace=True)
    summed = g.add("sum_rows", (1, row.width, row.groups), mixed)
    done: tuple[Dim, ...] = (row.width, 1, row.groups)
    one = g.add("cont", done, g.view(summed, done, contiguous=False))
    one = b.norm(one, row.prefix + "_norm", homes)
    positions = b.further_input(row.name + "_write_pos", (row.groups,))
    one = g.add("rope", done, one, positions, inplace=True, picks_device=False)
    if rotated:
        one = b.rotated(one, done, row.name, row.width)
    where = b.further_input(row.name + "_write", (row.groups,), element_bytes=8)
    g.store("set_k", g.cache("cache_" + row.name, homes.cache), g.view(one, (row.width, row.groups)), where)
    sources = b.further_input(row.name + "_persist_src", (row.lasting,))
    targets = b.further_input(row.name + "_persist_dst", (row.lasting,))
    for store, fresh in ((value_store, kept), (score_store, score)):
        last = g.add("last_rows", (wide, row.lasting), fresh, sources, rows=0)
        g.store("set_state", store, last, targets)


def _with_empty_row(b: Builder, joined: Node, wide: int) -> Node:
    """Put a row behind that stands for the tokens before the first."""
    g = b.graph
    empty = g.add("empty", (wide,), g.view(joined, (wide,)), inplace=True, rows=1)
    return g.add(
        "joined", (".joined", wide), joined, g.view(empty, (wide, 1)), size=plus(joined.size, form((wide,))), rows=1
    )
