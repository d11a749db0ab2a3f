"""How the graph builders of the architectures differ where it moves the peak of a buffer."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Style(Struct, frozen=True, kw_only=True):
    """One architecture's habits (src/models/*.cpp)."""

    keys_first: bool = False
    """Keys are projected before values."""
    rows: Literal["inside", "residual", "block-end", "norm-end"] = "inside"
    """Where the rows that get logits are picked: before attention's sum, after it, after the block, after the norm."""
    residual_first: bool = False
    """The feed-forward network's sum names the residual first, which is then written over."""
    mixer_residual_first: bool = False
    """The same of the token mixer's sum."""
    up_experts_first: bool = False
    gated_query: bool = False
    """The query projection holds an output gate of the same width."""
    whole_qk_norm: bool = False
    """Queries and keys are normalised before they are split into heads."""
    repeated_keys: bool = False
    """A gated delta net repeats its key heads to the number of value heads."""
    parallel_ffn: bool = False
    """The feed-forward network reads what attention read (Command R, Falcon)."""


DEFAULT = Style()

STYLES: dict[str, Style] = {
    "falcon-h1": Style(rows="residual"),
    "gemma3": Style(keys_first=True),
    "gpt-oss": Style(keys_first=True, rows="block-end"),
    "jamba": Style(residual_first=True, mixer_residual_first=True),
    "nemotron_h": Style(rows="norm-end"),
    "nemotron_h_moe": Style(rows="norm-end"),
    "phi3": Style(residual_first=True),
    "qwen3next": Style(rows="norm-end", gated_query=True, repeated_keys=True),
    "qwen35": Style(rows="norm-end", gated_query=True),
    "qwen35moe": Style(rows="norm-end", gated_query=True),
}


def style_of(architecture: str) -> Style:
    """Look up an architecture's habits; most follow llama.cpp's common builders."""
    return STYLES.get(architecture, DEFAULT)
