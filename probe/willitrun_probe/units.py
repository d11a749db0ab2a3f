"""Bytes and rates to and from people's words: the only place that knows what a GiB is."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": TIB, "tib": TIB, "tb": 1000**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read a size such as `512MiB`, `64 GiB`, `1.5G` or `1000000`; raises ValueError with the accepted forms.

    A bare letter is binary (`8G` is 8 GiB), as in llama.cpp and Docker; `GB` is decimal, as on a data sheet.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        message = f"{text!r} is not a size; write for example 512MiB, 24GiB or 8000000000"
        raise ValueError(message)
    return round(float(match.group(1)) * factor)


def format_bytes(value: int | None) -> str:
    """Write a size for people, in binary units with one decimal; unknown is a dash."""
    if value is None:
        return "-"
    sign, size = ("-", -value) if value < 0 else ("", value)
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return f"{sign}{size / factor:.1f} {unit}"
    return f"{sign}{size} B"


def format_rate(value: float | None, unit: str = "B/s") -> str:
    """Write a rate for people with decimal prefixes (data sheets use them); unknown is a dash."""
    if value is None:
        return "-"
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def format_tokens(value: int | None) -> str:
    """Write a token count for people: 4096 is 4K, 131072 is 128K; others stay whole."""
    if value is None:
        return "-"
    if value >= MIB and value % MIB == 0:
        return f"{value // MIB}M"
    if value >= KIB and value % KIB == 0:
        return f"{value // KIB}K"
    return f"{value}"


def format_seconds(value: float | None) -> str:
    """Write a duration for people: 45 ms, 1.2 s, 3 min 20 s; unknown is a dash."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s"
