"""Attention to chosen blocks of positions, as MiniMax-M3 has it.

Sources: src/models/minimax-m3.cpp and src/llama-kv-cache-msa.cpp of llama.cpp.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from willitrun_estimator.cache import is_quantized, kv_row_bytes, padding_bytes
from willitrun_estimator.compute.form import CELLS, CHOSEN, COMPRESSED, ZERO, Dim, Form, U, form, plus
from willitrun_estimator.compute.kernels import gathers_rows, has_flash_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from willitrun_catalog.model import Attention
    from willitrun_estimator.compute.builder import Builder
    from willitrun_estimator.compute.node import Node
    from willitrun_estimator.compute.operations import Homes

QUERY = "indexer.q_proj.weight"
"""What a block has that chooses blocks of positions."""
BLOCK = 128
"""Positions that are chosen together (`attention.indexer.block_size` of MiniMax-M3)."""
MOST_CHOSEN = 16
"""Blocks that are chosen (`attention.indexer.top_k`)."""
BLOCKS_PLANNED = 256 // BLOCK
"""Blocks that a plan counts with: positions of an empty cache, padded (`llama_kv_cache_msa_context::get_n_pos`).

They are those in use, so that the buffers grow while a conversation does.
"""


def chooses_blocks(b: Builder, homes: Homes) -> bool:
    """Whether attention is to chosen blocks: with flash attention, where every slot has its own cells."""
    return QUERY in homes.parts and b.flash and b.streams == b.slots


def share(b: Builder, dims: tuple[Dim, ...], element_bytes: int = 4) -> Form:
    """Bytes of one slot's part of a tensor."""
    return tuple(-(-part // b.slots) for part in form(dims, element_bytes))


def cached(store: Node, b: Builder, name: str, kv_type: str, row: int, head: int) -> Node:
    """Look at one slot's part of a cache with rows of heads."""
    size = form((CELLS, kv_row_bytes(kv_type, row)), 1)
    return b.graph.view(store, (name,), size=size, contiguous=False, gap_bytes=padding_bytes(kv_type, head))


def block_sparse_attention(b: Builder, mixer: Attention, normed: Node, homes: Homes) -> Callable[[], Node]:
    """Add attention slot by slot, each with a mask made of the scores of blocks.

    What is returned gives (heads x value_dim, tokens), without the output projection.
    """
    g = b.graph
    groups, width = mixer.kv_heads, mixer.indexer_dim or 0
    keys, values = groups * mixer.key_dim, groups * mixer.value_dim
    type_k, type_v = b.settings.kv_type_k, b.settings.kv_type_v
    shape: tuple[Dim, ...] = (mixer.key_dim, mixer.heads, U)
    out_shape: tuple[Dim, ...] = (mixer.value_dim * mixer.heads, U)
    matrix = mixer.key_dim & -mixer.key_dim
    rotate_k = is_quantized(type_k) and mixer.key_dim % 64 == 0
    rotate_v = is_quantized(type_v) and mixer.value_dim % 64 == 0

    def headed(weight: str, norm: str, heads: int, head: int) -> Node:
        split = g.view(b.matmul(weight, homes, heads * head, normed), (head, heads, U))
        return b.rope(b.norm(split, norm, homes), homes)

    def turned(source: Node, size: int, which: str) -> Node:
        return b.rotated(source, source.dims, which + CELLS, size)

    index_cache = g.cache("cache_i", homes.cache)
    key = headed("indexer.k_proj", "indexer.k_norm", 1, width)
    g.store("set_i", index_cache, g.view(key, (width, U)), b.key_index("indexer"))
    q = headed("attn_q", "attn_q_norm", mixer.heads, mixer.key_dim)
    q = turned(q, matrix, "k") if rotate_k else q
    k = headed("attn_k", "attn_k_norm", groups, mixer.key_dim)
    k = turned(k, matrix, "k") if rotate_k else k
    v = g.view(b.matmul("attn_v", homes, values, normed), (mixer.value_dim, groups, U))
    v = turned(v, 64, "v") if rotate_v else v
    cache_k, cache_v = g.cache("cache_k", homes.cache), g.cache("cache_v", homes.cache)
    g.store("set_k", cache_k, g.view(k, (keys, U)), b.key_index(CELLS))
    g.store("set_v", cache_v, g.view(v, (values, U)), b.value_index(CELLS, values))
    scratch = ZERO
    for kv_type, row in ((type_k, keys), (type_v, values)) if b.copies_cache else ():
        scratch = plus(scratch, form((CELLS, row if kv_type != "f16" else 0), 2))
    supported = has_flash_kernel(b.backend, mixer.key_dim, mixer.value_dim, mixer.heads // groups, type_k, type_v)

    @cache
    def index_query() -> Node:
        return headed("indexer.q_proj", "indexer.q_norm", groups, width)

    joined: Node | None = None
    for slot in range(b.slots):
        asked = g.view(q, (".asked", *shape), size=share(b, shape), contiguous=False)
        held = (
            cached(cache_k, b, ".k", type_k, keys, mixer.key_dim),
            cached(cache_v, b, ".v", type_v, values, mixer.value_dim),
        )
        mask = block_mask(b, groups, width, cached(index_cache, b, ".i", type_k, width, width), index_query)
        mixed = g.add(
            "flash",
            (".mixed", *out_shape),
            *(asked, *held, mask),
            size=share(b, out_shape),
            gpu_extra=scratch,
            picks_device=False,
            gpu_supported=supported,
        )
        mixed = g.view(mixed, (".mixed",), size=share(b, out_shape), contiguous=False)
        mixed = g.add("cont", (".part",), mixed, size=share(b, out_shape))
        part = g.view(mixed, out_shape, size=share(b, out_shape))
        size = tuple((slot + 1) * amount for amount in share(b, out_shape))
        joined = part if joined is None else g.add("joined", out_shape, joined, part, size=size)
    attended = joined if joined is not None else q
    return lambda: turned(attended, 64, "v") if rotate_v else attended


def block_mask(b: Builder, groups: int, width: int, index_keys: Node, index_query: Callable[[], Node]) -> Node:
    """Score the blocks of one slot, keep the best of each group of heads and mask the cells of the others."""
    g = b.graph
    scored: tuple[Dim, ...] = (BLOCK, COMPRESSED, groups, U)
    ranked: tuple[Dim, ...] = (COMPRESSED, groups, U)
    picked: tuple[Dim, ...] = (CHOSEN, groups, U)
    blocks: tuple[Dim, ...] = (COMPRESSED, 1, U)
    spread: tuple[Dim, ...] = (CELLS, U, groups)
    bias = b.further_input("block_bias", (COMPRESSED, U))
    visible = b.further_input("position_mask", (BLOCK, COMPRESSED, U))
    places = b.further_input("position_cells", (BLOCK, COMPRESSED, b.slots))
    numbers = b.further_input("cell_blocks", (CELLS, b.slots))

    def part(of: tuple[Dim, ...], element_bytes: int = 4) -> Form:
        return share(b, of, element_bytes)

    found = g.view(places, (BLOCK, COMPRESSED))
    supported = gathers_rows(b.settings.kv_type_k)
    gathered = g.add("index_keys", (width, BLOCK, COMPRESSED), index_keys, found, rows=0, gpu_supported=supported)
    query = index_query()
    asked = g.view(query, query.dims, size=part(query.dims))
    scores = g.add("block_scores", scored, gathered, asked, size=part(scored))
    seen = g.view(visible, (BLOCK, COMPRESSED, 1, U), size=part((BLOCK, COMPRESSED, U)))
    scores = g.overwrite("masked_scores", g.view(scores, scored, size=part(scored)), seen)
    offset = g.view(bias, blocks, size=part(blocks))
    best = g.add("pooled", ranked, scores, size=part(ranked))
    best = g.add("biased", ranked, best, offset, inplace=True, size=part(ranked))
    best = g.add("top_k", picked, best, size=part(picked))
    zero = g.add("cast", picked, best, size=part(picked))
    zero = g.add("scaled", picked, zero, inplace=True, size=part(picked))
    low = g.add("scaled", blocks, offset, inplace=True, size=part(blocks))
    low = g.add("cast", blocks, low, element_bytes=2, size=part(blocks, 2))
    low = g.add("repeat", ranked, low, element_bytes=2, size=part(ranked, 2))
    rows = g.view(low, (".rows",), size=part(ranked, 2))
    low = g.overwrite("set_rows", rows, before=(g.view(zero, (".zero",)), g.view(best, (".best",))))
    for layout in ("cont", "transposed"):
        low = g.view(low, (".turned",), size=part(ranked, 2), contiguous=False)
        low = g.add(layout, (".turned", layout), low, element_bytes=2, size=part(ranked, 2))
    wide = g.add("cell_mask", (".wide",), low, g.view(numbers, (CELLS,)), size=part(spread), rows=0)
    mask = g.view(wide, (".turned",), size=part(spread), contiguous=False)
    mask = g.add("transposed", spread, mask, size=part(spread))
    # The f32 copy of the mask that the scores of all blocks are added to.
    plain = b.once("plain_mask", lambda: g.add("plain_mask", (CELLS, U), b.mask(CELLS)))
    causal = g.view(plain, (CELLS, U), size=part((CELLS, U)))
    mask = g.overwrite("masked", g.view(mask, spread, size=part(spread)), causal)
    mask = g.view(mask, spread, size=part(spread))
    return g.add("half_mask", spread, mask, element_bytes=2, size=part(spread, 2))
