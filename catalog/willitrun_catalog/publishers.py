"""Which quantizations the publishers of GGUF files customarily offer, so that a command names a file that is there.

Offered by at least half of the repositories counted: 19 of unsloth and 12 of bartowski in
github.com/menloresearch/model-catalog (`model_catalog.json`); mradermacher's fixed set of static quantizations as
its model cards list them (huggingface.co/mradermacher/Holotron4-30B-A3B-GGUF).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

DYNAMIC = "UD-"
"""Prefix of unsloth's mixes of its own, close in size to the plain mix of the same name."""
K_MIXES = frozenset({"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS"})
OFFERED: dict[str, frozenset[str]] = {
    "unsloth": K_MIXES
    | {"BF16", "IQ4_NL", "Q2_K_L", "Q4_0", "Q4_1", "UD-IQ1_M", "UD-IQ1_S", "UD-IQ2_M", "UD-IQ2_XXS", "UD-IQ3_XXS"},
    "bartowski": K_MIXES
    | {"BF16", "IQ2_M", "IQ3_M", "IQ3_XS", "IQ3_XXS", "IQ4_NL", "Q2_K_L", "Q3_K_L", "Q4_0", "Q4_1"},
    "mradermacher": K_MIXES | {"Q3_K_L"},
}
NATIVE_MXFP4 = "MXFP4_MOE"
"""llama.cpp's name of a model whose experts were trained in MXFP4; ggml-org publishes those, and names them MXFP4."""


class Published(Struct, frozen=True, kw_only=True):
    """A repository and the tag that selects the file in it; `known` when its publisher customarily offers it."""

    repository: str
    tag: str
    known: bool


def published(repositories: Sequence[str], quant: str) -> Published | None:
    """Return the first of a model's GGUF repositories that holds a quantization; None without any repository.

    Where nobody is known to offer it, the first repository is named with `known` False.
    """
    for tag in tags(quant):
        for repository in repositories:
            if offers(repository, tag):
                return Published(repository=repository, tag=tag, known=True)
    return Published(repository=repositories[0], tag=quant, known=False) if repositories else None


def tags(quant: str) -> tuple[str, ...]:
    """Return the names a quantization goes by in file names, the plain one first."""
    return ("MXFP4", quant) if quant == NATIVE_MXFP4 else (quant, f"{DYNAMIC}{quant}")


def offers(repository: str, tag: str) -> bool:
    """Tell whether the publisher of a repository customarily offers a tag."""
    publisher = repository.partition("/")[0]
    return tag in OFFERED.get(publisher, ()) or (publisher == "ggml-org" and tag == "MXFP4")
