"""Compile the readable entries into the file that is shipped: `python scripts/compile_catalog.py [--check]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "catalog")]

from willitrun_catalog.datasheet import Datasheet  # noqa: E402
from willitrun_catalog.entries import read_datasheets, read_models  # noqa: E402
from willitrun_catalog.model import ModelSpec  # noqa: E402
from willitrun_catalog.shipped import COMPILED, Compiled, Listing, SearchName, pack  # noqa: E402
from willitrun_catalog.words import GPU_NOISE, RELEASE_WORDS, gpu_words, key, model_words  # noqa: E402

MEMORY = re.compile(r"\b\d+\s*GB\b")


def compile_catalog() -> bytes:
    """Encode all entries with their index; the same entries give the same bytes."""
    specs, sheets = read_models(), read_datasheets()
    ids: dict[str, list[int]] = {}
    for number, sheet in enumerate(sheets):
        for pci_id in sheet.pci_ids:
            ids.setdefault(pci_id, []).append(number)
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    listings = tuple(
        Listing(
            name=spec.name,
            canonical=spec.canonical,
            release_date=spec.release_date or "",
            params=spec.params or 0,
        )
        for spec in specs
    )
    names = [name for number, spec in enumerate(specs) for name in model_names(number, spec)]
    keys: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        keys.setdefault(name.key, []).append(position)
    searched = tuple(name for number, sheet in enumerate(sheets) for name in gpu_names(number, sheet))
    whole = Compiled(
        listings=encoder.encode(listings),
        names=tuple(encoder.encode(name) for name in names),
        keys={name: tuple(found) for name, found in keys.items()},
        models=tuple(encoder.encode(pack(spec)) for spec in specs),
        gpu_names=tuple(sheet.name for sheet in sheets),
        gpu_search=encoder.encode(searched),
        gpus=tuple(encoder.encode(sheet) for sheet in sheets),
        gpu_ids={pci_id: tuple(found) for pci_id, found in ids.items()},
    )
    return encoder.encode(whole)


def model_names(number: int, spec: ModelSpec) -> Iterator[SearchName]:
    """List what a model can be searched by: its own names, and those of other releases of the same shape."""
    own = dict.fromkeys((spec.name, (spec.hf_id or "").rpartition("/")[2], spec.hf_id or ""))
    known = {word for text in own for word in model_words(text.rpartition("/")[2])} | RELEASE_WORDS
    for text in own:
        yield SearchName(text, key(text), model_words(text), number)
    for alias in spec.aliases:
        plain = set(model_words(alias.rpartition("/")[2])) <= known
        for text in (alias, alias.rpartition("/")[2]):
            yield SearchName(text, key(text), model_words(text), number, alias=True, plain=plain)


def gpu_names(number: int, sheet: Datasheet) -> Iterator[SearchName]:
    """List what an accelerator can be searched by."""
    for text in (sheet.name, *sheet.also_known_as):
        words = tuple(word for word in gpu_words(MEMORY.sub(" ", text)) if word not in GPU_NOISE)
        yield SearchName(text, key(text), words, number, alias=text != sheet.name)


def main() -> int:
    """Write the compiled file, or with `--check` tell whether it is up to date."""
    made = compile_catalog()
    if "--check" in sys.argv[1:]:
        same = COMPILED.exists() and COMPILED.read_bytes() == made
        print("up to date" if same else "out of date: run scripts/compile_catalog.py")
        return 0 if same else 1
    COMPILED.write_bytes(made)
    print(f"{COMPILED.relative_to(ROOT)}: {len(made)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
