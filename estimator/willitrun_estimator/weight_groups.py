"""A blueprint prepared for summing: parts of a block split by whether a mix looks at their position."""

from __future__ import annotations

from collections import Counter, OrderedDict

from msgspec import Struct
from willitrun_catalog.mixes import NOWHERE, Category, Position, category, kept_type, position, quantizable
from willitrun_catalog.model import Role

from willitrun_estimator.tensors import Blueprint, Part

POSITIONAL: frozenset[Category] = frozenset({"value", "down", "gate", "up"})

FIRST_BLOCK_PREFIXES = ("rope_", "per_layer_model_proj", "per_layer_proj_norm")
"""Tensors without a block number that llama.cpp places with block 0 (LLM_TENSOR_LAYER_REPEATING)."""
HOST_NAMES = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
"""Lookup tables that never leave host memory (LLM_TENSOR_LAYER_INPUT)."""


class Piece(Struct, frozen=True):
    """One tensor of a block, reduced to what sums need."""

    category: Category
    row_elements: int
    rows: int
    """All rows, experts included."""
    matrices: int
    role: Role
    fixed_type: str | None
    """Set where no mix decides: fixed by a file, or not quantizable and not 16-bit."""
    kept: bool
    """Keeps the source's 16-bit type under every quantizing mix."""
    name: str
    elements: int


class Group(Struct, frozen=True):
    """Blocks that get the same types under every mix."""

    pieces: tuple[tuple[Piece, Position], ...]
    elements: int
    expert_elements: int


class Grouped(Struct, frozen=True, kw_only=True):
    """The whole model: tensors outside the blocks, groups of equal blocks, and the group of every block."""

    outside: tuple[Piece, ...]
    groups: tuple[Group, ...]
    order: tuple[int, ...]


def piece(part: Part, architecture: str) -> Piece:
    """Reduce a tensor to what sums need."""
    dimensions = len(part.shape)
    rows = 1
    for size in part.shape[1:]:
        rows *= size
    free = part.type is None and quantizable(part.name, dimensions, architecture)
    kept = None if free or part.type is not None else kept_type(part.name, dimensions, "source")
    return Piece(
        category(part.name),
        part.shape[0],
        rows,
        part.shape[2] if dimensions > 2 else 1,  # noqa: PLR2004
        part.role,
        part.type if part.type is not None else (kept if kept != "source" else None),
        kept == "source",
        part.name,
        part.shape[0] * rows,
    )


_RECENT: OrderedDict[int, tuple[Blueprint, Grouped]] = OrderedDict()
_RECENT_LIMIT = 512


def grouped(plan: Blueprint) -> Grouped:
    """Group a blueprint's blocks; the latest results are kept."""
    held = _RECENT.get(id(plan))
    if held is not None and held[0] is plan:
        return held[1]
    made = _group(plan)
    _RECENT[id(plan)] = (plan, made)
    while len(_RECENT) > _RECENT_LIMIT:
        _RECENT.popitem(last=False)
    return made


def _group(plan: Blueprint) -> Grouped:
    facts = plan.facts
    kinds = [
        tuple(piece(part, facts.architecture) for part in sorted(kind, key=lambda part: part.name))
        for kind in plan.kinds
    ]
    known: dict[tuple[int, tuple[Position, ...]], int] = {}
    groups: list[Group] = []
    order: list[int] = []
    counts: Counter[Category] = Counter()
    for number, kind in enumerate(plan.order):
        places: list[Position] = []
        for item in kinds[kind]:
            if item.category not in POSITIONAL or item.fixed_type is not None or item.kept:
                places.append(NOWHERE)
                continue
            counted = counts[item.category]
            counts[item.category] += 1
            if item.category == "value":
                places.append(position(counted, facts.value_tensors, counted))
            else:
                places.append(position(number if facts.experts > 1 else counted, facts.blocks, counted))
        key = (kind, tuple(places))
        group = known.get(key)
        if group is None:
            group = known[key] = len(groups)
            pieces = kinds[kind]
            groups.append(
                Group(
                    tuple(zip(pieces, places, strict=True)),
                    sum(item.elements for item in pieces),
                    sum(item.elements for item in pieces if item.role == "experts"),
                ),
            )
        order.append(group)
    outside = tuple(piece(part, facts.architecture) for part in plan.outside)
    return Grouped(outside=outside, groups=tuple(groups), order=tuple(order))
