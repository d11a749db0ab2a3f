"""The words in which a block's tensors are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from willitrun_catalog.model import Layer, ModelSpec, Role
from willitrun_catalog.roles import role_of


class Part(Struct, frozen=True):
    """One tensor of a block, without the block's number, or one outside the blocks."""

    name: str
    """`attn_q.weight` within a block, the whole name outside."""
    shape: tuple[int, ...]
    role: Role
    type: str | None = None
    """The type a file fixes; None where a mix chooses."""


Parts = Iterable[Part]
BlockBuilder = Callable[[ModelSpec, Layer, int], Parts]
OutsideBuilder = Callable[[ModelSpec], Parts]


def matrix(name: str, *shape: int, type: str | None = None) -> Part:  # noqa: A002
    """Give a weight matrix, row length first."""
    full = f"{name}.weight"
    return Part(full, shape, role_of(full, len(shape)), type)


def norm(name: str, *shape: int) -> Part:
    """Give the scale of a normalisation."""
    full = f"{name}.weight"
    return Part(full, shape, role_of(full, len(shape)))


def bias(name: str, *shape: int) -> Part:
    """Give the bias of the matrix or normalisation of that name."""
    full = f"{name}.bias"
    return Part(full, shape, role_of(full, len(shape)))


def bare(name: str, *shape: int) -> Part:
    """Give a tensor whose name has no suffix (`ssm_a`)."""
    return Part(name, shape, role_of(name, len(shape)))


def scale(name: str, width: int, *, biased: bool) -> Iterator[Part]:
    """Give a normalisation, with its bias where the architecture has one."""
    yield norm(name, width)
    if biased:
        yield bias(name, width)
