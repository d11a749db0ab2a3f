"""`fleet export`: which format takes what, and from where."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from willitrun_here.fleet.exporters.textfile import PlannedSpeed, Reporting
from willitrun_probe.machine import Machine

if TYPE_CHECKING:
    from sqlalchemy import Engine


def export_inventory(engine: Engine, form: str, *, now: float) -> bytes:
    """Return the machines of the inventory as `csv`, `netbox` or `netbox-csv`; those gone are left out of NetBox's."""
    from willitrun_here.fleet import query  # noqa: PLC0415 - the database's libraries are an extra
    from willitrun_here.fleet.exporters import netbox, table  # noqa: PLC0415

    with engine.connect() as connection:
        if form == "csv":
            return table.csv_text(query.every_machine(connection, query.MachineFilter(), now=now)).encode()
        document = netbox.netbox(query.present_machines(connection, now=now))
    if form == "netbox-csv":
        return netbox.inventory_items_csv(document).encode()
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def export_machine(machine: Machine, form: str, *, models: Iterable[str], endpoint: str, now: float) -> bytes:
    """Return this machine as `prometheus`, `nfd` or `ansible`, or push it (`otlp`)."""
    from willitrun_here.fleet.exporters import ansible, nfd, otlp, textfile  # noqa: PLC0415

    plans = planned(machine, models)
    runs = {plan.model: plan.quant for plan in plans}
    if form == "prometheus":
        return textfile.textfile(machine, reporting(), plans)
    if form == "nfd":
        return nfd.feature_file(machine, now=datetime.fromtimestamp(now, UTC), runs=runs).encode()
    if form == "ansible":
        return ansible.local_fact(machine, runs=runs).encode()
    from willitrun_here.fleet.identity import fingerprint  # noqa: PLC0415

    otlp.push(machine, endpoint, host_id=fingerprint(Path("/")).machine)
    return b""


def planned(machine: Machine, models: Iterable[str]) -> list[PlannedSpeed]:
    """Plan the named models; those that do not run are left out."""
    plans = []
    for name in models:
        from willitrun_estimator.request import Request  # noqa: PLC0415 - only where models were named
        from willitrun_here.fleet.planner import find_catalog_model, plan  # noqa: PLC0415

        spec = find_catalog_model(name)
        answer = plan(machine, spec, Request())
        decode = answer.speed.decode_tokens_per_s if answer.speed is not None else None
        if answer.plan is not None and answer.fit.status != "too-large" and decode is not None:
            plans.append(
                PlannedSpeed(
                    model=spec.name,
                    quant=answer.plan.quant,
                    engine=answer.plan.engine,
                    decode_tokens_per_s=decode.expected,
                )
            )
    return plans


def reporting() -> Reporting:
    """Read how this machine's agent fares; a machine that never reported has none."""
    from willitrun_here.fleet.identity import load_agent, state_directory  # noqa: PLC0415
    from willitrun_here.fleet.spool import Spool  # noqa: PLC0415

    directory = state_directory(os.environ)
    if not (directory / "agent.json").exists():
        return Reporting()
    agent, spool = load_agent(directory), Spool(directory / "spool")
    return Reporting(
        delivered_at=agent.delivered_at,
        failures=agent.failures,
        waiting=len(spool.entries()),
        dropped=spool.dropped,
    )
