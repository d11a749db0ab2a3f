"""Forgiving search by name, offline: models as people type them. Accelerators are in `find_gpu`."""

from __future__ import annotations

import re
from functools import lru_cache
from math import log

from msgspec import Struct, structs

from willitrun_catalog import shipped
from willitrun_catalog.datasheet import Datasheet
from willitrun_catalog.errors import UnknownGpu, UnknownModel
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.words import RELEASE_WORDS, is_size, key, model_words

__all__ = ["ModelMatch", "UnknownGpu", "UnknownModel", "find_datasheet", "find_model", "nearest_models"]

_MAKERS = frozenset(
    (
        *("meta", "google", "nvidia", "openai", "microsoft", "ibm", "tencent", "baidu", "mistralai", "moonshotai"),
        *("liquidai", "huggingfacetb", "thudm", "zai", "org", "ai", "c", "unsloth", "bartowski"),
    ),
)
"""Words that publishers of converted files put before a model's own name: `openai_gpt-oss-20b`."""
_CONVERTED = re.compile(r"[-_.]gguf$", re.IGNORECASE)
"""How repositories of converted files end, under the converter's account: `unsloth/Qwen3-8B-GGUF`."""
_FORMAT = re.compile(
    r"(?:[-_. ](?:fp8|nvfp4|mxfp4|awq|gptq|int[48]|w[48]a(?:8|16)|bnb|[48][-_]?bit|quantized|autoround|dynamic))+$",
    re.IGNORECASE,
)
"""What quantized checkpoints add to the name of the model they were made from: its shape is that model's."""
_LATEST = re.compile(r":latest$", re.IGNORECASE)
_USUAL_PARAMS = 8e9
"""Where a name leaves the size open, the size nearest to this is meant: most machines can hold it."""
_MOST_ALTERNATIVES = 8
_SAME_SIZE = 0.1
"""Names round the size: 14B for 14.7e9 parameters."""
_FILES = frozenset({"gguf", "qat"})
"""Words that tell how the weights were made or kept, not which model they are: quantization-aware training changes no
shape."""
_SHORTEST_PREFIX = 5
"""Letters of a name without word breaks from which it is completed."""


def find_datasheet(query: str, memory_bytes: int | None = None) -> Datasheet:
    """Find the accelerator that a name means; see `find_gpu`. Raises `UnknownGpu` with the nearest names."""
    from willitrun_catalog import find_gpu  # noqa: PLC0415 - most questions name a model and no accelerator

    return find_gpu.find_datasheet(query, memory_bytes)


class ModelMatch(Struct, frozen=True, kw_only=True):
    """A model that was meant, and what else the words could have meant."""

    spec: ModelSpec
    alternatives: tuple[str, ...] = ()
    """Catalog names, nearest first; empty when the words left no doubt."""
    matched: str = ""
    """The name or alias that the words hit."""


def find_model(query: str, *, others: bool = True) -> ModelMatch:
    """Find the model that a name means; raises `UnknownModel` with the nearest names.

    Without `others` a name that the catalog has in these letters is answered at once, with no alternatives.

    Case and punctuation do not matter, words may be left out. What could mean several models means the canonical
    instruct release: the size nearest to 8B of the version that was named, the newest where none was; the others are
    in `alternatives`. A name that runs words together (`gptoss`) means what begins like it. A release of the same
    shape as a catalog model (a fine-tune of its maker) is answered with that shape under its own name.
    """
    query = _LATEST.sub("", query)
    exact = _exact(key(query))
    converted = _exact(key(_CONVERTED.sub("", query.rpartition("/")[2])))
    own = next((name for name in (*exact, *converted) if not name.alias), None)
    if own is not None:
        more = _alternatives(frozenset(model_words(query)), own.position) if others else ()
        return ModelMatch(spec=shipped.model_at(own.position), alternatives=more, matched=own.text)
    if exact:
        named = "/" in query or not exact[0].plain
        spec = _as_alias(exact[0]) if named else shipped.model_at(exact[0].position)
        more = () if named or not others else _alternatives(frozenset(model_words(query)), exact[0].position)
        return ModelMatch(spec=spec, alternatives=more, matched=exact[0].text)
    wanted = frozenset(model_words(query.rpartition("/")[2] or query)) - _FILES
    ranked = _ranked(wanted) or _ranked(wanted - _MAKERS) or _sized(wanted - _MAKERS) or _run_together(key(query))
    if not ranked:
        shape = _FORMAT.sub("", query)
        if shape != query:
            return find_model(shape, others=others)
        raise UnknownModel(query, nearest_models(query))
    best = ranked[0]
    spec = shipped.model_at(best.position) if best.plain or not best.alias else _as_alias(best)
    rest = tuple(dict.fromkeys(_catalog_name(name) for name in ranked[1:] if name.position != best.position))
    return ModelMatch(spec=spec, alternatives=rest[:_MOST_ALTERNATIVES], matched=best.text)


class _Name(Struct, frozen=True):
    text: str
    position: int
    alias: bool
    plain: bool
    """No word beyond those of the catalog model: the base model of an instruct release, or another spelling."""
    words: frozenset[str]
    short: bool
    """Without the maker before a slash."""


@lru_cache(maxsize=1)
def _names() -> tuple[_Name, ...]:
    return tuple(
        _Name(name.text, name.position, name.alias, name.plain, frozenset(name.words), "/" not in name.text)
        for name in shipped.search_names()
    )


def _exact(wanted: str) -> list[shipped.SearchName]:
    return shipped.names_with_key(wanted) if wanted else []


def _catalog_name(name: _Name) -> str:
    return shipped.listings()[name.position].name


def _alternatives(wanted: frozenset[str], position: int) -> tuple[str, ...]:
    found = [_catalog_name(name) for name in _ranked(wanted) if name.position != position]
    return tuple(dict.fromkeys(found))[:_MOST_ALTERNATIVES]


def _ranked(wanted: frozenset[str]) -> list[_Name]:
    """Order the names that have all wanted words, the likeliest first."""
    if not wanted:
        return []
    listings = shipped.listings()
    sized = any(is_size(word) for word in wanted)
    versioned = any(word[0].isdigit() and not is_size(word) for word in wanted)
    best: dict[tuple[int, str], tuple[tuple[float, ...], _Name]] = {}
    for name in _names():
        if not name.short or not wanted <= name.words:
            continue
        listing = listings[name.position]
        more = name.words - wanted - RELEASE_WORDS - _MAKERS
        extra = [word for word in more if not word[0].isdigit() and not is_size(word) and word != "v"]
        age = -_date(listing.release_date) if not name.alias or name.plain else 0
        distance = 0 if sized else abs(log(max(listing.params, 1) / _USUAL_PARAMS))
        rank = (
            len(extra),
            name.alias and not name.plain,
            not listing.canonical,
            *((distance, age) if versioned else (age, distance)),
            len(name.text),
        )
        place = (name.position, "" if not name.alias or name.plain else name.text)
        if place not in best or rank < best[place][0]:
            best[place] = (rank, name)
    return [name for _, name in sorted(best.values(), key=lambda hit: hit[0])]


def _sized(wanted: frozenset[str]) -> list[_Name]:
    """Order the names that have all words but a size that their maker leaves out: `phi-4-14b` is phi-4, of 14.7B."""
    sizes = {word for word in wanted if is_size(word)}
    totals = [_params(word) for word in sizes if word[0].isdigit()]
    total = max(totals, default=0.0)
    if not total:
        return []
    listings = shipped.listings()
    left = _ranked(wanted - sizes)
    return [name for name in left if abs(listings[name.position].params / total - 1) < _SAME_SIZE]


def _params(word: str) -> float:
    """Read a parameter count: 14b, 1.5b, 360m."""
    return float(re.sub(r"[^\d.]", "", word)) * {"k": 1e3, "m": 1e6}.get(word[-1], 1e9)


def _run_together(wanted: str) -> list[_Name]:
    """Order the names that begin with these letters once their punctuation is gone."""
    if len(wanted) < _SHORTEST_PREFIX:
        return []
    found = [name for name in _names() if name.short and not name.alias and key(name.text).startswith(wanted)]
    words = frozenset.intersection(*(name.words for name in found)) if found else frozenset()
    at = {name.position for name in found}
    return [name for name in _ranked(words) if name.position in at]


def _date(text: str) -> int:
    # To the month: models of one release differ by days.
    return int((re.sub(r"\D", "", text) + "000000")[:6])


def nearest_models(query: str, limit: int = 5) -> tuple[str, ...]:
    """Name the models closest to words that hit none."""
    from difflib import SequenceMatcher  # noqa: PLC0415

    wanted, wanted_key = frozenset(model_words(query)), key(query.rpartition("/")[2])
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted_key)
    own = [name for name in _names() if not name.alias and name.short]
    # Letters in common are quick to count and leave few names for the exact comparison.
    letters = set(wanted_key)
    likely = sorted(
        own,
        key=lambda name: -(2 * len(wanted & name.words) + len(letters & set(name.text.lower())) / len(letters or "x")),
    )[:40]
    scored: list[tuple[float, str]] = []
    for name in likely:
        matcher.set_seq1(key(name.text))
        scored.append((-len(wanted & name.words) - 2 * matcher.ratio(), _catalog_name(name)))
    return tuple(dict.fromkeys(name for _, name in sorted(scored)))[:limit]


def _as_alias(name: _Name | shipped.SearchName) -> ModelSpec:
    """Give the shape of a catalog model under the name of another release of the same shape."""
    spec = shipped.model_at(name.position)
    short = name.text.rpartition("/")[2]
    full = next((alias for alias in spec.aliases if alias.rpartition("/")[2] == short), name.text)
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
