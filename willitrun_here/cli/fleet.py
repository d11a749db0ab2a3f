"""`fleet`: the inventory server and the questions one asks it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from willitrun_here.cli.options import JSON, TOKENS
from willitrun_here.cli.output import console, note, print_json, print_text

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from willitrun_here.fleet.query import MachineFilter
    from willitrun_here.fleet.where import Questions, Where

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
DB = click.option(
    "--db", metavar="URL", default="fleet.db", show_default=True, envvar="WILLITRUN_FLEET_DB",
    help="An SQLite file, sqlite:///PATH or postgresql://USER@HOST/NAME (password in ~/.pgpass).",
)  # fmt: skip
SECONDS_A_DAY = 86400.0


@click.group()
def fleet() -> None:
    """Keep an inventory of machines and ask which of them runs a model."""


@fleet.command()
@DB
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8470, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--certificate", type=FILE, help="TLS certificate chain.")
@click.option("--key", type=FILE, help="Its key.")
@click.option("--client-ca", type=FILE, help="Take agents' certificates of this authority instead of tokens.")
@click.option("--allow-plain-http", is_flag=True, help="Listen beyond this machine without TLS.")
@click.option("--trust-proxy", "proxies", multiple=True, metavar="ADDRESS", help="Believe its X-Forwarded-User.")
@click.option("--archive", type=click.Path(dir_okay=False), help="Machines gone for 90 days move to this file.")
def serve(db: str, host: str, port: int, certificate: Path | None, key: Path | None, **options: Any) -> None:
    """Run the inventory server."""
    from willitrun_here.fleet import planner  # noqa: PLC0415 - the server's libraries are an extra
    from willitrun_here.fleet.serve import Listen, check_listen  # noqa: PLC0415
    from willitrun_here.fleet.serve import serve as run  # noqa: PLC0415

    listen = Listen(
        host=host, port=port, certificate_file=certificate, key_file=key, client_ca_file=options["client_ca"],
        allow_plain_http=options["allow_plain_http"],
    )  # fmt: skip
    check_listen(listen)
    if options["allow_plain_http"]:
        note("willitrun-here: warning: tokens and reports go unencrypted")
    engine = database(db)
    from willitrun_here.fleet.app import Fleet, Options, create_app  # noqa: PLC0415

    inventory = Fleet(
        engine,
        planner=planner.plan,
        find_model=planner.find_catalog_model,
        model_names=planner.model_names,
        catalog_version=planner.catalog_version(),
        options=Options(
            trusted_proxies=options["proxies"],
            archive=options["archive"],
            secure_cookies=certificate is not None,
        ),
    )
    scheme = "http" if certificate is None else "https"
    note(f"willitrun-here: fleet inventory on {scheme}://{host}:{port}")
    run(create_app(inventory), listen)


@fleet.command()
@DB
@click.option("--read", is_flag=True, help="A token for readers (API, pages, /metrics) instead of enrolment.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Lifetime; 7 for enrolment, 365 for reading.")
@click.option("--revoke", "revoked", type=FILE, help="Revoke the token in this file instead.")
@click.option("--note", "remark", default="", help="What it is for.")
def token(db: str, read: bool, days: float | None, revoked: Path | None, remark: str) -> int:
    """Print one new token. It is stored as a hash and cannot be shown again."""
    engine = database(db)
    from willitrun_here.fleet.auth import create_token, revoke_token  # noqa: PLC0415 - needs the extra
    from willitrun_here.fleet.identity import read_secret  # noqa: PLC0415

    if revoked is not None:
        return 0 if revoke_token(engine, read_secret(revoked), now=time.time()) else 4
    lifetime_s = None if days is None else days * SECONDS_A_DAY
    print_text(create_token(engine, "read" if read else "enrol", now=time.time(), lifetime_s=lifetime_s, note=remark))
    return 0


@fleet.command("list")
@DB
@click.option("--name", "q", default="", help="Part of the name.")
@click.option("--gpu", default="", help="Part of a GPU's name.")
@click.option("--label", default="", metavar="KEY=VALUE", help="Label.")
@click.option("--status", type=click.Choice(("live", "late", "gone")), help="Seen or not.")
@click.option("--sort", default="name", show_default=True, help="name, vram, free, ram, seen; -name … for descending.")
@JSON
def list_command(db: str, as_json: bool, status: str | None, **wanted: str) -> None:
    """List the machines of the inventory."""
    engine = database(db)
    from willitrun_here.fleet.terminal import machine_table  # noqa: PLC0415 - needs the extra

    rows = machines(engine, {**wanted, "status": status or ""})
    if as_json:
        print_json({"schema": "willitrun.machines/1", "machines": rows})
    else:
        console().print(machine_table(rows))


@fleet.command()
@click.argument("model")
@DB
@click.option("--context", type=TOKENS, help="Context length in tokens.")
@click.option("--min-decode", type=click.FloatRange(min=0, min_open=True), help="Least tokens per second.")
@click.option("--users", type=click.IntRange(min=1), default=1, help="Requests at the same time.")
@click.option("--quant", help="Quantization; the best one where it is not given.")
@click.option("--engine", "serving", type=click.Choice(("llama.cpp", "ollama", "vllm")), help="Inference engine.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Rows of the table.")
@JSON
def where(model: str, db: str, limit: int, as_json: bool, **asked: Any) -> int:
    """Tell which machines run MODEL now, if idle, or not, and because of what. Exit code 1 when none does."""
    engine = database(db)
    answer = questions(engine, model, asked)
    if as_json:
        print_json(answer)
    else:
        from willitrun_here.fleet.terminal import where_table  # noqa: PLC0415 - rich is slow to import

        console().print(where_table(answer, limit))
    return 0 if any(row.verdict.startswith("runs") for row in answer.machines) else 1


@fleet.command("import")
@click.argument("files", type=click.File("rb"), nargs=-1, required=True)
@DB
@JSON
def import_command(files: tuple[Any, ...], db: str, as_json: bool) -> int:
    """Store reports that were carried here as files (report --to FILE). `-` reads stdin."""
    engine = database(db)
    from willitrun_here.fleet.carry import documents, import_reports  # noqa: PLC0415 - needs the extra

    named = (item for file in files for item in documents(file.name, file.read()))
    result = import_reports(engine, named, clock=time.time)
    if as_json:
        print_json(result)
    else:
        print_text(f"{result.stored} stored, {result.known} already known")
    for problem in result.problems:
        note(f"willitrun-here: {problem}")
    return 4 if result.problems else 0


def database(url: str) -> Engine:
    """Open the database."""
    from willitrun_here.fleet.database import open_database  # noqa: PLC0415 - needs the extra

    return open_database(url)


def machines(engine: Engine, wanted: dict[str, Any]) -> list[Any]:
    """Return every machine that the options let through."""
    import msgspec  # noqa: PLC0415

    from willitrun_here.fleet.errors import FleetUsageError  # noqa: PLC0415
    from willitrun_here.fleet.query import MachineFilter, every_machine  # noqa: PLC0415

    try:
        filtered: MachineFilter = msgspec.convert(wanted, MachineFilter)
    except msgspec.ValidationError as error:
        raise FleetUsageError(str(error)) from error
    with engine.connect() as connection:
        return every_machine(connection, filtered, now=time.time())


def questions(engine: Engine, model: str, asked: dict[str, Any]) -> Where:
    """Ask all machines about one model, which may also be a file or a folder here."""
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.ask import open_model  # noqa: PLC0415
    from willitrun_here.fleet import planner  # noqa: PLC0415
    from willitrun_here.fleet.where import Questions  # noqa: PLC0415

    request = Request(
        context=asked["context"],
        min_decode=asked["min_decode"],
        concurrency=asked["users"],
        quant=asked["quant"],
        engine=asked["serving"],
    )
    asking: Questions = Questions(engine, planner.plan, planner.catalog_version())
    return asking.where(open_model(model), request)
