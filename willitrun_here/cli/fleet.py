"""`fleet`: the inventory server and the questions one asks it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from willitrun_here.cli.basic_options import JSON, MACHINE
from willitrun_here.cli.options import TOKENS
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
NOBODY = "No machine has reported yet. On each machine: willitrun-here report --to URL --enrol-token-file FILE"
SECONDS_A_DAY = 86400.0
FORMATS = ("csv", "netbox", "netbox-csv", "prometheus", "nfd", "ansible", "otlp")


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
        planner=planner.screen,
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
    if not rows:
        narrowed = status or any(wanted[name] for name in ("q", "gpu", "label"))
        note("No machine of the inventory is meant by that." if narrowed else NOBODY)


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
        from willitrun_here.fleet.terminal import where_commands, where_table  # noqa: PLC0415 - rich is slow to import

        console().print(where_table(answer, limit))
        if commands := where_commands(answer, limit):
            print_text(commands)
    if not answer.machines:
        note(NOBODY)
    return 0 if any(row.verdict.startswith("runs") for row in answer.machines) else 1


@fleet.command()
@click.argument("model")
@DB
@click.option("--context", type=TOKENS, help="Context length in tokens.")
@click.option("--users", type=click.IntRange(min=1), default=1, help="Requests at the same time.")
@click.option("--quant", help="Quantization; the best one where it is not given.")
@click.option("--assume-idle", is_flag=True, help="Plan on all memory instead of what is free.")
@click.option("--address", "addresses", metavar="NAME=ADDRESS", multiple=True, help="A machine's private address.")
@JSON
def plan(model: str, db: str, addresses: tuple[str, ...], as_json: bool, **asked: Any) -> int:
    """Plan MODEL over several machines and print the commands of every node. Exit code 1 when nothing runs it."""
    engine = database(db)
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.ask import open_model  # noqa: PLC0415
    from willitrun_here.fleet import planner  # noqa: PLC0415
    from willitrun_here.fleet.agent import labels_of  # noqa: PLC0415
    from willitrun_here.fleet.together import plan_together  # noqa: PLC0415

    request = Request(
        context=asked["context"], concurrency=asked["users"], quant=asked["quant"], assume_idle=asked["assume_idle"]
    )
    answer = plan_together(
        engine, open_model(model), request, planner=planner.screen, catalog_version=planner.catalog_version(),
        clock=time.time, addresses=labels_of(addresses),
    )  # fmt: skip
    if as_json:
        print_json(answer)
    else:
        from willitrun_here.fleet.terminal import cluster_text  # noqa: PLC0415 - rich is slow to import

        print_text(cluster_text(answer))
    return 0 if answer.single or answer.groups else 1


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


@fleet.command()
@DB
@click.option("--ray", "ray_address", metavar="ADDRESS", help="A running Ray cluster: HOST:PORT, ray://…, or auto.")
@click.option("--ssh", "hosts_file", type=click.File("r"), help="File with one host a line; `-` reads stdin.")
@click.option("--command", default="willitrun-here report --to -", show_default=True, help="What ssh runs there.")
@JSON
def collect(db: str, ray_address: str | None, hosts_file: Any, command: str, as_json: bool) -> int:
    """Probe machines that have no agent, through a Ray cluster or over ssh, and import the answers."""
    import shlex  # noqa: PLC0415

    from willitrun_here.fleet.errors import FleetUsageError  # noqa: PLC0415

    if (ray_address is None) == (hosts_file is None):
        raise FleetUsageError("give one of --ray and --ssh")
    engine = database(db)
    from willitrun_here.fleet.collect import collect_ray, collect_ssh, read_hosts, store_collected  # noqa: PLC0415

    if ray_address is not None:
        collected = collect_ray(ray_address)
    else:
        collected = collect_ssh(read_hosts(hosts_file.read()), command=shlex.split(command))
    result = store_collected(engine, collected, clock=time.time)
    if as_json:
        print_json(result)
    else:
        print_text(f"{result.stored} machines imported")
    for problem in result.problems:
        note(f"willitrun-here: {problem}")
    return 4 if result.problems else 0


@fleet.command()
@click.argument("form", metavar="FORMAT", type=click.Choice(FORMATS))
@DB
@MACHINE
@click.option("--model", "models", multiple=True, help="Also say how this model runs here; repeatable.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File, replaced in one step.")
@click.option("--endpoint", default="http://127.0.0.1:4318/v1/metrics", show_default=True, help="For otlp.")
def export(form: str, db: str, machine: str, models: tuple[str, ...], output: Path | None, endpoint: str) -> None:
    """Give the inventory (csv, netbox, netbox-csv) or this machine (prometheus, nfd, ansible, otlp) to other tools."""
    from willitrun_here.fleet.durable import write_durably  # noqa: PLC0415
    from willitrun_here.fleet.export import export_inventory, export_machine  # noqa: PLC0415

    if form in ("csv", "netbox", "netbox-csv"):
        text = export_inventory(database(db), form, now=time.time())
    else:
        from willitrun_here.machines import open_machine  # noqa: PLC0415

        text = export_machine(open_machine(machine), form, models=models, endpoint=endpoint, now=time.time())
    if output is not None:
        write_durably(output, text, mode=0o644)
    else:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()


@fleet.command()
@click.argument("old")
@click.argument("new")
@DB
def merge(old: str, new: str, db: str) -> None:
    """Join two rows that are one machine: NEW keeps its state and takes OLD's measured runs; OLD is revoked."""
    engine = database(db)
    from willitrun_here.fleet.query import find_agent  # noqa: PLC0415 - needs the extra
    from willitrun_here.fleet.retention import merge_agents  # noqa: PLC0415

    with engine.connect() as connection:
        pair = [one_agent(find_agent(connection, name), name) for name in (old, new)]
    merge_agents(engine, *pair, now=time.time())
    print_text(f"{old} is now part of {new}")


def one_agent(found: list[str], name: str) -> str:
    """Return the one agent a name means; raises FleetUsageError."""
    from willitrun_here.fleet.errors import FleetUsageError  # noqa: PLC0415

    if len(found) != 1:
        several = f"{name!r} means {len(found)} machines"
        raise FleetUsageError(several if found else f"there is no machine {name!r}", "Give the agent's id.")
    return found[0]


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
    asking: Questions = Questions(engine, planner.screen, planner.catalog_version())
    return asking.where(open_model(model), request)
