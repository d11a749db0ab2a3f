"""How the graph builders of the architectures differ where it moves the peak of a buffer."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Style(Struct, frozen=True, kw_only=True):
    """One architecture's habits (src/models/*.cpp)."""

    rows: Literal["inside", "residual", "block-end", "norm-end", "streams"] = "inside"
    """Where the rows that get logits are picked.

    Before attention's sum, after it, after the block, after the norm, or after the streams are merged.
    """
    residual_first: bool = False
    """The feed-forward network's sum names the residual first, which is then written over."""
    mixer_residual_first: bool = False
    """The same of the token mixer's sum."""
    normed_residual: bool = False
    """What is added to a part's result is the norm that it read, scaled, not what was normalised."""
    up_experts_first: bool = False
    situ: bool = False
    """Feed-forward networks are gated by situ: both halves bounded by a tanh."""
    gated_query: bool = False
    """The query projection holds an output gate of the same width."""
    plain_weights: bool = False
    """The weights of the chosen experts are taken as they are, not made to add up to one."""
    weights_first: bool = False
    """Experts read tokens that are already weighted, instead of having their results weighted."""
    head_gate: bool = False
    """A separate output gate (`attn_gate`) has one value per head."""
    full_factors: bool = False
    """Only attention without a window has frequency factors."""
    value_norm: bool = False
    """Values are normalised, without a scale."""
    norm_after_rope: bool = False
    """Queries and keys are normalised after they are rotated."""
    rotated_norm: bool = False
    """The same without a scale; queries that are not rotated are scaled by position (Llama 4)."""
    fetched_ahead: bool = False
    """A delta net's convolution state is the first thing of its block that is asked for, before the norm."""
    repeated_keys: bool = False
    """A gated delta net repeats its key heads to the number of value heads."""
    parallel: Literal["", "cohere", "falcon", "phi", "stablelm"] = ""
    """The feed-forward network reads what attention read; in which order the parts are computed and summed.

    StableLM does so only where it has no norm before the network.
    """
    layer_norm: bool = False
    """Norms subtract the mean, which is never done in place; architectures with norm biases need not say so."""
    plain_norm: bool = False
    """Norms do not subtract the mean although they have a bias."""
    hyper: Literal["", "ways-first", "ways-last"] = ""
    """Blocks are between several residual streams; when a feed-forward network's ways back to them are worked out."""
    rope: Literal["all", "none", "windowed", "three-of-four"] = "all"
    """Which attention blocks rotate by position."""


DEFAULT = Style()

STYLES: dict[str, Style] = {
    "afmoe": Style(rope="windowed"),
    "bailingmoe3": Style(rows="norm-end", head_gate=True, fetched_ahead=True),
    "cohere2": Style(parallel="cohere", layer_norm=True, rope="windowed"),
    "command-r": Style(parallel="cohere", layer_norm=True),
    "deepseek4": Style(hyper="ways-first"),
    "exaone4": Style(rope="windowed"),
    "falcon": Style(parallel="falcon"),
    "falcon-h1": Style(rows="residual"),
    "gemma3n": Style(rows="streams", value_norm=True),
    "gemma4": Style(rows="norm-end", value_norm=True, full_factors=True),
    "glm5-next": Style(hyper="ways-last"),
    "gpt-oss": Style(rows="block-end"),
    "granitehybrid": Style(rope="none"),
    "hunyuan-dense": Style(norm_after_rope=True),
    "hunyuan-moe": Style(norm_after_rope=True),
    "jamba": Style(plain_weights=True, residual_first=True, mixer_residual_first=True, rope="none"),
    "hy_v3": Style(rows="norm-end"),
    "kimi-k3": Style(situ=True, rope="none"),
    "kimi-linear": Style(rope="none"),
    "laguna": Style(head_gate=True),
    "lfm2": Style(residual_first=True, mixer_residual_first=True),
    "lfm2moe": Style(residual_first=True, mixer_residual_first=True),
    "llama4": Style(rope="windowed", weights_first=True, plain_weights=True, rotated_norm=True),
    "minimax-01": Style(normed_residual=True),
    "nemotron_h": Style(rows="norm-end", rope="none"),
    "nemotron_h_moe": Style(rows="norm-end", rope="none"),
    "phi2": Style(parallel="phi"),
    "phi3": Style(residual_first=True),
    "phimoe": Style(residual_first=True, plain_norm=True),
    "qwen3next": Style(rows="norm-end", gated_query=True, repeated_keys=True),
    "qwen35": Style(rows="norm-end", gated_query=True),
    "qwen35moe": Style(rows="norm-end", gated_query=True),
    "stablelm": Style(parallel="stablelm"),
    "step35": Style(rows="norm-end", head_gate=True),
    "smollm3": Style(rope="three-of-four"),
}


FOUR_POSITIONS = frozenset({"bailingmoe3", "qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})
"""Architectures with four positions per token: time, height, width and one unused (`n_pos_per_embd`)."""
SCALED_EMBEDDINGS = frozenset(
    (
        *("afmoe", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding"),
        *("granite", "granitehybrid", "granitemoe", "minicpm"),
    ),
)
"""Architectures that multiply the embeddings by a constant, which takes them to the first block's device."""
SCALED_WEIGHTS = frozenset(
    (
        *("afmoe", "bailingmoe2", "bailingmoe3", "deepseek2", "deepseek32", "deepseek4", "exaone-moe", "glm-dsa"),
        *(
            "glm4moe",
            "glm5-next",
            "hy_v3",
            "kimi-k3",
            "kimi-linear",
            "laguna",
            "minimax-m3",
            "nemotron_h_moe",
            "step35",
        ),
    ),
)
"""Architectures whose file names a factor for the weights of the experts (`expert_weights_scale`)."""


def style_of(architecture: str) -> Style:
    """Look up an architecture's habits; most follow llama.cpp's common builders."""
    return STYLES.get(architecture, DEFAULT)
