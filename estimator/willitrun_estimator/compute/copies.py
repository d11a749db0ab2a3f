"""Bytes of single weights: what a GPU needs to hold one of them while it computes for the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.block_types import block_type, row_bytes
from willitrun_catalog.formats import FORMATS
from willitrun_catalog.mixes import NOWHERE, Position, chosen_type
from willitrun_estimator.cache import ROW_PADDING
from willitrun_estimator.compute.builder import HEAD
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.weight_groups import Piece, grouped

if TYPE_CHECKING:
    from willitrun_estimator.weights import WeightProfile


def copy_bytes(weights: WeightProfile) -> dict[str, int]:
    """Bytes of every weight, by group of blocks and name."""
    plan = blueprint(weights.spec)
    facts = plan.facts
    quant = weights.quant

    def size(item: Piece, place: Position) -> int:
        kind = item.fixed_type
        if kind is None:
            if quant in FORMATS or item.kept:
                kind = "BF16" if quant not in {"F16", "F32"} else quant
            else:
                kind = chosen_type(
                    quant,
                    item.category,
                    place,
                    facts,
                    name=item.name,
                    row_elements=item.row_elements,
                    matrices=item.matrices,
                )
        rest = item.row_elements % ROW_PADDING
        gap = row_bytes(kind, ROW_PADDING - rest) if rest and block_type(kind).block_elements > 1 else 0
        return row_bytes(kind, item.row_elements) * item.rows + gap

    model = grouped(plan)
    found: dict[str, int] = {}
    for number, group in enumerate(model.groups):
        for item, place in group.pieces:
            found[f"{number}/{item.name}"] = size(item, place)
    for item in model.outside:
        found[item.name] = size(item, NOWHERE)
    found[HEAD] = found.get("output.weight") or found.get("token_embd.weight", 0)
    return found
