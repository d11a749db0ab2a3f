"""Quantizations by name: llama.cpp's mixes, the formats of checkpoints, and which of them are offered by default.

Block types are in `block_types`, the rules of the mixes in `mixes`, the formats of checkpoints in `formats`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from willitrun_catalog.block_types import BLOCK_TYPES, BlockType, fitting_type, row_bytes, tensor_bytes
from willitrun_catalog.errors import UnknownNameError
from willitrun_catalog.formats import FORMATS, CheckpointFormat
from willitrun_catalog.grouping import grouping
from willitrun_catalog.mixes import BASE_TYPES, NOWHERE, MixFacts, Position, chosen_type
from willitrun_catalog.mixes import position as position_of
from willitrun_catalog.model import ModelSpec, Moe, Tensor
from willitrun_catalog.tensor_classes import category, kept_type, quantizable

__all__ = [
    "BASE_TYPES",
    "BLOCK_TYPES",
    "CPU_LADDER",
    "FORMATS",
    "LADDER",
    "BlockType",
    "CheckpointFormat",
    "UnknownQuant",
    "fitting_type",
    "label_note",
    "ladder",
    "plain_label",
    "quant_name",
    "row_bytes",
    "tensor_bytes",
    "tensor_types",
]

LADDER: tuple[str, ...] = (
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "IQ3_M",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
)
"""Offered by default, best first: what almost every publisher of GGUF files uploads, one every half bit or so.

IQ1 and the two smallest IQ2 are left out: their damage is severe (see `quality`) and few repositories carry them.
"""

CPU_LADDER: tuple[str, ...] = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q2_K")
"""Offered where the weights are read by a CPU: without the IQ types, whose lookup tables are slow there."""

_ALIASES = {
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
    "Q3_K": "Q3_K_M",
    "FP16": "F16",
    "FP32": "F32",
    "MXFP4": "MXFP4_MOE",
    "INT8": "W8A8",
    "INT4": "GPTQ-INT4",
    "GPTQ": "GPTQ-INT4",
    "AWQ-INT4": "AWQ",
    "BNB": "BNB-NF4",
    "BITSANDBYTES": "BNB-NF4",
}


class UnknownQuant(UnknownNameError):  # noqa: N818
    """A quantization name that nobody uses."""

    thing = "quantization"


@lru_cache(maxsize=256)
def quant_name(text: str) -> str:
    """Find a quantization by its name in any case and with any separators; raises `UnknownQuant`.

    A dynamic label (`UD-Q4_K_XL`) gives the plain mix nearest to it; `label_note` says so.
    """
    wanted = text.strip().upper().replace("-", "_").replace(" ", "_")
    for known in (*BASE_TYPES, *FORMATS):
        if wanted == known.upper().replace("-", "_"):
            return known
    alias = _ALIASES.get(wanted) or _ALIASES.get(wanted.replace("_", "-"))
    if alias is not None:
        return alias
    plain = plain_label(wanted)
    if plain is not None:
        return plain
    from difflib import get_close_matches  # noqa: PLC0415

    raise UnknownQuant(text, tuple(get_close_matches(wanted, [*BASE_TYPES, *FORMATS], n=3, cutoff=0.4)))


_DYNAMIC = re.compile(r"UD[-_ ](.+)|(Q\d_K_XL)", re.IGNORECASE)
"""Dynamic labels, of which `XL` is often written without `UD-`."""


def plain_label(text: str) -> str | None:
    """Give the plain mix nearest to a dynamic label (`UD-`, types chosen tensor by tensor), None for any other text.

    The base of the label is kept; `XL`, which raises some tensors, becomes the medium mix. So named by the publisher
    (https://docs.unsloth.ai/basics/unsloth-dynamic-2.0-ggufs), whose files are some percent larger or smaller.
    """
    found = _DYNAMIC.fullmatch(text.strip())
    if found is None or text.strip().upper() in BASE_TYPES:
        return None
    base = (found.group(1) or found.group(2)).upper().replace("-", "_").replace(" ", "_")
    stem = base.removesuffix("_XL")
    # Q8_K_XL: there is no mix of 8-bit k-blocks.
    options = (f"{stem}_M", stem, stem.removesuffix("_K") + "_0") if stem != base else (base,)
    return next((option for option in options if option in BASE_TYPES), None)


def label_note(text: str) -> str | None:
    """Say in a sentence what a dynamic label was taken for, None where the label is a quantization of its own."""
    plain = plain_label(text)
    if plain is None:
        return None
    return (
        f"{text.strip()} chooses types tensor by tensor; counted as {plain}, its file can differ by some percent: "
        "name the file itself for exact bytes."
    )


def ladder(spec: ModelSpec, *, cpu_only: bool = False) -> tuple[str, ...]:
    """List the quantizations to offer for a model, best first.

    A file has the one it has. A model whose makers trained the experts in MXFP4 is offered as they published it,
    because every label keeps those experts and so differs by little.
    """
    if spec.quant is not None:
        return (spec.quant,)
    if spec.native_type == "mxfp4":
        return ("MXFP4_MOE",)
    return CPU_LADDER if cpu_only else LADDER


def tensor_types(
    mix: str,
    tensors: Iterable[Tensor],
    spec: ModelSpec,
    *,
    source_type: str = "BF16",
    importance_matrix: bool = False,
) -> tuple[str, ...]:
    """Find the type of every tensor, in the order given, as llama-quantize chooses it from a 16-bit file.

    A tensor whose type is fixed keeps it. `importance_matrix` tells whether `--imatrix` is used. Raises
    `UnknownQuant` for a name that is not a mix of llama-quantize.
    """
    if mix not in BASE_TYPES:
        raise UnknownQuant(mix, tuple(BASE_TYPES))
    listed = tuple(tensors)
    facts = mix_facts(listed, spec, importance_matrix=importance_matrix)
    places = _places(listed, facts)
    chosen: list[str] = []
    for number, tensor in enumerate(listed):
        if tensor.type is not None:
            chosen.append(tensor.type)
        elif not quantizable(tensor.name, len(tensor.shape), facts.architecture):
            chosen.append(kept_type(tensor.name, len(tensor.shape), mix if mix == "F16" else source_type))
        else:
            chosen.append(
                chosen_type(
                    mix,
                    category(tensor.name),
                    places[number],
                    facts,
                    name=tensor.name,
                    row_elements=tensor.shape[0],
                    matrices=tensor.shape[2] if len(tensor.shape) > 2 else 1,  # noqa: PLR2004
                ),
            )
    return tuple(chosen)


def mix_facts(listed: tuple[Tensor, ...], spec: ModelSpec, *, importance_matrix: bool = False) -> MixFacts:
    """Gather what the mixes look at, from a plain list."""
    return MixFacts(
        architecture=spec.architecture,
        experts=max((layer.ffn.experts for layer in spec.layers if isinstance(layer.ffn, Moe)), default=0),
        grouping=grouping(spec),
        blocks=1 + max((tensor.layer for tensor in listed if tensor.layer is not None), default=-1),
        value_tensors=sum(category(tensor.name) == "value" for tensor in listed),
        tied=all(tensor.name != "output.weight" for tensor in listed),
        importance_matrix=importance_matrix,
    )


_COUNTED = frozenset({"value", "down", "gate", "up"})


def _places(listed: tuple[Tensor, ...], facts: MixFacts) -> list[Position]:
    # The program visits tensors by block, then by name, and counts each class as it goes; models with experts use
    # the block number instead for the feed-forward classes. A tensor whose type is given by hand is not counted.
    places = [NOWHERE] * len(listed)
    counts: Counter[str] = Counter()
    order = sorted(
        range(len(listed)),
        key=lambda at: (-1 if listed[at].layer is None else listed[at].layer, listed[at].name),
    )
    for at in order:
        tensor = listed[at]
        kind = category(tensor.name)
        if (
            tensor.type is not None
            or kind not in _COUNTED
            or not quantizable(
                tensor.name,
                len(tensor.shape),
                facts.architecture,
            )
        ):
            continue
        counted = counts[kind]
        counts[kind] += 1
        if kind == "value":
            places[at] = position_of(counted, facts.value_tensors, counted)
        else:
            index = tensor.layer if facts.experts > 1 and tensor.layer is not None else counted
            places[at] = position_of(index, facts.blocks, counted)
    return places
