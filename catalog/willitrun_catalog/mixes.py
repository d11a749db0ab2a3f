"""The mixes of llama-quantize: which tensor of a model gets which block type.

A mix such as Q4_K_M has a base type and raises or lowers it for some tensors, by their role, their position and the
model's shape. The rules follow `src/llama-quant.cpp` of https://github.com/ggml-org/llama.cpp (commit 0c1e57098:
`llama_tensor_get_type_impl`, `tensor_type_fallback`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from msgspec import Struct

from willitrun_catalog.block_types import fitting_type
from willitrun_catalog.tensor_classes import Category

BASE_TYPES: dict[str, str] = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K_L": "Q6_K",
    "Q6_K": "Q6_K",
    "Q5_K_L": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1",
    "Q5_0": "Q5_0",
    "Q4_K_L": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_1": "Q4_1",
    "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "MXFP4_MOE": "MXFP4",
    "Q3_K_XL": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS",
    "Q2_K_L": "Q2_K",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M",
    "IQ1_S": "IQ1_S",
    "TQ2_0": "TQ2_0",
    "TQ1_0": "TQ1_0",
    "Q2_0": "Q2_0",
    "Q1_0": "Q1_0",
}
"""Mix name to base type. Note IQ2_S -> IQ2_XS and IQ2_M -> IQ2_S: the names are one step off."""

LARGE_TABLES = {"Q2_K_L": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_K_M", "Q5_K_L": "Q5_K_M", "Q6_K_L": "Q6_K"}
"""Publishers' variants: the mix with token table and head in Q8_0 (`--token-embedding-type`, `--output-tensor-type`).

Source: the cards of https://huggingface.co/bartowski (`Uses Q8_0 for embed and output weights`). Other publishers use
some of these names for other recipes, which nobody documents.
"""

_FLOATS = frozenset({"F32", "F16", "BF16"})
_TINY = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
_TINY_SM = frozenset({"IQ2_S", "IQ2_M"})
_GROUPED = 4
"""Query heads per key head from which sharing makes the value matrix small enough to be given more bits."""
_MIXTRAL_EXPERTS = 8

_EIGHT_EXPERT_OUTPUT = frozenset(
    ["Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"],
)
_OUTPUT_PROJECTION = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_EMBEDDING = {
    "IQ2_XXS": "Q2_K",
    "IQ2_XS": "Q2_K",
    "IQ1_S": "Q2_K",
    "IQ1_M": "Q2_K",
    "IQ2_S": "IQ3_S",
    "IQ2_M": "IQ3_S",
    "IQ3_XXS": "IQ3_S",
    "TQ1_0": "Q4_K",
    "TQ2_0": "Q4_K",
    "Q2_0": "Q4_K",
}


class MixFacts(Struct, frozen=True):
    """What the rules look at besides the tensor itself."""

    architecture: str
    experts: int
    """Routed experts per block (`expert_count`), 0 for a dense model."""
    grouping: int
    """Query heads per key head in block 0; 0 where block 0 has no cache."""
    blocks: int
    """Blocks in the file, next-token layers included."""
    value_tensors: int
    """How many `attn_v`, `attn_qkv` and `attn_kv_b` matrices the file has."""
    tied: bool
    """No `output.weight`: the token table is the head as well."""
    importance_matrix: bool = False
    """Quantized with one (`--imatrix`); changes three rules."""

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for a "70B" (80 blocks, heads grouped), which raises the value matrix."""
        if self.blocks != 80:  # noqa: PLR2004
            return False
        return self.architecture in {"qwen2", "deci"} or (self.architecture == "llama" and self.grouping > 1)


Position: TypeAlias = int
"""Where a tensor stands among its class, as the answers to the questions that the rules ask: a sum of these flags."""

NOWHERE: Position = 0
FIRST_TWO: Position = 1
FIRST_FOUR: Position = 2
FIRST_16TH: Position = 4
FIRST_8TH: Position = 8
LAST_8TH: Position = 16
MORE: Position = 32
"""First eighth, last eighth, and every third in between (`use_more_bits`)."""
COUNTED_FIRST_8TH: Position = 64
"""`FIRST_8TH` by running count, where that goes by block number (models with experts)."""


@lru_cache(maxsize=8192)
def position(index: int, total: int, counted: int) -> Position:
    """Answer the rules' questions for the `index`-th of `total`; `counted` is the running count of its class."""
    eighth = total // 8
    more = index < eighth or index >= 7 * total // 8 or (index - eighth) % 3 == 2  # noqa: PLR2004
    return (
        FIRST_TWO * (index < 2)  # noqa: PLR2004
        + FIRST_FOUR * (index < 4)  # noqa: PLR2004
        + FIRST_16TH * (index < total // 16)
        + FIRST_8TH * (index < eighth)
        + LAST_8TH * (index >= 7 * total // 8)
        + MORE * more
        + COUNTED_FIRST_8TH * (counted < eighth)
    )


def chosen_type(
    mix: str,
    tensor_category: Category,
    place: Position,
    facts: MixFacts,
    *,
    name: str,
    row_elements: int,
    matrices: int = 1,
) -> str:
    """Find the type that the mix gives to a quantizable tensor.

    `matrices` is the third dimension (number of experts), `name` matters to one architecture only. A row that is not
    a whole number of blocks falls back as `fitting_type` says.
    """
    base = BASE_TYPES[mix]
    if mix in _FLOATS:
        return base
    if mix in LARGE_TABLES:
        if tensor_category in {"embedding", "output"}:
            return fitting_type("Q8_0", row_elements)
        mix = LARGE_TABLES[mix]
    return fitting_type(
        _preferred(mix, base, tensor_category, place, facts, name, row_elements, matrices), row_elements
    )


def _preferred(  # noqa: C901, PLR0911
    mix: str,
    base: str,
    tensor_category: Category,
    place: Position,
    facts: MixFacts,
    name: str,
    row_elements: int,
    matrices: int,
) -> str:
    if facts.architecture == "glm5-next" and any(p in name for p in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
        return "Q8_0"
    if tensor_category == "output" or (tensor_category == "embedding" and facts.tied):
        return _head(mix, base, facts, row_elements)
    if mix == "MXFP4_MOE":
        # The third dimension marks experts, and MLA's per-head matrices too; Bailing's third version is exempt.
        exempt = facts.architecture == "bailingmoe3" and tensor_category not in {"up", "gate", "down"}
        return "MXFP4" if matrices > 1 and not exempt else "Q8_0"
    if tensor_category == "embedding":
        return _EMBEDDING.get(mix, base)
    if mix in _TINY:
        return _tiny(mix, base, tensor_category, place, facts)
    if tensor_category == "value":
        return _value(mix, base, place, facts)
    if tensor_category == "down":
        return _down(mix, base, place, facts)
    if tensor_category == "mixed":
        return _output_projection(mix, base, facts)
    if tensor_category == "key" and facts.experts == _MIXTRAL_EXPERTS:
        return "Q8_0"
    if tensor_category in {"key", "query"}:
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix, base)
    if tensor_category in {"gate", "up"} and mix == "IQ3_XS" and not place & (FIRST_8TH | LAST_8TH):
        return "IQ3_XXS"
    return base


def _head(mix: str, base: str, facts: MixFacts, row_elements: int) -> str:
    if mix == "MXFP4_MOE" or facts.architecture == "falcon" or fitting_type(base, row_elements) != base:
        return "Q8_0"
    if mix in _TINY or mix == "IQ3_XXS":
        return "Q5_K"
    return base if base == "Q8_0" else "Q6_K"


def _tiny(mix: str, base: str, tensor_category: Category, place: Position, facts: MixFacts) -> str:  # noqa: PLR0911
    raised = "IQ3_S" if mix in _TINY_SM else "Q2_K"
    if tensor_category == "value":
        return "Q4_K" if facts.grouping >= _GROUPED or facts.experts >= _GROUPED else raised
    if tensor_category == "key" and facts.experts == _MIXTRAL_EXPERTS:
        return "Q4_K"
    if tensor_category == "down" and place & COUNTED_FIRST_8TH:
        return raised
    if tensor_category == "mixed":
        if facts.experts == _MIXTRAL_EXPERTS:
            return "Q5_K"
        if mix in {"IQ1_S", "IQ1_M"}:
            return "IQ2_XXS"
        return "IQ3_S" if mix in _TINY_SM else base
    return base


def _value(mix: str, base: str, place: Position, facts: MixFacts) -> str:
    if facts.experts == _MIXTRAL_EXPERTS:
        return "Q8_0"
    grouped = facts.grouping >= _GROUPED
    chosen = base
    if mix == "Q2_K":
        chosen = "Q4_K" if grouped else "Q3_K"
    elif mix == "IQ3_XXS":
        chosen = "Q4_K" if grouped else ("IQ3_XXS" if facts.importance_matrix else "IQ3_S")
    elif mix == "IQ3_M" or (grouped and mix in {"Q2_K_S", "IQ3_XS", "IQ3_S"}):
        chosen = "Q4_K"
    elif mix == "Q3_K_M":
        chosen = "Q5_K" if place & FIRST_TWO else "Q4_K"
    elif mix == "Q3_K_L" or (grouped and mix in {"IQ4_NL", "IQ4_XS"}) or (mix == "Q4_K_S" and place & FIRST_FOUR):
        chosen = "Q5_K"
    elif mix in {"Q4_K_M", "Q5_K_M"} and place & MORE:
        chosen = "Q6_K"
    return "Q5_K" if facts.is_70b and chosen in {"Q3_K", "Q4_K"} else chosen


def _down(mix: str, base: str, place: Position, facts: MixFacts) -> str:  # noqa: C901, PLR0911, PLR0912
    falcon = facts.architecture == "falcon"
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q2_K_S":
        return "Q4_K" if place & FIRST_8TH else base
    if mix == "IQ3_XXS" and not facts.importance_matrix:
        return "Q4_K" if place & FIRST_8TH else "Q3_K"
    if mix == "Q3_K_M":
        if place & FIRST_16TH:
            return "Q5_K"
        return "Q4_K" if not falcon or place & MORE else "Q3_K"
    if mix == "IQ3_M" and (place & FIRST_8TH or (facts.experts == _MIXTRAL_EXPERTS and place & MORE)):
        return "Q4_K"
    if mix == "Q3_K_L":
        return "Q4_K" if falcon else "Q5_K"
    if mix == "Q4_K_M":
        if falcon:
            return "Q6_K" if place & FIRST_16TH else ("Q5_K" if place & MORE else "Q4_K")
        return "Q6_K" if place & MORE else base
    if mix in {"IQ4_NL", "IQ4_XS"} and place & FIRST_8TH and not facts.importance_matrix:
        return "Q5_K"
    if mix == "Q5_K_M" and place & MORE:
        return "Q6_K"
    if mix == "Q4_K_S" and not falcon and place & FIRST_8TH:
        return "Q5_K"
    if mix in {"Q4_0", "Q5_0"} and facts.importance_matrix and place & FIRST_8TH:
        return "Q4_1" if mix == "Q4_0" else "Q5_1"
    return base


def _output_projection(mix: str, base: str, facts: MixFacts) -> str:
    if facts.architecture == "falcon":
        return "Q4_K" if mix == "Q3_K_L" else base
    if facts.experts == _MIXTRAL_EXPERTS:
        return "Q5_K" if mix in _EIGHT_EXPERT_OUTPUT else base
    return _OUTPUT_PROJECTION.get(mix, base)
