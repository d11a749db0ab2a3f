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
    post_attention_is_ffn_norm: bool = False
    """`post_attention_norm` is the norm before the feed-forward network."""
    up_experts_first: bool = False
    parallel_ffn: bool = False
    """The feed-forward network reads what attention read (Command R, Falcon)."""


DEFAULT = Style()

STYLES: dict[str, Style] = {
    "gpt-oss": Style(keys_first=True, post_attention_is_ffn_norm=True, rows="block-end"),
    "gemma3": Style(keys_first=True),
    "falcon-h1": Style(rows="residual"),
    "phi3": Style(residual_first=True),
    "nemotron_h": Style(rows="norm-end"),
}


def style_of(architecture: str) -> Style:
    """Look up an architecture's habits; most follow llama.cpp's common builders."""
    return STYLES.get(architecture, DEFAULT)
