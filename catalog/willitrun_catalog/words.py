"""Cutting the names of models and accelerators into comparable words."""

from __future__ import annotations

import re

_UNITS = frozenset({"b", "m", "k", "e"})
"""Letters that belong to the number before them: 8b, 135m, 128k, 16e."""


_PIECE = re.compile(r"(?<![a-z])[aer]\d+(?:\.\d+)?[bm](?![a-z])|\d+(?:[._]\d+)*|[a-z]+")
"""Active sizes (a3b, e4b) and the letter of a line with its size (r7b) whole, numbers, letters."""
RELEASE_WORDS = frozenset(
    ("instruct", "it", "chat", "inst", "hf", "base", "pt", "gguf", "model", "bf16", "fp16", "preview"),
)
"""Words that do not tell one model of a family from another."""


def key(text: str) -> str:
    """Reduce a name to its letters and digits, lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def model_words(text: str) -> tuple[str, ...]:
    """Cut a model's name: letters and numbers apart, sizes whole, 4.0 and 4 alike.

    `Qwen2.5-7B`, `qwen 2.5 7b` and `qwen2.5:7b` give the same words.
    """
    words: list[str] = []
    for piece in _PIECE.findall(text.lower().replace("+", " plus ")):
        if piece in _UNITS and words and words[-1][0].isdigit():
            words[-1] += piece
        else:
            words.append(re.sub(r"\.0$", "", piece.replace("_", ".")))
    return tuple(words)


def is_size(word: str) -> bool:
    """Tell whether a word is a parameter count: 8b, 135m, a3b, 16e."""
    return word[-1] in _UNITS and any(letter.isdigit() for letter in word)


GPU_NOISE = frozenset(
    (
        *("nvidia", "amd", "intel", "apple", "geforce", "radeon", "instinct", "quadro", "tesla", "arc", "rx"),
        *("graphics", "gpu", "generation", "corporation", "tm", "r", "the", "card", "accelerator", "edition"),
        *("data", "center"),
    ),
)
"""Words that an accelerator's name may or may not carry."""


def gpu_words(text: str) -> tuple[str, ...]:
    """Cut an accelerator's name: `RTX3090` and `7900XTX` fall apart, `A100`, `M4` and `MI300X` stay whole."""
    words: list[str] = []
    for piece in re.findall(r"[a-z0-9.]+", re.sub(r"\((?:tm|r)\)", " ", text.lower())):
        named = re.fullmatch(r"[a-z]{1,3}\d+(?:\.\d+)?[a-z]{0,2}", piece)
        if named and not re.fullmatch(r"(?:rtx|gtx|rx)\d+[a-z]*", piece):
            words.append(piece)
        else:
            words += re.findall(r"\d+(?:\.\d+)?[dms]?(?![a-z\d])|\d+|[a-z]+", piece)
    return tuple(words)
