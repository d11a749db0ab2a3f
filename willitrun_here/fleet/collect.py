"""Machines without an agent: the probe is run on every node of a Ray cluster, or on hosts over ssh, and imported here.

Node ids follow from addresses, so that collecting again updates the same rows; fingerprints still link a machine that
also has an agent. Every host fails for itself.
"""

from __future__ import annotations

import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import select

from willitrun_here.fleet import tables
from willitrun_here.fleet.carry import Imported, import_reports
from willitrun_here.fleet.document import Report, decode, encode
from willitrun_here.fleet.errors import DocumentError, FleetError, UnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Engine

NAMESPACE = uuid.UUID("5a0d9f3e-62b7-4f0a-8a55-1f8ad0f7c3de")
REMOTE_COMMAND = ("willitrun-here", "report", "--to", "-")
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""No questions and no waiting: keys, users and proxies come from the user's ssh configuration."""
AT_ONCE = 16
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""Ray sets these for its workers; a probe must see what the node has."""


class Collected(Struct, frozen=True, kw_only=True):
    """What one host said: a report's document, or why there is none."""

    key: str
    """Names the host the same way each time: `ssh:HOST`, `ray:ADDRESS`."""
    body: bytes | None = None
    problem: str | None = None


def collect_ssh(
    hosts: Sequence[str], *, program: str = "ssh", command: Sequence[str] = REMOTE_COMMAND, timeout_s: float = 60.0
) -> list[Collected]:
    """Run the probe on hosts with the system's ssh, some at once."""

    def one(host: str) -> Collected:
        key = f"ssh:{host}"
        try:
            done = subprocess.run(
                [program, *SSH_OPTIONS, "--", host, *command],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Collected(key=key, problem=f"{host}: no answer in {timeout_s:g} s")
        except OSError as error:
            return Collected(key=key, problem=f"{host}: cannot run {program}: {error}")
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return Collected(key=key, problem=f"{host}: {words[-1][:200] if words else f'exit {done.returncode}'}")
        return Collected(key=key, body=done.stdout)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, hosts))


def read_hosts(text: str) -> list[str]:
    """Read one host a line, without blank lines and comments; raises FleetError for an option in disguise."""
    hosts = [line.partition("#")[0].strip() for line in text.splitlines()]
    hosts = [host for host in hosts if host]
    for host in hosts:
        if host.startswith("-") or any(letter.isspace() for letter in host):
            raise FleetError(
                f"{host!r} is not a host name", "Write one host a line; options belong into ~/.ssh/config."
            )
    return hosts


def collect_ray(
    address: str, *, report: Callable[[], bytes] | None = None, timeout_s: float = 120.0
) -> list[Collected]:
    """Run the probe once on every live node of a running Ray cluster; raises FleetError or UnreachableError.

    The nodes need this program in their Python, as Ray needs its own.
    """
    try:
        import ray as untyped_ray  # noqa: PLC0415 - an extra, and slow
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415
    except ImportError as error:
        raise FleetError("Ray is not installed here", "pip install 'willitrun-here[ray]'") from error
    except Exception as error:
        # Ray 2.60 imports amdsmi where it is installed and fails when the ROCm library behind it is missing.
        reason = f"Ray cannot be loaded here: {type(error).__name__}: {error}"
        raise FleetError(reason, "Install it into an environment of its own, without amdsmi.") from error
    ray: Any = untyped_ray
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="willitrun-here")
    except Exception as error:  # Ray raises whatever its start meets, of its own kinds and of its libraries'
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreachableError(f"no Ray cluster at {address}: {words[0][:200]}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        keys = _ray_keys(nodes)
        task = ray.remote(num_cpus=0, max_retries=1)(report or node_report)
        pending = {
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            ).remote(): key
            for node, key in zip(nodes, keys, strict=True)
        }
        done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=timeout_s)
        return [_ray_answer(ray, reference, key, reference in done, timeout_s) for reference, key in pending.items()]
    finally:
        if started:
            ray.shutdown()


def node_report() -> bytes:
    """Probe the machine this runs on and return its report; runs in a worker of the cluster."""
    import os  # noqa: PLC0415 - this function travels to another machine
    from pathlib import Path  # noqa: PLC0415

    from willitrun_here.fleet.agent import Setup, carried  # noqa: PLC0415
    from willitrun_here.fleet.identity import fingerprint  # noqa: PLC0415
    from willitrun_here.machines import here  # noqa: PLC0415

    for name in HIDING:
        os.environ.pop(name, None)
    return carried(here(), Setup(directory=Path("/nonexistent"), fingerprint=fingerprint(Path("/"))), take=False)


def store_collected(engine: Engine, collected: Iterable[Collected], *, clock: Callable[[], float]) -> Imported:
    """Import what was collected, each host under an id that follows from its key and with its next sequence."""
    problems, stamped = [], []
    for item in collected:
        if item.body is None:
            problems.append(item.problem or f"{item.key}: nothing came")
            continue
        try:
            report, _ = decode(item.body)
        except DocumentError as error:
            problems.append(f"{item.key}: {error.message}")
            continue
        stamped.append((item.key, encode(_stamped(engine, report, item.key))))
    result = import_reports(engine, stamped, clock=clock)
    return replace(result, problems=(*problems, *result.problems))


def _stamped(engine: Engine, report: Report, key: str) -> Report:
    agent_id = uuid.uuid5(NAMESPACE, key)
    columns, seen = tables.machine.c, tables.facts_seen.c
    with engine.connect() as connection:
        known = connection.execute(
            select(columns.sequence, columns.facts_hash).where(columns.agent_id == str(agent_id))
        ).first()
        since = connection.execute(
            select(seen.facts_sequence).where(seen.agent_id == str(agent_id)).order_by(seen.facts_sequence.desc())
        ).scalar()
    sequence = 1 if known is None else known.sequence + 1
    same = known is not None and since is not None and known.facts_hash == report.facts_hash
    return replace(report, agent_id=agent_id, sequence=sequence, facts_sequence=since if same else sequence)


def _ray_keys(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Name nodes by address; several nodes on one machine (a test cluster) by their Ray ids as well."""
    addresses = Counter(node["NodeManagerAddress"] for node in nodes)
    return [
        f"ray:{node['NodeManagerAddress']}"
        + ("" if addresses[node["NodeManagerAddress"]] == 1 else f":{node['NodeID']}")
        for node in nodes
    ]


def _ray_answer(ray: Any, reference: Any, key: str, done: bool, timeout_s: float) -> Collected:
    if not done:
        ray.cancel(reference, force=True)
        return Collected(key=key, problem=f"{key}: no answer in {timeout_s:g} s")
    try:
        return Collected(key=key, body=msgspec.convert(ray.get(reference), bytes))
    except ray.exceptions.RayError as error:
        return Collected(key=key, problem=f"{key}: {str(error).strip().splitlines()[-1][:200]}")
