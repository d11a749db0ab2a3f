"""What a quantization costs in quality: the divergence from the unquantized model, by quantization and model size."""

from __future__ import annotations

from typing import Literal, NamedTuple

from willitrun_catalog.quality_table import KL_DIVERGENCE, REFERENCE_PARAMS, SIZE_EXPONENT, SOURCES

Level = Literal["maximum", "very-high", "high", "medium", "low", "very-low", "unknown"]

LEVELS: tuple[tuple[float, Level], ...] = (
    (0.0006, "maximum"),
    (0.01, "very-high"),
    (0.035, "high"),
    (0.11, "medium"),
    (0.45, "low"),
)
"""Upper bounds of the divergence per level; beyond the last one it is `very-low`.

On an 8B model: F16, then Q8_0 and Q6_K, then Q5 and Q4_K, then Q4_0 to IQ3_M, then Q3_K_S to IQ2_S, then the rest.
"""

NATIVE = {"mxfp4": frozenset({"MXFP4", "MXFP4_MOE", "BF16", "F16"}), "fp8": frozenset({"FP8"})}
"""Formats in which some makers publish: nothing is lost against what they published."""


class QuantQuality(NamedTuple):
    """Divergence from the unquantized model, in nats per token, as a figure and as a word."""

    level: Level
    kl_divergence: float | None
    basis: str


def quality(quant: str, params: int, *, native_type: str = "bf16") -> QuantQuality:
    """Estimate what a quantization costs on a model with this many parameters.

    The divergence on an 8B model (`quality_table` names the measurements) is scaled by a power of the size, as
    larger models lose less. `native_type` is what the makers published. An unknown quantization is `unknown`.
    """
    if quant in NATIVE.get(native_type, ()):
        return QuantQuality("maximum", 0.0, SOURCES["trained"])
    entry = KL_DIVERGENCE.get(quant) or KL_DIVERGENCE.get(plain_label(quant))
    if entry is None:
        return QuantQuality("unknown", None, "no measurement of this quantization is known")
    value, source = entry
    scaled = value * (REFERENCE_PARAMS / max(params, 1)) ** SIZE_EXPONENT
    basis = SOURCES[source]
    if value:
        basis += f"; scaled from 8B by (8B/params)^{SIZE_EXPONENT:g}"
    return QuantQuality(level_of(scaled), scaled, basis)


UNKNOWN_DIVERGENCE = 0.05
"""Assumed where nothing is known: the middle of what is published, between Q4_K_S and Q4_0 on an 8B model."""


def kl_divergence(quant: str, params: int) -> float:
    """Give a divergence to plan with: the estimate of `quality`, or `UNKNOWN_DIVERGENCE`."""
    known = quality(quant, params).kl_divergence
    return UNKNOWN_DIVERGENCE if known is None else known


def plain_label(quant: str) -> str:
    """Reduce a publisher's label to the mix it is a variant of: `UD-Q4_K_XL`, `i1-Q4_K_M`, `Q4_K_L` -> `Q4_K_M`."""
    label = quant.upper().removeprefix("UD-").removeprefix("I1-").removesuffix("_MOE")
    for ending in ("_XL", "_L"):
        if label.endswith(f"K{ending}") and not label.startswith("Q3"):
            stem = label.removesuffix(ending)
            if stem == "Q8_K":
                return "Q8_0"
            return stem if stem in {"Q2_K", "Q6_K"} else f"{stem}_M"
    return "Q3_K_L" if label == "Q3_K_XL" else label


def level_of(kl_divergence: float) -> Level:
    """Name the level of a divergence."""
    return next((level for bound, level in LEVELS if kl_divergence <= bound), "very-low")
