"""A tensor list with equal blocks held once."""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.grouping import grouping
from willitrun_catalog.mixes import MixFacts
from willitrun_catalog.model import Layer, ModelSpec, Moe, Tensor
from willitrun_catalog.tensor_classes import category
from willitrun_estimator.latest import Latest
from willitrun_estimator.tensors.family import block, next_token_block, outside
from willitrun_estimator.tensors.part import Part
from willitrun_estimator.tensors.registry import family_of


class Blueprint(Struct, frozen=True, kw_only=True):
    """The tensors of a model: those outside the blocks, the distinct blocks, and which block is which."""

    outside: tuple[Part, ...]
    kinds: tuple[tuple[Part, ...], ...]
    order: tuple[int, ...]
    """Index into `kinds` for every block, next-token blocks last."""
    loaded_blocks: int
    """Blocks before the next-token ones."""
    facts: MixFacts
    """What the mixes of llama-quantize look at."""


def blueprint(spec: ModelSpec) -> Blueprint:
    """Lay out a model's tensors; the latest results are kept. Raises `UnknownArchitecture`."""
    return _latest(spec)


def _lay_out(spec: ModelSpec) -> Blueprint:
    return _from_list(spec, spec.tensors) if spec.tensors is not None else _from_shape(spec)


_latest = Latest(_lay_out)


def _from_shape(spec: ModelSpec) -> Blueprint:
    family = family_of(spec.architecture)
    by_position = family.more is not None or family.whole_block is not None
    kinds: dict[tuple[Part, ...], int] = {}
    known: dict[Layer, int] = {}
    order: list[int] = []
    for index, layer in enumerate(spec.layers):
        kind = None if by_position else known.get(layer)
        if kind is None:
            kind = kinds.setdefault(tuple(block(family, spec, layer, index)), len(kinds))
            known[layer] = kind
        order.append(kind)
    for extra in range(spec.mtp_layers):
        parts = tuple(next_token_block(family, spec, spec.block_count + extra))
        order.append(kinds.setdefault(parts, len(kinds)))
    return _assembled(spec, tuple(outside(family, spec)), tuple(kinds), tuple(order))


def _from_list(spec: ModelSpec, listed: tuple[Tensor, ...]) -> Blueprint:
    beyond: list[Part] = []
    blocks: dict[int, list[Part]] = {}
    for tensor in listed:
        if tensor.layer is None:
            beyond.append(Part(tensor.name, tensor.shape, tensor.role, tensor.type))
        else:
            name = tensor.name.removeprefix(f"blk.{tensor.layer}.")
            blocks.setdefault(tensor.layer, []).append(Part(name, tensor.shape, tensor.role, tensor.type))
    kinds: dict[tuple[Part, ...], int] = {}
    order = tuple(
        kinds.setdefault(tuple(blocks.get(number, ())), len(kinds)) for number in range(max(blocks, default=-1) + 1)
    )
    return _assembled(spec, tuple(beyond), tuple(kinds), order)


def _assembled(
    spec: ModelSpec,
    beyond: tuple[Part, ...],
    kinds: tuple[tuple[Part, ...], ...],
    order: tuple[int, ...],
) -> Blueprint:
    values = [sum(category(part.name) == "value" for part in kind) for kind in kinds]
    facts = MixFacts(
        architecture=spec.architecture,
        experts=max((layer.ffn.experts for layer in spec.layers if isinstance(layer.ffn, Moe)), default=0),
        grouping=grouping(spec),
        blocks=len(order),
        value_tensors=sum(values[kind] for kind in order),
        tied=all(part.name != "output.weight" for part in beyond),
    )
    loaded = min(spec.block_count, len(order))
    return Blueprint(outside=beyond, kinds=kinds, order=order, loaded_blocks=loaded, facts=facts)
