"""Which blocks of an architecture slide a window, keep a recurrent state or share the cache of an earlier block.

A GGUF file names a window and perhaps a pattern; what an engine makes of them is fixed per architecture in its code.
Source: `load_arch_hparams` in src/models/*.cpp and `create_memory` in src/llama-model.cpp of
https://github.com/ggml-org/llama.cpp (commit 0c1e57098).
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.readers.hyper import Hyper


class Window(Struct, frozen=True):
    """How an architecture slides its window."""

    period: int | None
    """Every `period`-th block sees everything; 0 is none of them; None where the file must list the blocks."""
    full_first: bool = False
    """The full block opens its period instead of closing it."""
    default_tokens: int = 0
    """Window where the file names none; 0 is no window at all."""
    fixed_tokens: int | None = None
    """Window that the engine uses whatever the file says."""
    chunked: bool = False


WINDOWS: dict[str, Window] = {
    "afmoe": Window(4),
    "cohere2": Window(4),
    "cohere2moe": Window(4, full_first=True),
    "deepseek4": Window(0),
    "dflash": Window(None),
    "dots3note": Window(None),
    "exaone-moe": Window(4, default_tokens=128),
    "exaone4": Window(4, default_tokens=4096),
    "gemma-embedding": Window(6),
    "gemma2": Window(2, default_tokens=4096),
    "gemma3": Window(6),
    "gemma3n": Window(5),
    "gemma4": Window(None),
    "gemma4-assistant": Window(None),
    "gpt-oss": Window(2),
    "granite_swa": Window(None),
    "laguna": Window(4, full_first=True),
    "lfm2": Window(0),
    "llama4": Window(4, default_tokens=8192, fixed_tokens=8192, chunked=True),
    "maple": Window(None),
    "mellum": Window(4),
    "mimo2": Window(None),
    "modern-bert": Window(3, full_first=True),
    "muse-glimmer": Window(4),
    "olmo2": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, full_first=True, fixed_tokens=4096),
    "spark2_5": Window(None),
    "step35": Window(None),
}
"""Architectures that are not listed ignore a window even where the file names one (Phi-3, Mistral, Qwen 2)."""

_EXAONE4_WINDOWED_BLOCKS = 64

CACHELESS = frozenset(
    {
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "wavtokenizer-dec", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
    }
)  # fmt: skip
"""Encoders and diffusion models: they see the whole text at once and keep no cache."""

LOOPED = frozenset({"nanbeige", "hrm_text"})
"""Run the same blocks several times, with a cache each time."""

_SHARED_FROM = {"gemma3n": 20}
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}


def windows(hyper: Hyper) -> tuple[int | None, ...]:
    """Window in tokens of every block, None where a block sees everything."""
    nothing = (None,) * hyper.blocks
    rule = WINDOWS.get(hyper.architecture)
    if rule is None or (hyper.architecture == "exaone4" and hyper.blocks < _EXAONE4_WINDOWED_BLOCKS):
        return nothing
    tokens = hyper.number("attention.sliding_window", rule.default_tokens)
    if not tokens:
        return nothing
    tokens = rule.fixed_tokens or tokens
    listed = hyper.flags("attention.sliding_window_pattern")
    if listed is None:
        if rule.period is None:
            raise hyper.error("attention.sliding_window_pattern", "is missing: it must list the blocks")
        period = hyper.number("attention.sliding_window_pattern", rule.period)
        listed = tuple(_slides(index, period, full_first=rule.full_first) for index in range(hyper.blocks))
    return tuple(tokens if slides else None for slides in listed)


def _slides(index: int, period: int, *, full_first: bool) -> bool:
    if period == 0:
        return True
    return index % period != 0 if full_first else index % period < period - 1


def recurrent_by_interval(hyper: Hyper) -> tuple[bool, ...] | None:
    """Say which blocks are recurrent where only a pattern says so; None for architectures that need none."""
    default = _INTERVALS.get(hyper.architecture)
    if default is None:
        return None
    listed = hyper.flags("attention.recurrent_layers")
    if listed is not None:
        return listed
    interval = hyper.number("full_attention_interval", default) or 1
    return tuple((index + 1) % interval != 0 for index in range(hyper.blocks))


def first_sharing_block(hyper: Hyper) -> int:
    """Give the number of the first block that reads an earlier block's cache; the block count where none does."""
    if hyper.architecture in _SHARED_FROM:
        return min(hyper.blocks, _SHARED_FROM[hyper.architecture])
    if hyper.architecture.startswith("gemma4"):
        return hyper.blocks - min(hyper.blocks, hyper.number("attention.shared_kv_layers"))
    return hyper.blocks
