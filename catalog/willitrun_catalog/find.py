"""Forgiving search by name, offline: models and accelerators as people type them."""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct, structs

from willitrun_catalog import shipped
from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import UnknownGpu, UnknownModel
from willitrun_catalog.model import ModelSpec

__all__ = ["ModelMatch", "UnknownGpu", "UnknownModel", "find_datasheet", "find_model"]

GIB = 1 << 30

_INSTRUCT = frozenset("instruct it chat inst hf".split())
"""Words that mark the release people mean when they name a family and a size."""
_NEUTRAL = frozenset("base pt gguf model bf16 fp16 fp8 nvidia meta ai c4ai preview".split()) | _INSTRUCT
"""Words that do not tell one model of a family from another."""
_GPU_NEUTRAL = frozenset("nvidia amd intel apple geforce radeon instinct quadro tesla graphics gpu gb gib arc pro".split())
"""Words that a GPU's name may or may not have."""


class ModelMatch(Struct, frozen=True, kw_only=True):
    """A model that was meant, and what else the words could have meant."""

    spec: ModelSpec
    alternatives: tuple[str, ...] = ()
    """Catalog names, nearest first; empty when the words left no doubt."""
    matched: str = ""
    """The name or alias that the words hit."""


def words(text: str) -> tuple[str, ...]:
    """Split a name into comparable words: lower case, letters and numbers apart, `v1.0` and `1.0` alike."""
    text = text.lower().replace("_", ".")
    return tuple(
        word.strip(".") for word in re.findall(r"\d+(?:\.\d+)*[a-z]*|[a-z]+\d*(?:\.\d+)*", text) if word.strip(".")
    )


class _Name(Struct, frozen=True):
    text: str
    key: str
    """Letters and digits alone."""
    words: frozenset[str]
    position: int
    alias: bool


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _split(text: str) -> tuple[str, ...]:
    # 8b and 8 b, qwen2.5 and qwen 2.5, gemma3 and gemma-3 are the same thing.
    pieces: list[str] = []
    for word in words(text):
        pieces += re.findall(r"\d+(?:\.\d+)*|[a-z]+", word)
    joined: list[str] = []
    for piece in pieces:
        if piece in {"b", "m", "e", "k"} and joined and joined[-1][0].isdigit():
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


@lru_cache(maxsize=1)
def _names() -> tuple[_Name, ...]:
    found: list[_Name] = []
    for position, listing in enumerate(shipped.compiled().listings):
        own = {listing.name, listing.hf_id.rpartition("/")[2], listing.hf_id}
        found += [_Name(text, _key(text), frozenset(_split(text)), position, alias=False) for text in sorted(own)]
        for alias in listing.aliases:
            short = alias.rpartition("/")[2]
            found += [_Name(text, _key(text), frozenset(_split(text)), position, alias=True) for text in (alias, short)]
    return tuple(found)


@lru_cache(maxsize=1)
def _exact() -> dict[str, tuple[_Name, ...]]:
    found: dict[str, list[_Name]] = {}
    for name in _names():
        found.setdefault(name.key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def find_model(query: str) -> ModelMatch:
    """Find the model that a name means; raises `UnknownModel` with the nearest names.

    Case and punctuation do not matter, words may be left out. What could mean several models means the canonical
    instruct release, the newest first; the others are in `alternatives`. A release of the same shape as a catalog
    model (a base model, a fine-tune of its maker) is answered with that shape under its own name.
    """
    key = _key(query)
    exact = _exact().get(key, ())
    if exact:
        owner = next((name for name in exact if not name.alias), exact[0])
        if owner.alias and not _only_base(owner):
            return ModelMatch(spec=_as_alias(owner.text, owner.position), matched=owner.text)
        if "/" in query and owner.alias:
            return ModelMatch(spec=_as_alias(owner.text, owner.position), matched=owner.text)
        if not owner.alias:
            others = tuple(_others(frozenset(_split(query)), owner.position))
            return ModelMatch(spec=shipped.model_at(owner.position), alternatives=others, matched=owner.text)
    wanted = frozenset(_split(query.rpartition("/")[2] or query)) - frozenset({"gguf"})
    ranked = _ranked(wanted)
    if not ranked:
        raise UnknownModel(query, nearest_models(query))
    best = ranked[0]
    others = tuple(dict.fromkeys(_listed(name) for name in ranked[1:] if name.position != best.position))
    if best.alias and not _only_base(best):
        return ModelMatch(spec=_as_alias(best.text, best.position), alternatives=others[:8], matched=best.text)
    return ModelMatch(spec=shipped.model_at(best.position), alternatives=others[:8], matched=best.text)


def _listed(name: _Name) -> str:
    return shipped.compiled().listings[name.position].name


def _only_base(name: _Name) -> bool:
    """Tell whether an alias is the base model of its shape's instruct release, or another spelling of it."""
    listing = shipped.compiled().listings[name.position]
    own = frozenset(_split(listing.name)) | frozenset(_split(listing.hf_id.rpartition("/")[2]))
    return not (frozenset(_split(name.text.rpartition("/")[2])) - own - _NEUTRAL)


def _others(wanted: frozenset[str], position: int) -> list[str]:
    found = [_listed(name) for name in _ranked(wanted) if name.position != position]
    return list(dict.fromkeys(found))[:8]


def _ranked(wanted: frozenset[str]) -> list[_Name]:
    """Order the names that have all wanted words: fewest extra words, own names, canonical, newest."""
    if not wanted:
        return []
    listings = shipped.compiled().listings
    hits: dict[tuple[int, str], tuple[tuple[float, ...], _Name]] = {}
    for name in _names():
        if not wanted <= name.words:
            continue
        listing = listings[name.position]
        extra = len(name.words - wanted - _NEUTRAL)
        instruct = bool(name.words & _INSTRUCT) or listing.canonical
        date = int(re.sub(r"\D", "", listing.release_date or "0").ljust(8, "0") or 0)
        rank = (extra, name.alias and not _only_base(name), not listing.canonical, not instruct, -date, len(name.text))
        place = (name.position, name.text.rpartition("/")[2].lower() if name.alias else "")
        if place not in hits or rank < hits[place][0]:
            hits[place] = (rank, name)
    return [name for _, name in sorted(hits.values(), key=lambda hit: hit[0])]


def nearest_models(query: str, limit: int = 5) -> tuple[str, ...]:
    """Name the models closest to words that hit none."""
    from difflib import SequenceMatcher  # noqa: PLC0415

    wanted = frozenset(_split(query))
    key = _key(query.rpartition("/")[2])
    scored: list[tuple[float, str]] = []
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(key)
    shared = [(len(wanted & name.words), name) for name in _names() if not name.alias and "/" not in name.text]
    most = sorted(shared, key=lambda hit: -hit[0])[:60]
    for common, name in most:
        matcher.set_seq1(name.key)
        scored.append((common + 2 * matcher.ratio(), _listed(name)))
    return tuple(dict.fromkeys(name for _, name in sorted(scored, key=lambda hit: (-hit[0], hit[1]))))[:limit]


def _as_alias(hf_id: str, position: int) -> ModelSpec:
    """Give the shape of a catalog model under the name of another release of the same shape."""
    spec = shipped.model_at(position)
    full = next((alias for alias in spec.aliases if alias.rpartition("/")[2] == hf_id.rpartition("/")[2]), hf_id)
    short = full.rpartition("/")[2]
    return structs.replace(
        spec,
        name=short.lower(),
        title=short.replace("-", " "),
        hf_id=full,
        aliases=(spec.hf_id or spec.name, *(alias for alias in spec.aliases if alias != full)),
        canonical=False,
        gguf_repos=(),
        release_date=None,
        sources=(*spec.sources, f"same shape as {spec.hf_id}"),
    )


@lru_cache(maxsize=1)
def _gpu_names() -> tuple[tuple[frozenset[str], int], ...]:
    return tuple((frozenset(_gpu_words(name)), at) for at, name in enumerate(shipped.compiled().gpu_names))


def _gpu_words(text: str) -> tuple[str, ...]:
    # "80GB", "80 GB", "RTX3090" and "7900XTX" fall apart into number and letters; "M4" and "A100" stay whole.
    pieces: list[str] = []
    for word in re.findall(r"[a-z0-9.]+", text.lower()):
        if re.fullmatch(r"[a-z]{1,3}\d+(?:\.\d+)?[a-z]?", word) and not re.fullmatch(r"(?:rtx|gtx|rx)\d+[a-z]*", word):
            pieces.append(word)
        else:
            pieces += re.findall(r"\d+(?:\.\d+)?|[a-z]+", word)
    return tuple(pieces)


_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*gi?b\b", re.IGNORECASE)


def find_datasheet(query: str, memory_bytes: int | None = None) -> Datasheet:
    """Find the accelerator that a name means; raises `UnknownGpu` with the nearest names.

    Vendor and brand words may be left out. A memory size, in the name or given, picks among variants; without one the
    plainest name wins (no `Ti`, `Laptop` or `D`), then the larger memory.
    """
    memory = _MEMORY.search(query)
    size = memory_bytes if memory_bytes is not None else (float(memory.group(1)) * GIB if memory else None)
    bare = _MEMORY.sub(" ", query) if memory else query
    wanted = frozenset(_gpu_words(bare)) - _GPU_NEUTRAL
    sheets = shipped.compiled().gpu_names
    best: tuple[tuple[float, ...], int] | None = None
    for name_words, at in _gpu_names():
        if not wanted or not wanted <= name_words:
            continue
        extra = len(name_words - wanted - _GPU_NEUTRAL - {word for word in name_words if word[0].isdigit()})
        sheet = shipped.datasheet_at(at)
        options = sheet.memory_options_bytes or ((sheet.memory_bytes,) if sheet.memory_bytes else ())
        gap = 0.0
        if size is not None and options:
            gap = min(abs(option - size) for option in options) / size
        named = 0 if _key(sheets[at]) == _key(query) else 1
        # A size that is off by more than a tenth is another variant.
        rank = (named, gap > 0.1, extra, gap, -(sheet.memory_bytes or 0), len(sheets[at]))  # noqa: PLR2004
        if best is None or rank < best[0]:
            best = (rank, at)
    if best is None:
        raise UnknownGpu(query, nearest_gpus(query))
    return shipped.datasheet_at(best[1])


def nearest_gpus(query: str, limit: int = 5) -> tuple[str, ...]:
    """Name the accelerators closest to words that hit none."""
    from difflib import SequenceMatcher  # noqa: PLC0415

    wanted, key = frozenset(_gpu_words(query)), _key(query)
    names = shipped.compiled().gpu_names
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(key)
    shared = sorted(((len(wanted & name_words), names[at]) for name_words, at in _gpu_names()), key=lambda hit: -hit[0])
    scored: list[tuple[float, str]] = []
    for common, name in shared[:60]:
        matcher.set_seq1(_key(name))
        scored.append((common + 2 * matcher.ratio(), name))
    return tuple(name for _, name in sorted(scored, key=lambda hit: (-hit[0], hit[1])))[:limit]
