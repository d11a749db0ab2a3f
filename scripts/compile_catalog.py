"""Compile the readable entries into the files that are shipped: `python scripts/compile_catalog.py [--check]`.

The second file holds what the estimator sums of every model, so it also follows from `willitrun_estimator.weights` and
what that uses.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("catalog", "probe", "estimator")]

from willitrun_catalog import shipped, sums  # noqa: E402
from willitrun_catalog.datasheet import Datasheet  # noqa: E402
from willitrun_catalog.entries import read_datasheets, read_models  # noqa: E402
from willitrun_catalog.model import ModelSpec  # noqa: E402
from willitrun_catalog.quant import ladder  # noqa: E402
from willitrun_catalog.shipped import Compiled, Listing, SearchName, pack  # noqa: E402
from willitrun_catalog.sums import ModelSums, checksum  # noqa: E402
from willitrun_catalog.words import GPU_NOISE, RELEASE_WORDS, gpu_words, key, model_words  # noqa: E402
from willitrun_estimator.weight_sums import packed  # noqa: E402
from willitrun_estimator.weights import weight_profile  # noqa: E402

ENCODER = msgspec.msgpack.Encoder(order="deterministic")
MEMORY = re.compile(r"\b\d+\s*GB\b")


def compile_catalog(specs: Sequence[ModelSpec], sheets: Sequence[Datasheet]) -> bytes:
    """Encode all entries with their index; the same entries give the same bytes."""
    ids: dict[str, list[int]] = {}
    for number, sheet in enumerate(sheets):
        for pci_id in sheet.pci_ids:
            ids.setdefault(pci_id, []).append(number)
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
        listings=ENCODER.encode(listings),
        names=tuple(ENCODER.encode(name) for name in names),
        keys={name: tuple(found) for name, found in keys.items()},
        models=tuple(encoded(spec) for spec in specs),
        gpu_names=tuple(sheet.name for sheet in sheets),
        gpu_search=ENCODER.encode(searched),
        gpus=tuple(ENCODER.encode(sheet) for sheet in sheets),
        gpu_ids={pci_id: tuple(found) for pci_id, found in ids.items()},
    )
    return ENCODER.encode(whole)


def encoded(spec: ModelSpec) -> bytes:
    """Encode one model."""
    return ENCODER.encode(pack(spec))


def compile_sums(specs: Sequence[ModelSpec]) -> bytes:
    """Encode the weights of every model in every quantization that is offered for it."""
    return ENCODER.encode({spec.name: ENCODER.encode(model_sums(spec)) for spec in specs})


def model_sums(spec: ModelSpec) -> ModelSums:
    """Sum one model's weights."""
    profiles = {quant: weight_profile(spec, quant) for quant in ladder(spec)}
    any_quant = next(iter(profiles.values()))
    return ModelSums(
        checksum=checksum(encoded(spec)),
        params=any_quant.params,
        active_params=any_quant.active_params,
        quants={quant: msgspec.Raw(ENCODER.encode(packed(profile))) for quant, profile in profiles.items()},
    )


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
    """Write the compiled files, or with `--check` tell whether they are up to date."""
    specs, sheets = read_models(), read_datasheets()
    made = {Path(shipped.COMPILED): compile_catalog(specs, sheets), Path(sums.COMPILED): compile_sums(specs)}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, data in made.items() if not path.exists() or path.read_bytes() != data]
        print(f"out of date: {', '.join(stale)}; run scripts/compile_catalog.py" if stale else "up to date")
        return 1 if stale else 0
    for path, data in made.items():
        path.write_bytes(data)
        print(f"{path.relative_to(ROOT)}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
