"""Forgiving search by name, offline: accelerators as people and drivers name them."""

from __future__ import annotations

import re
from functools import lru_cache

from willitrun_catalog import shipped
from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import UnknownGpu
from willitrun_catalog.words import GPU_NOISE, gpu_words, key

GIB = 1 << 30

_MEMORY = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*gi?b\b", re.IGNORECASE)
_MEMORY_TYPE = re.compile(r"\b(?:hbm\d?e?|gddr\d\w?|lpddr\d\w?)\b", re.IGNORECASE)
_CORES = re.compile(r"\b(\d+)[- ]?c(?:ores?)?\b", re.IGNORECASE)
_SLICE = re.compile(r"\bmig\b.*", re.IGNORECASE)
"""A slice of a card is named after it: `NVIDIA H100 80GB HBM3 MIG 1g.10gb`."""
_PROFILE = re.compile(r"-(\d+)[abcq]\b", re.IGNORECASE)
"""A virtual GPU is named after its card and its memory in GB: `NVIDIA A40-48Q` (NVIDIA vGPU user guide)."""
_MOBILE = re.compile(r"\bmobile\b|\b(?:with )?max-?q(?: design)?\b", re.IGNORECASE)
_MODULE = re.compile(r"\b(?:pcie|sxm\d?)\b", re.IGNORECASE)
_SLICE_MEMORY = re.compile(r"(\d+)\s*gi?b\b", re.IGNORECASE)
_SAME_MEMORY = 0.1
"""A size that is off by more than a tenth is another variant."""
_VARIANTS = {"sxm2": -1, "sxm3": -1, "sxm4": -1, "sxm5": -1, "sxm": -1, "pcie": 0, "nvl": 1, "gb10": -2}
"""What a bare chip name means first: the module, then the card."""
_UNCOUNTED = frozenset({*_VARIANTS, "core", "cores"})
"""Words that make a name no less plain: a variant, and a number of cores."""


def find_datasheet(query: str, memory_bytes: int | None = None) -> Datasheet:
    """Find the accelerator that a name means; raises `UnknownGpu` with the nearest names.

    Vendor and brand words may be left out, but what they exclude is excluded; words that no name has are ignored. A
    memory size, in the name or given, picks among variants; without one the plainest name wins (no `Ti`, `Laptop` or
    `D`), the one that says no more than was asked first, then the larger memory. A name that fits nothing is read
    more loosely: `Mobile` as `Laptop`, a module or a number of cores left out.
    """
    cut = _PROFILE.sub(r" \1GB", _SLICE.sub("", query))
    for text in spellings(cut):
        for names in (_names(), _joined()):
            at = _best(text, memory_bytes, names)
            if at is not None:
                return shipped.datasheet_at(at)
    raise UnknownGpu(query, nearest_gpus(query))


def memory_in(name: str) -> int | None:
    """Return the memory size that a name states, in bytes: 32 GiB for `MI50 32GB`, 8 GiB for `L40S-8Q`.

    Of a slice its own: 10 GiB for `H100 80GB MIG 1g.10gb`.
    """
    part = _SLICE.search(name)
    stated = _SLICE_MEMORY.search(part.group()) if part else _MEMORY.search(_PROFILE.sub(r" \1GB", name))
    return int(float(stated.group(1)) * GIB) if stated else None


def spellings(query: str) -> tuple[str, ...]:
    """Return a name as written, then with less and less of what the catalog may not tell apart."""
    laptop = _MOBILE.sub(" laptop ", query)
    bare = _MODULE.sub(" ", laptop)
    plain = _CORES.sub(" ", re.sub(r"\bmax-?q\b.*", " ", bare, flags=re.IGNORECASE))
    return tuple(dict.fromkeys((query, laptop, bare, plain)))


def _best(query: str, memory_bytes: int | None, names: tuple[tuple[str, frozenset[str], int], ...]) -> int | None:
    """Return the position of the name that has all known words and says least beyond them; None when none has."""
    memory = _MEMORY.search(query)
    size = memory_bytes if memory_bytes is not None else (float(memory.group(1)) * GIB if memory else None)
    kind = _MEMORY_TYPE.search(query)
    bare = _CORES.sub(r"\1-core", _MEMORY_TYPE.sub(" ", _MEMORY.sub(" ", query)))
    all_words = frozenset(gpu_words(bare))
    wanted, vendor = all_words - GPU_NOISE, _vendor(all_words)
    known = wanted & _vocabulary()
    if not known or not _has_number(known, wanted):
        return None
    typed = memory is not None and memory_bytes is None
    whole, plain = key(query), _plain_key(bare)
    best: tuple[tuple[float, ...], int] | None = None
    for name, name_words, at in names:
        if not known <= name_words:
            continue
        sheet = shipped.datasheet_at(at)
        if vendor not in {None, sheet.vendor}:
            continue
        extra = [word for word in name_words - known if not word[0].isdigit() and word not in _UNCOUNTED]
        gap = _gap(sheet, size)
        other_memory = gap > _SAME_MEMORY
        rank = (
            key(name) != whole or other_memory,
            # A size that is typed tells products apart; one that is read comes with the product's whole name.
            *((other_memory, len(extra)) if typed else (len(extra), other_memory)),
            kind is not None and (sheet.memory_type or "").lower() != kind.group().lower(),
            gap,
            _plain_key(name) != plain,
            min((_VARIANTS.get(word, 0) for word in name_words - known), default=0),
            -(sheet.memory_bytes or 0),
            len(name),
        )
        if best is None or rank < best[0]:
            best = (rank, at)
    return None if best is None else best[1]


_BRANDS = {
    **dict.fromkeys(("nvidia", "geforce", "quadro", "tesla", "rtx", "gtx"), "nvidia"),
    **dict.fromkeys(("amd", "radeon", "instinct"), "amd"),
    **dict.fromkeys(("intel", "arc"), "intel"),
    "apple": "apple",
}


def _vendor(words: frozenset[str]) -> str | None:
    """Tell the vendor that the words name, if they name one alone."""
    vendors = {_BRANDS[word] for word in words if word in _BRANDS}
    return vendors.pop() if len(vendors) == 1 else None


@lru_cache(maxsize=1024)
def _plain_key(name: str) -> str:
    """Reduce a name to what is left without vendor, brand and `RTX`, in the order written; a memory size stays."""
    return "".join(word for word in gpu_words(name) if word not in GPU_NOISE and word not in {"rtx", "gtx"})


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, frozenset[str], int], ...]:
    listed = []
    for name in shipped.gpu_search_names():
        modules = {"sxm"} if any(word.startswith("sxm") for word in name.words) else set()
        listed.append((name.text, frozenset({*name.words, *modules}), name.position))
    return tuple(listed)


@lru_cache(maxsize=1)
def _joined() -> tuple[tuple[str, frozenset[str], int], ...]:
    """Return each accelerator's first name with the words of all its names: `DGX Spark GB10` mixes two."""
    words: dict[int, frozenset[str]] = {}
    for _, own, at in _names():
        words[at] = words.get(at, frozenset()) | own
    return tuple((shipped.compiled().gpu_names[at], own, at) for at, own in words.items())


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    return frozenset().union(*(words for _, words, _ in _names()))


def _has_number(known: frozenset[str], wanted: frozenset[str]) -> bool:
    """Tell whether the words that tell models apart, those with digits, are known, if there are any."""
    numbers = [word for word in wanted if any(letter.isdigit() for letter in word)]
    return all(word in known for word in numbers)


def _gap(sheet: Datasheet, size: float | None) -> float:
    options = sheet.memory_options_bytes or ((sheet.memory_bytes,) if sheet.memory_bytes else ())
    if size is None or not options:
        return 0.0
    return min(abs(option - size) for option in options) / size


def nearest_gpus(query: str, limit: int = 5) -> tuple[str, ...]:
    """Name the accelerators closest to words that hit none."""
    from difflib import SequenceMatcher  # noqa: PLC0415

    wanted, wanted_key = frozenset(gpu_words(query)), key(query)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted_key)
    letters = set(wanted_key)
    names = shipped.compiled().gpu_names
    likely = sorted(
        _names(),
        key=lambda name: -(2 * len(wanted & name[1]) + len(letters & set(key(name[0]))) / len(letters or "x")),
    )[:40]
    scored: list[tuple[float, str]] = []
    for name, name_words, at in likely:
        matcher.set_seq1(key(name))
        scored.append((-len(wanted & name_words) - 2 * matcher.ratio(), names[at]))
    return tuple(dict.fromkeys(name for _, name in sorted(scored)))[:limit]
