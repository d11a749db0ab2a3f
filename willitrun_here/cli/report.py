"""`report`: tell a fleet server (or a file) what this machine is."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from willitrun_here.cli.basic_options import MACHINE

if TYPE_CHECKING:
    from willitrun_here.fleet.agent import Delivery, Setup
    from willitrun_here.fleet.send import Send

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option("--to", metavar="URL|FILE|-", help="A fleet server, a file to carry there by hand, or stdout.")
@click.option("--enrol-token-file", type=FILE, help="File with an enrolment token (see: fleet token).")
@click.option("--every", metavar="S", type=click.IntRange(min=1), help="Keep running, one beat every S seconds.")
@click.option("--print", "show", is_flag=True, help="Print exactly what would go, facts included, and send nothing.")
@click.option("--hostname", type=click.Choice(("clear", "hash", "off")), default="clear", help="What to tell of it.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="Label of this machine; repeatable.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Identity and spool live here.")
@click.option("--ca-file", type=FILE, help="Authority that signed the server's certificate.")
@click.option("--client-cert", type=FILE, help="Certificate of this agent, for servers that take one.")
@click.option("--client-key", type=FILE, help="Its key.")
@click.option("--allow-plain-http", is_flag=True, help="Send over unencrypted HTTP beyond this machine.")
@click.option("--patient", is_flag=True, help="Keep the growing pause between attempts, as timers should.")
@MACHINE
def report(to: str | None, machine: str, every: int | None, show: bool, **options: Any) -> int:
    """Report this machine into a fleet inventory.

    Sent are hardware, drivers, engines, free memory and measured runs; never serial numbers, addresses, users,
    processes or paths. What the server does not take is kept and sent later.
    """
    from willitrun_here.fleet.agent import Setup, labels_of  # noqa: PLC0415 - nothing of the fleet without need
    from willitrun_here.fleet.errors import FleetUsageError  # noqa: PLC0415
    from willitrun_here.fleet.identity import fingerprint, state_directory  # noqa: PLC0415

    if to is None and not show:
        raise FleetUsageError("where to report is not said", "Give --to URL, --to FILE or --to -.")
    setup = Setup(
        directory=options["state_dir"] or state_directory(os.environ),
        hostname=options["hostname"],
        labels=labels_of(options["labels"]),
        fingerprint=fingerprint(Path("/")),
        certified=options["client_cert"] is not None,
    )
    if show or to is None or not to.startswith(("http://", "https://")):
        return write_once(machine, setup, "-" if show or to is None else to)
    send, token = connection(to, options)
    while True:
        code = one_beat(machine, setup, send, token, patient=options["patient"] or every is not None)
        if every is None:
            return code
        from random import uniform  # noqa: PLC0415

        time.sleep(every * uniform(0.8, 1.2))  # noqa: S311 - spreads load, protects nothing


def connection(url: str, options: dict[str, Any]) -> tuple[Send, str | None]:
    """Return the way to the server and the enrolment token."""
    from willitrun_here.fleet.identity import read_secret  # noqa: PLC0415
    from willitrun_here.fleet.send import Security, connect  # noqa: PLC0415

    security = Security(
        ca_file=options["ca_file"],
        certificate_file=options["client_cert"],
        key_file=options["client_key"],
        allow_plain_http=options["allow_plain_http"],
    )
    if options["allow_plain_http"] and url.startswith("http://"):
        sys.stderr.write("willitrun-here: warning: the token and the report go unencrypted\n")
    path = options["enrol_token_file"]
    return connect(url, security), None if path is None else read_secret(path)


def one_beat(machine: str, setup: Setup, send: Send, token: str | None, *, patient: bool) -> int:
    """Probe, keep, deliver; say how it went on stderr. 0 when nothing is left waiting."""
    from willitrun_here.fleet.agent import beat  # noqa: PLC0415
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    delivery = beat(
        open_machine(machine), setup, send, enrol_token=token, now=time.time, patient=patient, uptime_s=uptime_s()
    )
    sys.stderr.write(sentence(delivery) + "\n")
    return 0 if delivery.problem is None and not delivery.rejected else 4


def sentence(delivery: Delivery) -> str:
    """Say how handing over went."""
    parts = [f"{delivery.delivered} delivered"]
    parts += [f"{delivery.rejected} refused for good (kept aside)"] if delivery.rejected else []
    parts += [f"{delivery.waiting} kept for later"] if delivery.waiting else []
    text = "willitrun-here: reports: " + ", ".join(parts)
    if delivery.problem is not None:
        text += f"; {delivery.problem}"
    if delivery.next_try_at is not None:
        text += f"; next attempt in {max(0.0, delivery.next_try_at - time.time()):.0f} s"
    return f"{text}\n  {delivery.advice}" if delivery.advice else text


def write_once(machine: str, setup: Setup, target: str) -> int:
    """Write one whole report to a file or stdout."""
    from willitrun_here.fleet.agent import carried  # noqa: PLC0415
    from willitrun_here.fleet.durable import write_durably  # noqa: PLC0415
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    body = carried(open_machine(machine), setup, uptime_s=uptime_s(), take=target != "-")
    if target == "-":
        sys.stdout.buffer.write(body + b"\n")
        sys.stdout.flush()
    else:
        write_durably(Path(target), body + b"\n", mode=0o644)
    return 0


def uptime_s() -> float | None:
    """Return the seconds since this machine started, None where the system does not tell."""
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
