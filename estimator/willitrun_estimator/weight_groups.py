"""A blueprint prepared for summing: parts of a block split by whether a mix looks at their position."""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.mixes import NOWHERE, Position, position
from willitrun_catalog.model import Role
from willitrun_catalog.tensor_classes import Category, category, kept_type, quantizable
from willitrun_estimator.latest import Latest
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
    slot: int = 0
    """Same for pieces that every mix treats alike at the same position."""


class Kind(Struct, frozen=True):
    """A distinct block: what no mix changes by position, and what it does."""

    pieces: tuple[Piece, ...]
    """Those no position changes, by name."""
    steady: tuple[Piece, ...]
    """The same with all small F32 tensors as one."""
    positional: tuple[Piece, ...]
    elements: int
    expert_elements: int


class Group(Struct, frozen=True):
    """Blocks that get the same types under every mix."""

    kind: int
    places: tuple[Position, ...]
    """One for every positional piece of the kind."""
    pieces: tuple[tuple[Piece, Position], ...]
    """All pieces with their places, by name."""


class Grouped(Struct, frozen=True, kw_only=True):
    """The whole model: tensors outside the blocks, distinct blocks, groups of equal blocks, and every block's group."""

    outside: tuple[Piece, ...]
    kinds: tuple[Kind, ...]
    groups: tuple[Group, ...]
    order: tuple[int, ...]
    counts: tuple[int, ...]
    """Blocks in each group."""


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
        _slot(category(part.name), part.shape[0], dimensions > 2, part.name if architecture == "glm5-next" else ""),  # noqa: PLR2004
    )


_SLOTS: dict[tuple[object, ...], int] = {}


def _slot(*key: object) -> int:
    return _SLOTS.setdefault(key, len(_SLOTS) + 1)


def grouped(plan: Blueprint) -> Grouped:
    """Group a blueprint's blocks; the latest results are kept."""
    return _latest(plan)


def _group(plan: Blueprint) -> Grouped:
    facts = plan.facts
    kinds = [_kind(kind, facts.architecture) for kind in plan.kinds]
    known: dict[tuple[int, tuple[Position, ...]], int] = {}
    order: list[int] = []
    counted = {"value": 0, "down": 0, "gate": 0, "up": 0}
    by_number = facts.experts > 1
    for number, kind in enumerate(plan.order):
        places: list[Position] = []
        for item in kinds[kind].positional:
            before = counted[item.category]
            counted[item.category] = before + 1
            if item.category == "value":
                places.append(position(before, facts.value_tensors, before))
            else:
                places.append(position(number if by_number else before, facts.blocks, before))
        order.append(known.setdefault((kind, tuple(places)), len(known)))
    counts = [0] * len(known)
    for group in order:
        counts[group] += 1
    return Grouped(
        outside=tuple(piece(part, facts.architecture) for part in plan.outside),
        kinds=tuple(kinds),
        groups=tuple(
            Group(
                kind,
                places,
                tuple(
                    sorted(
                        (
                            *((item, NOWHERE) for item in kinds[kind].pieces),
                            *zip(kinds[kind].positional, places, strict=True),
                        ),
                        key=lambda placed: placed[0].name,
                    ),
                ),
            )
            for kind, places in known
        ),
        order=tuple(order),
        counts=tuple(counts),
    )


_latest = Latest(_group)


def _kind(parts: tuple[Part, ...], architecture: str) -> Kind:
    # llama-quantize visits a block's tensors by name and counts each class as it goes.
    pieces = [piece(part, architecture) for part in sorted(parts, key=lambda part: part.name)]
    moving = [item.category in POSITIONAL and item.fixed_type is None and not item.kept for item in pieces]
    still = [item for item, moves in zip(pieces, moving, strict=True) if not moves]
    small = [item for item in still if item.fixed_type == "F32" and item.role != "experts"]
    steady = [item for item in still if item not in small]
    if small:
        elements = sum(item.elements for item in small)
        steady.append(
            Piece("other", elements, 1, 1, "norm", "F32", kept=False, name="small tensors", elements=elements)
        )
    return Kind(
        tuple(still),
        tuple(steady),
        tuple(item for item, moves in zip(pieces, moving, strict=True) if moves),
        sum(item.elements for item in pieces),
        sum(item.elements for item in pieces if item.role == "experts"),
    )
