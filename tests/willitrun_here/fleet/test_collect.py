from __future__ import annotations

import sys

import msgspec
import pytest

from willitrun_here.fleet.carry import documents, import_reports
from willitrun_here.fleet.collect import Collected, collect_ray, collect_ssh, read_hosts, store_collected
from willitrun_here.fleet.detail import machine_detail
from willitrun_here.fleet.document import encode
from willitrun_here.fleet.errors import FleetError, UnreachableError
from willitrun_here.fleet.query import MachineFilter, list_machines


def names(engine, clock):
    with engine.connect() as connection:
        return [row.name for row in list_machines(connection, MachineFilter(), now=clock()).machines]


@pytest.fixture
def fake_ssh(tmp_path, make_report, make_machine):
    """A program that answers like ssh: it checks its options and prints what the host named by its argument says."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_bytes(encode(make_report(make_machine(name), 77)))
    (tmp_path / "garbled.json").write_bytes(b"Welcome to garbled!\n{}")
    program = tmp_path / "ssh"
    program.write_text(f"""#!{sys.executable}
import sys, time, pathlib
*options, dashes, host, word, report, to, target = sys.argv[1:]
assert options == ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"], options
assert (dashes, word, report, to, target) == ("--", "willitrun-here", "report", "--to", "-")
if host == "slow":
    time.sleep(30)
file = pathlib.Path({str(tmp_path)!r}) / (host + ".json")
if not file.exists():
    sys.exit("banner\\nssh: connect to host " + host + " port 22: Connection refused")
sys.stdout.write(file.read_text())
""")
    program.chmod(0o755)
    return str(program)


def test_hosts_are_collected_over_ssh_and_every_failure_is_its_own(fake_ssh, sqlite_engine, clock):
    found = collect_ssh(["a", "down", "garbled", "slow", "b"], program=fake_ssh, timeout_s=3.0)
    result = store_collected(sqlite_engine, found, clock=clock)
    assert result.stored == 2
    assert names(sqlite_engine, clock) == ["a", "b"]
    problems = sorted(result.problems)
    assert problems[0] == "down: ssh: connect to host down port 22: Connection refused"
    assert problems[1] == "slow: no answer in 3 s"
    assert problems[2].startswith("ssh:garbled: ")


def test_collecting_again_updates_the_same_machine(fake_ssh, sqlite_engine, clock, make_report, make_machine, tmp_path):
    for free in (20, 5, 5):
        (tmp_path / "a.json").write_bytes(encode(make_report(make_machine("a", free=free), 1)))
        assert store_collected(sqlite_engine, collect_ssh(["a"], program=fake_ssh), clock=clock).stored == 1
    with sqlite_engine.connect() as connection:
        (row,) = list_machines(connection, MachineFilter(), now=clock()).machines
        assert row.vram_free_bytes == 5 * 1024**3
        assert len(machine_detail(connection, row.agent_id, now=clock()).history) == 1


def test_a_missing_ssh_is_a_problem_of_the_host(sqlite_engine, clock):
    result = store_collected(sqlite_engine, collect_ssh(["a"], program="/nonexistent/ssh"), clock=clock)
    assert "cannot run" in result.problems[0]


def test_host_lists_have_comments_and_no_options():
    assert read_hosts("# rack 7\n\nnode1 # spare\nadmin@node2\n") == ["node1", "admin@node2"]
    for wrong in ("-oProxyCommand=evil", "a b"):
        with pytest.raises(FleetError):
            read_hosts(wrong)


def test_carried_files_are_imported_one_document_a_file_or_a_line(engine, clock, make_report, make_machine):
    import uuid  # noqa: PLC0415

    reports = [make_report(make_machine(f"m{n}", at=clock() - 3600), 1, agent=uuid.UUID(int=n)) for n in range(1, 4)]
    lines = b"\n".join(encode(report) for report in reports) + b"\n{broken}\n"
    pretty = msgspec.json.format(encode(reports[0]), indent=2)
    result = import_reports(engine, documents("lines", lines), clock=clock)
    assert (result.stored, result.known, len(result.problems)) == (3, 0, 1)
    assert result.problems[0].startswith("lines:4: ")
    again = import_reports(engine, documents("pretty", pretty), clock=clock)
    assert (again.stored, again.known, again.problems) == (0, 1, ())
    with engine.connect() as connection:
        rows = list_machines(connection, MachineFilter(), now=clock()).machines
    assert {row.status for row in rows} == {"late"}  # seen when observed, not when imported


def test_a_carried_machine_that_reaches_the_server_later_stays_one(server, setup_at, make_machine, clock):
    from willitrun_here.fleet.agent import beat, carried  # noqa: PLC0415
    from willitrun_here.fleet.send import Security, connect  # noqa: PLC0415

    setup = setup_at()
    body = carried(make_machine(), setup, take=True)
    assert import_reports(server.engine, [("file", body)], clock=clock).stored == 1
    later = make_machine(at=clock.now + 60, free=1)
    done = beat(
        later, setup, connect(server.url, Security()), enrol_token=server.enrol_token(), now=clock, patient=False
    )
    assert done.problem is None
    assert names(server.engine, clock) == ["box"]


def test_no_answer_from_a_host_is_a_problem():
    assert Collected(key="ssh:x").body is None


@pytest.fixture
def ray():
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        pytest.skip("no Ray here: pip install 'willitrun-here[ray]'")
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"Ray cannot be loaded beside amdsmi without ROCm ({error!r}): use a venv without the extra amd")
    return ray


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_cluster_of_three_nodes_gives_three_machines_and_a_plan(
    ray, sqlite_engine, clock, make_spec, make_planner
):
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.fleet.terminal import cluster_text  # noqa: PLC0415
    from willitrun_here.fleet.together import plan_together  # noqa: PLC0415

    nodes = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=nodes)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
        cluster.wait_for_nodes()
        found = collect_ray(cluster.address)
        again = collect_ray(cluster.address)
    finally:
        cluster.shutdown()
    import time  # noqa: PLC0415

    assert [item.problem for item in found] == [None] * 3
    assert store_collected(sqlite_engine, found, clock=time.time).stored == 3
    assert store_collected(sqlite_engine, again, clock=time.time).stored == 3
    assert len(names(sqlite_engine, clock)) == 3
    answer = plan_together(
        sqlite_engine, make_spec(), Request(), planner=make_planner(0.001), catalog_version="1", clock=time.time
    )
    assert len(answer.single) == 3
    assert "runs on one machine alone" in cluster_text(answer)


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_unreachable(ray, monkeypatch):
    monkeypatch.setenv("RAY_GCS_RPC_TIMEOUT_S", "1")
    with pytest.raises(UnreachableError):
        collect_ray("nonsense")
