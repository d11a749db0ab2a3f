"""What file names say: parts of a split model and the quantization."""

from __future__ import annotations

import re

PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
"""A file of a split model, as llama-gguf-split names it (`llama_split_path` in llama.cpp)."""

_QUANT = re.compile(
    r"(?:^|[-_./])(?P<quant>(?:UD-)?(?:I?Q\d_(?:K_(?:XXL|XL|L|M|S|XS)|K|XXS|XS|NL|S|M|\d)|TQ\d_0|MXFP4(?:_MOE)?|"
    r"NVFP4|BF16|F16|F32|FP16|Q\d))(?=[-_./]|$)",
    re.IGNORECASE,
)


def quant_of(stem: str) -> str | None:
    """Read the quantization off a file name without its ending: the last word that is one."""
    found = [match["quant"] for match in _QUANT.finditer(stem)]
    return found[-1].upper() if found else None
