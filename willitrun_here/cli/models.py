"""`models list/show/scan/add/update`: the catalog, what is on this machine, and the user's own entries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.output import console, note, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from willitrun_catalog.model import ModelSpec
    from willitrun_catalog.readers.keep import Kept
    from willitrun_catalog.readers.local import Found

FOLDER = click.Path(path_type=Path, file_okay=False)
VERDICTS_AT_ONCE = 200
"""Reading a model in full takes a few hundredths of a second; beyond this a scan only lists."""


@click.group()
def models() -> None:
    """Look into the model catalog and the models on this machine."""


@models.command("list")
@click.argument("words", nargs=-1)
@JSON
def list_models(words: tuple[str, ...], as_json: bool) -> None:
    """List the models of the catalog and of your own; WORDS narrow the list."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from willitrun_catalog.readers.keep import stale_note  # noqa: PLC0415
    from willitrun_catalog.readers.places import find_places  # noqa: PLC0415

    places = find_places()
    rows = [row for row in _listed(places.user_catalog) if all(word.lower() in row["name"] for word in words)]
    if as_json:
        print_json({"schema": "willitrun.models/1", "models": rows})
    else:
        table = _table(("model", "parameters", "context", "released", "source"), right=("parameters", "context"))
        for row in rows:
            table.add_row(
                row["name"], _params(row["params"]), _count(row["max_context_tokens"]), row["date"], row["source"]
            )
        console().print(table)
    newest = max((row["date"] for row in rows if row["source"] == "catalog"), default="")
    marker = places.scan_cache.with_name("stale-catalog") if places.scan_cache else None
    stale = stale_note(newest, datetime.now(UTC), marker) if not words else None
    if stale:
        note(stale)


def _listed(folder: Path | None) -> list[dict[str, Any]]:
    from willitrun_catalog.readers.user import Entry, entries  # noqa: PLC0415
    from willitrun_catalog.shipped import models as shipped_models  # noqa: PLC0415

    rows = []
    for entry in entries(folder) if folder else ():
        if isinstance(entry, Entry):
            rows.append(_row(entry.model, entry.added_from, entry.added_at[:10]))
        else:
            note(str(entry))
    rows += [_row(spec, "catalog", spec.release_date or "") for spec in shipped_models()]
    return rows


def _row(spec: ModelSpec, source: str, date: str) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "params": spec.params,
        "max_context_tokens": spec.max_context_tokens,
        "capabilities": spec.capabilities,
        "license": spec.license,
        "source": source,
        "date": date,
    }


@models.command("show")
@click.argument("model")
@JSON
def show_model(model: str, as_json: bool) -> None:
    """Show one model: shape, layers, files, where it comes from; for hf:ORG/REPO every quantization in it."""
    from willitrun_catalog.readers.describe import describe, quantizations  # noqa: PLC0415

    offered = quantizations(model)
    facts = describe(model)
    if as_json:
        print_json({"schema": "willitrun.model-facts/1", **facts, "offered": offered})
        return
    from willitrun_probe.units import format_bytes  # noqa: PLC0415

    screen = console()
    table = _table((), right=())
    for name, value in facts.items():
        if value in (None, (), [], "", False):
            continue
        shown = "\n".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        table.add_row(name.replace("_bytes", "").replace("_", " "), format_bytes(value) if "bytes" in name else shown)
    screen.print(table)
    if offered:
        sizes = _table(("quantization", "size", "files", "first file"), right=("size", "files"))
        for row in offered:
            sizes.add_row(row.quant or "?", format_bytes(row.size_bytes), str(len(row.files)), row.files[0])
        screen.print(sizes)


@models.command("scan")
@click.argument("folders", nargs=-1, type=FOLDER)
@click.option("--machine", default="here", help="The machine the verdict is for.")
@click.option("--verdict/--no-verdict", default=True, help="Say whether each model runs.")
@JSON
def scan_models(folders: tuple[Path, ...], machine: str, verdict: bool, as_json: bool) -> int:
    """List the models already on this machine, in the known stores and in FOLDERS, and what is there twice."""
    from willitrun_catalog.readers.duplicates import duplicates  # noqa: PLC0415
    from willitrun_catalog.readers.local import scan  # noqa: PLC0415
    from willitrun_catalog.readers.places import find_places  # noqa: PLC0415

    found = scan(find_places(), folders)
    twice = duplicates(found.models)
    wanted = verdict and len(found.models) <= VERDICTS_AT_ONCE
    verdicts = _verdicts(found.models, machine) if wanted else {}
    if as_json:
        print_json(
            {
                "schema": found.schema,
                "models": [{**_facts(row), "status": verdicts.get(row.model)} for row in found.models],
                "duplicates": twice,
                "problems": found.problems,
                "truncated": found.truncated,
            }
        )
        return 0 if found.models else 1
    from willitrun_probe.units import format_bytes  # noqa: PLC0415

    table = _table(("model", "store", "size", "quant", "architecture", "verdict"), right=("size",))
    for row in found.models:
        state = verdicts.get(row.model, "")
        table.add_row(_short(row.model), row.store, format_bytes(row.size_bytes), row.quant, row.architecture, state)
    screen = console()
    screen.print(table)
    for same in twice:
        screen.print(
            f"{format_bytes(same.reclaim_bytes)} to reclaim ({same.basis}): {', '.join(map(_short, same.models))}"
        )
    for problem in found.problems:
        note(problem.reason if problem.path in problem.reason else f"{problem.path}: {problem.reason}")
    if not found.models:
        note("No model was found on this machine.")
    return 0 if found.models else 1


def _short(model: str) -> str:
    """Write a path below the home folder as people type it."""
    home = str(Path.home()) + "/"
    return f"~/{model.removeprefix(home)}" if model.startswith(home) else model


def _facts(row: Found) -> dict[str, Any]:
    from msgspec import structs  # noqa: PLC0415

    return structs.asdict(row)


def _verdicts(rows: tuple[Found, ...], machine: str) -> dict[str, str]:
    """Say for each model how it would run; what cannot be read is left to `check`, which says why."""
    from willitrun_catalog.errors import CatalogError  # noqa: PLC0415
    from willitrun_catalog.readers import open_model  # noqa: PLC0415
    from willitrun_estimator.answer import answer_on  # noqa: PLC0415
    from willitrun_estimator.errors import EstimatorError  # noqa: PLC0415
    from willitrun_estimator.hardware import devices  # noqa: PLC0415
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.ask import sheet_of  # noqa: PLC0415
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    request = Request()
    if not rows:
        return {}
    where = devices(open_machine(machine), request, sheet_of)
    found: dict[str, str] = {}
    for row in rows:
        try:
            found[row.model] = answer_on(where, open_model(row.model), request, sections=frozenset({"plan"})).fit.status
        except (CatalogError, EstimatorError):
            found[row.model] = "unreadable"
    return found


@models.command("add")
@click.argument("source")
@click.option("--name", help="What to call it; its own name by default.")
@click.option("--into", type=FOLDER, help="Folder to write to; your own catalog by default.")
@JSON
def add_model(source: str, name: str | None, into: Path | None, as_json: bool) -> None:
    """Keep a model in your catalog: a file, a folder, ollama:NAME or hf:ORG/REPO[:FILE|QUANT]."""
    from willitrun_catalog.readers.keep import add_source  # noqa: PLC0415

    kept = add_source(source, _catalog_folder(into), name=name)
    if as_json:
        print_json(kept)
    else:
        console().print(f"{kept.name}  {kept.path}")


@models.command("update")
@click.argument("organisations", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 200), default=20, help="How many models of each organisation.")
@click.option("--into", type=FOLDER, help="Folder to write to; your own catalog by default.")
@JSON
def update_models(organisations: tuple[str, ...], limit: int, into: Path | None, as_json: bool) -> int:
    """Read your hub models again, and add the most used ones of ORGANISATIONS."""
    from willitrun_catalog.readers.keep import update  # noqa: PLC0415

    done: list[Kept] = []
    for kept in update(_catalog_folder(into), organisations, limit=limit):
        done.append(kept)
        if not as_json:
            note(kept.reason or f"{kept.source}  {kept.path}")
    if as_json:
        print_json({"schema": "willitrun.update/1", "models": done})
    return 4 if done and all(kept.path is None for kept in done) else 0


def _catalog_folder(into: Path | None) -> Path:
    from willitrun_catalog.readers.places import find_places  # noqa: PLC0415
    from willitrun_here.errors import UsageError  # noqa: PLC0415

    folder = into or find_places().user_catalog
    if folder is None:
        raise UsageError("there is no folder for your catalog", "name one with --into")
    return folder


def _table(titles: tuple[str, ...], *, right: tuple[str, ...]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - slow to import, needed only for tables

    table = Table(box=None, header_style="bold", show_header=bool(titles))
    for title in titles:
        table.add_column(
            title, justify="right" if title in right else "left", overflow="fold" if title == "model" else "ellipsis"
        )
    return table


def _params(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f} B" if count >= 10**9 else f"{count / 1e6:.0f} M"


def _count(tokens: int) -> str:
    return f"{tokens:,}"
