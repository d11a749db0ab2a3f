"""What changed in llama.cpp's buffers from build to build, and from backend to backend."""

from __future__ import annotations

from msgspec import Struct


class Build(Struct, frozen=True, kw_only=True):
    """The rules of one build. The default is a build from June 2026 on."""

    half_mask: bool = True
    """The mask is an f16 input; before, an f32 input that the graph casts (pull request 23764, 29 May 2026)."""
    capped_rows: bool = True
    """llama-server keeps logits of one row a slot; before, of the whole micro-batch (23861, 1 June 2026)."""
    reserved_scratch: bool = True
    """CUDA's f16 copies of a quantized cache are part of the buffer; before, taken while running (23907, 3 June)."""
    metal_copies: bool = True
    """Metal's flash attention has room for the whole cache in f16 (27390, August 2026)."""
    spare_embeddings: bool = True
    """The host reserves an embedding input beside the looked-up rows (builds after November 2025)."""


CURRENT = Build()
HALF_MASK_BUILD = 9442
CAPPED_ROWS_BUILD = 9479
RESERVED_SCRATCH_BUILD = 9495
METAL_COPIES_BUILD = 9222
"""The last build whose log on Metal is known to be without."""
SPARE_EMBEDDINGS_BUILD = 7146
"""Last build numbers of the ranges in which a change landed: a build inside one counts as older, which needs more."""


def build_of(number: int | None) -> Build:
    """Give the rules of a build by its number (`b9849` is 9849); an unknown one is current."""
    if number is None:
        return CURRENT
    return Build(
        half_mask=number >= HALF_MASK_BUILD,
        capped_rows=number >= CAPPED_ROWS_BUILD,
        reserved_scratch=number >= RESERVED_SCRATCH_BUILD,
        metal_copies=number > METAL_COPIES_BUILD,
        spare_embeddings=number > SPARE_EMBEDDINGS_BUILD,
    )
