"""Compile the catalog's readable entries into the file that is shipped: `python scripts/compile_catalog.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "catalog")]

from willitrun_catalog.entries import read_datasheets, read_models, read_quality  # noqa: E402
from willitrun_catalog.shipped import COMPILED, Compiled, Listing, pack  # noqa: E402


def compile_catalog() -> bytes:
    """Encode all entries with their index; the same entries give the same bytes."""
    specs, sheets = read_models(), read_datasheets()
    ids: dict[str, list[int]] = {}
    for number, sheet in enumerate(sheets):
        for pci_id in sheet.pci_ids:
            ids.setdefault(pci_id, []).append(number)
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    whole = Compiled(
        listings=tuple(
            Listing(
                name=spec.name,
                hf_id=spec.hf_id or "",
                aliases=spec.aliases,
                canonical=spec.canonical,
                release_date=spec.release_date or "",
                params=spec.params or 0,
            )
            for spec in specs
        ),
        models=tuple(msgspec.Raw(encoder.encode(pack(spec))) for spec in specs),
        gpu_names=tuple(sheet.name for sheet in sheets),
        gpus=tuple(msgspec.Raw(encoder.encode(sheet)) for sheet in sheets),
        gpu_ids={pci_id: tuple(found) for pci_id, found in ids.items()},
        quality=read_quality(),
    )
    return encoder.encode(whole)


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
