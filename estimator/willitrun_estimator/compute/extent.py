"""How long the tensors of a graph are for one context and micro-batch: what its symbolic sizes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_estimator import cache
from willitrun_estimator.compute import block_sparse
from willitrun_estimator.compute.form import Sizes

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.placement import Settings

BLOCK_CHOOSING = frozenset({"minimax-m3"})
"""Architectures that choose blocks among the positions in use."""
TOP_K = 2048
"""Cells that a sparse indexer keeps where a model does not say (`attention.indexer.top_k` of DeepSeek V3.2, GLM-5)."""
COMPRESSED_TOP_K = 512
"""The same of compressed caches (DeepSeek V4 Flash)."""
POOL = 16
"""Tokens of a pool of GLM 5.3's indexer (`attention.indexer.kpool`)."""
POOL_PADDING = 64
"""Pools come in multiples of this, the last one unused (`kpool_pad` in src/llama-memory-hybrid-idx.cpp)."""


def pool_of(spec: ModelSpec) -> int:
    """Give the tokens that a pooled indexer scores together."""
    return dict(spec.sizes).get("indexer_pool", POOL)


def top_k_of(spec: ModelSpec) -> int:
    """Give the cells that an indexer keeps of as many as there are."""
    default = COMPRESSED_TOP_K if spec.architecture in cache.COMPRESSED else TOP_K
    return dict(spec.sizes).get("indexer_top_k", default)


def sizes_of(spec: ModelSpec, settings: Settings, context_tokens: int, rows: int, *, filled: bool = False) -> Sizes:
    """Give the numbers of a prompt batch; `rows` of logits are kept where the batch has as many.

    Plans are made with an empty cache: `filled` gives the numbers of the last batch that fits, where they differ.
    """
    tokens, parts = cache.stream_cells(settings, context_tokens)
    cells, streams = cache.model_cells(spec, settings, context_tokens)
    ubatch = min(settings.ubatch, tokens * parts)
    window = cache.model_window(spec)
    held = cells if window is None else cache.span_cells(spec, cache.Span(window), settings, cells)
    kept = min(rows, ubatch)
    # `graph_reserve` gives every slot as many tokens.
    ubatch = cache.pad(ubatch, max(1, settings.parallel))
    plain = Sizes(ubatch, cells, held, kept)
    top = top_k_of(spec)
    if spec.architecture in BLOCK_CHOOSING:
        blocks = -(-cells // block_sparse.BLOCK) if filled else block_sparse.BLOCKS_PLANNED
        return plain._replace(compressed=blocks, chosen=min(blocks, block_sparse.MOST_CHOSEN))
    if spec.architecture in cache.COMPRESSED:
        few, many = (
            cache.span_cells(spec, cache.Span(ratio=ratio), settings, cells)
            for ratio in (cache.SPARSE_RATIO, cache.HEAVY_RATIO)
        )
        return plain._replace(
            compressed=few,
            heavy=many,
            chosen=min(few, top),
            groups=ubatch // cache.SPARSE_RATIO + streams,
            heavy_groups=ubatch // cache.HEAVY_RATIO + streams,
            lasting=min(ubatch, 2 * cache.SPARSE_RATIO * streams),
            heavy_lasting=min(ubatch, cache.HEAVY_RATIO * streams),
        )
    if spec.architecture in cache.POOLED_INDEXERS:
        pool = pool_of(spec)
        found = cells // pool * max(1, settings.parallel)
        pools = cache.pad(found + 1, POOL_PADDING)
        return plain._replace(compressed=pools, chosen=min(pools, top // pool), groups=max(1, found))
    return plain._replace(chosen=min(cells, top))
