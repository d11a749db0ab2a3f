"""`fleet plan`: the machines that run a model alone, and the groups that run it together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import select

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.request import Request
from willitrun_here.fleet import tables
from willitrun_here.fleet.cluster import ClusterPlan, GroupPlan, Node, rpc_group, vllm_groups
from willitrun_here.fleet.cluster_commands import llama_rpc, vllm_native, vllm_on_ray
from willitrun_here.fleet.document import State
from willitrun_here.fleet.query import LATE_S
from willitrun_here.fleet.summary import machine_of
from willitrun_here.fleet.where import Planner, Questions

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

MOST_NODES = 512
"""Live machines that are looked at, those with the most free GPU memory first."""


def plan_together(
    engine: Engine,
    spec: ModelSpec,
    request: Request,
    *,
    planner: Planner,
    catalog_version: str,
    clock: Callable[[], float],
    addresses: Mapping[str, str] | None = None,
) -> ClusterPlan:
    """Plan a model over the live machines, on what is free now (or all of it, with `assume_idle`).

    `addresses` maps machine names to addresses on their private network; names stand in for those not given, as
    addresses are never reported.
    """
    single = Questions(engine, planner, catalog_version, clock).where(spec, replace_idle(request, idle=False))
    alone = tuple(row.name or row.agent_id for row in single.machines if row.verdict == "runs-now")
    with engine.connect() as connection:
        nodes = live_nodes(connection, now=clock(), addresses=addresses or {})
    groups: list[GroupPlan] = []
    found, reasons = vllm_groups(nodes, spec, request, planner)
    for group in found:
        groups += [vllm_native(group, spec), vllm_on_ray(group, spec)]
    mixed = rpc_group(nodes, spec, request, planner)
    if isinstance(mixed, str):
        reasons.append(mixed)
    else:
        groups.append(llama_rpc(mixed))
    return ClusterPlan(model=spec.name, single=alone, groups=tuple(groups), reasons=tuple(reasons))


def live_nodes(connection: Connection, *, now: float, addresses: Mapping[str, str]) -> list[Node]:
    """Return the live machines as they are now."""
    columns = tables.machine.c
    rows = connection.execute(
        select(columns.agent_id, columns.name, columns.state, tables.facts.c.document)
        .join_from(tables.machine, tables.facts, columns.facts_hash == tables.facts.c.facts_hash)
        .where(columns.received_at >= now - LATE_S)
        .order_by(columns.vram_free_bytes.desc(), columns.agent_id)
        .limit(MOST_NODES)
    ).all()
    nodes = []
    for row in rows:
        name = row.name or row.agent_id
        machine = machine_of(row.document, msgspec.json.decode(row.state, type=State), "")
        nodes.append(Node(agent_id=row.agent_id, name=name, address=addresses.get(name, name), machine=machine))
    return nodes


def replace_idle(request: Request, *, idle: bool) -> Request:
    """Return the request planning on free or on all memory."""
    return msgspec.structs.replace(request, assume_idle=idle)
