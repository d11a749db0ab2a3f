"""Attention to chosen blocks of positions, as MiniMax-M3 has it.

Sources: src/models/minimax-m3.cpp and src/llama-kv-cache-msa.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator import cache
from willitrun_estimator.compute.form import CELLS, ZERO, Dim, Form, U, form, plus
from willitrun_estimator.compute.kernels import gathers_rows, has_flash_kernel

if TYPE_CHECKING:
    from willitrun_catalog.model import Attention
    from willitrun_estimator.compute.builder import Builder, Homes
    from willitrun_estimator.compute.graph import Node

QUERY = "indexer.q_proj.weight"
"""What a block has that chooses blocks of positions."""
BLOCK = 128
"""Positions that are chosen together (`attention.indexer.block_size` of MiniMax-M3)."""
POSITIONS = 256
"""Positions that a plan counts with: those of an empty cache, padded (`llama_kv_cache_msa_context::get_n_pos`)."""
BLOCKS = POSITIONS // BLOCK
"""Blocks of these; as many are chosen, because the model would choose more."""


def chooses_blocks(b: Builder, homes: Homes) -> bool:
    """Whether attention is to chosen blocks: with flash attention, where every slot has its own cells."""
    return QUERY in homes.parts and b.flash and b.streams == b.slots


def block_sparse_attention(b: Builder, mixer: Attention, normed: Node, homes: Homes) -> Node:
    """Add attention slot by slot, each with a mask made of the scores of blocks.

    Gives (heads x value_dim, tokens), without the output projection.
    """
    g = b.graph
    groups, width = mixer.kv_heads, mixer.indexer_dim or 0
    keys, values = groups * mixer.key_dim, groups * mixer.value_dim
    type_k, type_v = b.settings.kv_type_k, b.settings.kv_type_v
    shape: tuple[Dim, ...] = (mixer.key_dim, mixer.heads, U)
    key_shape: tuple[Dim, ...] = (mixer.key_dim, groups, U)
    value_shape: tuple[Dim, ...] = (mixer.value_dim, groups, U)
    scored: tuple[Dim, ...] = (POSITIONS, groups, U)
    ranked: tuple[Dim, ...] = (BLOCKS, groups, U)
    spread: tuple[Dim, ...] = (CELLS, U, groups)
    blocks: tuple[Dim, ...] = (BLOCKS, 1, U)
    out_shape: tuple[Dim, ...] = (mixer.value_dim * mixer.heads, U)

    def share(dims: tuple[Dim, ...], element_bytes: int = 4) -> Form:
        """Bytes of one slot's part."""
        return tuple(-(-part // b.slots) for part in form(dims, element_bytes))

    def headed(weight: str, norm: str, dims: tuple[Dim, ...], row: int) -> Node:
        return b.rope(b.norm(g.view(b.matmul(weight, homes, row, normed), dims), norm, homes), homes)

    index_cache = g.cache("cache_i", homes.cache)
    index_key = headed("indexer.k_proj", "indexer.k_norm", (width, 1, U), width)
    g.store("set_i", index_cache, g.view(index_key, (width, U)), b.key_index("indexer"))
    q = headed("attn_q", "attn_q_norm", shape, mixer.heads * mixer.key_dim)
    matrix = mixer.key_dim & -mixer.key_dim
    rotate_k = cache.is_quantized(type_k) and mixer.key_dim % 64 == 0
    rotate_v = cache.is_quantized(type_v) and mixer.value_dim % 64 == 0
    if rotate_k:
        q = b.rotated(q, shape, "k" + CELLS, matrix)
    k = headed("attn_k", "attn_k_norm", key_shape, keys)
    if rotate_k:
        k = b.rotated(k, key_shape, "k" + CELLS, matrix)
    v = g.view(b.matmul("attn_v", homes, values, normed), value_shape)
    if rotate_v:
        v = b.rotated(v, value_shape, "v" + CELLS, 64)
    cache_k, cache_v = g.cache("cache_k", homes.cache), g.cache("cache_v", homes.cache)
    g.store("set_k", cache_k, g.view(k, (keys, U)), b.key_index(CELLS))
    g.store("set_v", cache_v, g.view(v, (values, U)), b.value_index(CELLS, values))

    scratch = ZERO
    if b.copies_cache and type_k != "f16":
        scratch = plus(scratch, form((CELLS, keys), 2))
    if b.copies_cache and type_v != "f16":
        scratch = plus(scratch, form((CELLS, values), 2))
    supported = has_flash_kernel(
        b.backend, mixer.key_dim, mixer.value_dim, mixer.heads // groups, type_k, type_v
    )
    bias = b.further_input("block_bias", (BLOCKS, U))
    visible = b.further_input("position_mask", (POSITIONS, U))
    places = b.further_input("position_cells", (POSITIONS, b.slots))
    numbers = b.further_input("cell_blocks", (CELLS, b.slots))

    def cached(store: Node, name: str, kv_type: str, row: int, head: int) -> Node:
        gap = cache.padding_bytes(kv_type, head)
        size = form((CELLS, cache.kv_row_bytes(kv_type, row)), 1)
        return g.view(store, (name,), size=size, contiguous=False, gap_bytes=gap)

    index_query: Node | None = None
    joined: Node | None = None
    for slot in range(b.slots):
        asked = g.view(q, (".asked", *shape), size=share(shape), contiguous=False)
        key_view = cached(cache_k, ".k", type_k, keys, mixer.key_dim)
        value_view = cached(cache_v, ".v", type_v, values, mixer.value_dim)
        found = g.view(places, (POSITIONS,))
        gathered = g.add(
            "index_keys",
            (width, POSITIONS),
            cached(index_cache, ".i", type_k, width, width),
            found,
            rows=0,
            gpu_supported=gathers_rows(type_k),
        )
        if index_query is None:
            index_query = headed("indexer.q_proj", "indexer.q_norm", (width, groups, U), groups * width)
        wanted = g.view(index_query, (width, groups, U), size=share((width, groups, U)))
        scores = g.add("block_scores", scored, gathered, wanted, size=share(scored))
        seen = g.view(visible, (POSITIONS, 1, U), size=share((POSITIONS, U)))
        scores = g.overwrite("masked_scores", g.view(scores, scored, size=share(scored)), seen)
        offset = g.view(bias, blocks, size=share(blocks))
        best = g.add("pooled", ranked, scores, size=share(ranked))
        best = g.add("biased", ranked, best, offset, inplace=True, size=share(ranked))
        best = g.add("top_k", ranked, best, size=share(ranked))
        zero = g.add("cast", ranked, best, size=share(ranked))
        zero = g.add("scaled", ranked, zero, inplace=True, size=share(ranked))
        low = g.add("scaled", blocks, offset, inplace=True, size=share(blocks))
        low = g.add("cast", blocks, low, element_bytes=2, size=share(blocks, 2))
        low = g.add("repeat", ranked, low, element_bytes=2, size=share(ranked, 2))
        rows = g.view(low, (".rows",), size=share(ranked, 2))
        low = g.overwrite("set_rows", rows, before=(g.view(zero, (".zero",)), g.view(best, (".best",))))
        for layout in ("cont", "transposed"):
            low = g.view(low, (".turned",), size=share(ranked, 2), contiguous=False)
            low = g.add(layout, (".turned", layout), low, element_bytes=2, size=share(ranked, 2))
        wide = g.add("cell_mask", (".wide",), low, g.view(numbers, (CELLS,)), size=share(spread), rows=0)
        mask = g.view(wide, (".turned",), size=share(spread), contiguous=False)
        mask = g.add("transposed", spread, mask, size=share(spread))
        if b.plain_mask is None:
            b.plain_mask = g.add("plain_mask", (CELLS, U), b.mask(CELLS))
        causal = g.view(b.plain_mask, (CELLS, U), size=share((CELLS, U)))
        mask = g.overwrite("masked", g.view(mask, spread, size=share(spread)), causal)
        mask = g.add("half_mask", spread, g.view(mask, spread, size=share(spread)), element_bytes=2, size=share(spread, 2))
        mixed = g.add(
            "flash",
            (".mixed", *out_shape),
            *(asked, key_view, value_view, mask),
            size=share(out_shape),
            gpu_extra=scratch,
            picks_device=False,
            gpu_supported=supported,
        )
        turned = g.view(mixed, (".mixed",), size=share(out_shape), contiguous=False)
        part = g.view(g.add("cont", (".part",), turned, size=share(out_shape)), out_shape, size=share(out_shape))
        if joined is None:
            joined = part
        else:
            size = tuple((slot + 1) * amount for amount in share(out_shape))
            joined = g.add("joined", out_shape, joined, part, size=size)
    mixed = joined if joined is not None else q
    return b.rotated(mixed, out_shape, "v" + CELLS, 64) if rotate_v else mixed
