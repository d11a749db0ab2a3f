"""Sizes that are known up to a few numbers: bytes as a sum of monomials in batch, cells and rows.

A graph is laid out once per architecture; its tensors' sizes stay symbolic until a micro-batch and a context are
asked for.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

U = "u"
"""Tokens of a micro-batch."""
CELLS = "F"
"""Cells of one stream of the full cache."""
WINDOW = "W"
"""Cells of one stream of the sliding-window cache."""
ROWS = "r"
"""Rows of logits that are kept."""
COMPRESSED = "C"
"""Cells of one stream of a cache with one row for a few tokens; pools of a pooled indexer over all streams."""
HEAVY = "H"
"""Cells of one stream of a cache with one row for many tokens."""
CHOSEN = "k"
"""Cells or pools that an indexer keeps for a token."""
GROUPS = "g"
"""Rows that a micro-batch adds to the compressed caches, or pools that are made anew."""
HEAVY_GROUPS = "h"
LASTING = "p"
"""Tokens of a micro-batch that a compressor holds on to."""
HEAVY_LASTING = "q"

TAG = "."
"""Starts a dimension that only says how a view's layout differs and has no length."""

Dim = int | str

MONOMIALS = (
    *("", CELLS, WINDOW, U, CELLS + U, U + WINDOW, ROWS, U + U),
    *(COMPRESSED, COMPRESSED + U, HEAVY, HEAVY + U, CHOSEN, CHOSEN + U, GROUPS, HEAVY_GROUPS, LASTING, HEAVY_LASTING),
)
_INDEX = {"".join(sorted(name)): index for index, name in enumerate(MONOMIALS)}
ZERO = (0,) * len(MONOMIALS)

Form = tuple[int, ...]
"""Bytes: one coefficient per monomial."""


class Sizes(NamedTuple):
    """The numbers that turn a form into bytes."""

    ubatch: int
    cells: int
    window_cells: int
    rows: int
    compressed: int = 0
    heavy: int = 0
    chosen: int = 0
    groups: int = 0
    heavy_groups: int = 0
    lasting: int = 0
    heavy_lasting: int = 0

    def values(self) -> tuple[int, ...]:
        """Each monomial's value."""
        u, full, window, rows, few, many, chosen, *rest = self
        plain = (1, full, window, u, full * u, window * u, rows, u * u)
        return (*plain, few, few * u, many, many * u, chosen, chosen * u, *rest)


@lru_cache(maxsize=1 << 16)
def form(dims: tuple[Dim, ...], element_bytes: int = 4) -> Form:
    """Bytes of a contiguous tensor with these dimensions."""
    names = "".join(sorted(dim for dim in dims if isinstance(dim, str) and dim[0] != TAG))
    coefficient = element_bytes * prod(dim for dim in dims if isinstance(dim, int))
    index = _INDEX[names]
    return tuple(coefficient if i == index else 0 for i in range(len(MONOMIALS)))


def plus(*forms: Form) -> Form:
    """Add forms."""
    return tuple(map(sum, zip(*forms, strict=True)))


def evaluate(coefficients: Form, values: tuple[int, ...]) -> int:
    """Bytes for the given values of the monomials."""
    return sum(c * v for c, v in zip(coefficients, values, strict=True) if c)
