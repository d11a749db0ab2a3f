from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import msgspec
import pytest
from click.testing import CliRunner

from willitrun_here.cli.fleet import fleet
from willitrun_here.cli.report import report
from willitrun_here.fleet.agent import record_run
from willitrun_here.fleet.errors import FleetUsageError
from willitrun_here.fleet.terminal import where_commands
from willitrun_here.fleet.verdict import MachineVerdict
from willitrun_here.fleet.where import Where
from willitrun_probe.machine import to_json


@pytest.fixture
def saved(tmp_path, make_machine):
    file = tmp_path / "machine.json"
    file.write_bytes(to_json(make_machine(at=time.time())))
    return str(file)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "agent"))
    monkeypatch.setenv("WILLITRUN_FLEET_DB", str(tmp_path / "fleet.db"))

    def invoke(command, *words, code=0):
        done = CliRunner().invoke(command, list(words), standalone_mode=False, catch_exceptions=False)
        assert (done.return_value or 0) == code, done.output
        return done.stdout

    return invoke


def test_a_file_is_carried_and_imported_and_listed(run, saved, tmp_path):
    carried = tmp_path / "carried.json"
    run(report, "--machine", saved, "--to", str(carried), "--label", "site=ams1", "--hostname", "hash")
    assert run(fleet, "import", str(carried)) == "1 stored, 0 already known\n"
    assert run(fleet, "import", str(carried)) == "0 stored, 1 already known\n"
    (row,) = json.loads(run(fleet, "list", "--json"))["machines"]
    assert row["name"].startswith("h-")
    assert row["labels"] == {"site": "ams1"}
    assert "RTX" in run(fleet, "list", "--gpu", "3090").replace("\n", "")
    assert json.loads(run(fleet, "list", "--json", "--label", "site=fra1"))["machines"] == []


def test_printing_shows_the_report_and_changes_nothing(run, saved, tmp_path):
    printed = json.loads(run(report, "--machine", saved, "--print"))
    assert printed["schema"] == "willitrun.report/1.0"
    assert printed["facts"]["machine"]["name"] == "box"
    assert json.loads(run(report, "--machine", saved, "--to", "-"))["sequence"] == 1
    assert not (tmp_path / "agent").exists()


def test_tokens_are_printed_once_and_stored_as_hashes(run, tmp_path):
    tokens = [run(fleet, "token").strip(), run(fleet, "token", "--read").strip()]
    assert next(token.rsplit("_", 1)[0][:9] for token in tokens) == "wih_enrol"
    assert tokens[0].startswith("wih_enrol_")
    assert tokens[1].startswith("wih_read_")
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("fleet.db*"))
    assert not [token for token in tokens if token.encode() in everything]
    file = tmp_path / "token"
    file.write_text(tokens[1])
    run(fleet, "token", "--revoke", str(file))


def test_options_that_make_no_sense_are_usage_errors(run, saved):
    for words in (["--machine", saved], ["--to", "http://fleet.example"], ["--to", "-", "--label", "x"]):
        with pytest.raises(FleetUsageError):
            run(report, *words)
    for words in (["collect"], ["list", "--sort", "age"], ["merge", "a", "b"], ["serve", "--host", "0.0.0.0"]):  # noqa: S104
        with pytest.raises(FleetUsageError):
            run(fleet, *words)


def test_where_answers_as_json_and_as_a_table(run, saved, tmp_path):
    carried = tmp_path / "carried.json"
    run(report, "--machine", saved, "--to", str(carried))
    run(fleet, "import", str(carried))
    answer = json.loads(run(fleet, "where", "llama-3.1-8b", "--json"))
    (row,) = answer["machines"]
    assert (row["name"], row["verdict"]) == ("box", "runs-now")
    assert row["command"].startswith("llama-server")
    assert row["needs"][0]["needed_bytes"] < row["needs"][0]["free_bytes"]
    shown = run(fleet, "where", "llama-3.1-8b")
    # The command is on a line of its own, whole, so that it can be copied.
    assert shown.splitlines()[-2:] == ["# box", row["command"]]
    run(fleet, "where", "llama-3.1-8b", "--min-decode", "100000", code=1)
    run(fleet, "plan", "llama-3.1-8b")


def test_an_empty_inventory_says_how_to_fill_it(run, capfd):
    assert json.loads(run(fleet, "where", "llama-3.1-8b", "--json", code=1))["machines"] == []
    done = CliRunner().invoke(fleet, ["list"])
    assert "No machine has reported yet" in done.stderr
    assert "is meant by that" in CliRunner().invoke(fleet, ["list", "--gpu", "3090"]).stderr
    assert "no machine" in CliRunner().invoke(fleet, ["where", "llama-3.1-8b"]).stdout


def test_a_command_is_written_once_for_the_machines_it_is_for():
    rows = [
        MachineVerdict(
            agent_id=str(n), name=f"n{n}\x1b", verdict="runs-now", reason="", status="live", command="run me"
        )
        for n in range(12)
    ]
    answer = Where(model="m", machines=tuple(rows), counts={}, shapes=1, plans_computed=0)
    text = where_commands(answer, 50)
    assert text.count("run me") == 1
    assert text.startswith("# n0?, n1?")
    assert " and 2 more\n" in text
    assert where_commands(answer, 1) == "# n0?\nrun me"


def test_exports_go_to_files_and_stdout(run, saved, tmp_path):
    carried = tmp_path / "carried.json"
    run(report, "--machine", saved, "--to", str(carried))
    run(fleet, "import", str(carried))
    assert run(fleet, "export", "csv").count("\n") == 2
    assert json.loads(run(fleet, "export", "netbox"))["devices"][0]["name"] == "box"
    run(fleet, "export", "nfd", "--machine", saved, "--output", str(tmp_path / "willitrun"))
    assert "willitrun.gpus=1" in (tmp_path / "willitrun").read_text()
    assert "willitrun_report_success 0.0" in run(fleet, "export", "prometheus", "--machine", saved)
    fact = json.loads(run(fleet, "export", "ansible", "--machine", saved, "--model", "llama-3.1-8b"))
    assert fact["runs"].keys() == {"llama-3.1-8b-instruct"}


def test_merging_keeps_the_new_row(run, saved, tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / name))
        run(report, "--machine", saved, "--to", str(tmp_path / f"{name}.json"))
        run(fleet, "import", str(tmp_path / f"{name}.json"))
    old, new = (msgspec.json.decode((tmp_path / f"{name}.json").read_bytes())["agent_id"] for name in ("one", "two"))
    run(fleet, "merge", old, new)
    assert [row["agent_id"] for row in json.loads(run(fleet, "list", "--json"))["machines"]] == [new]


@pytest.mark.slow
def test_the_shared_commands_work_end_to_end_as_programs(saved, tmp_path):
    import http.client  # noqa: PLC0415
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = f"sqlite:///{tmp_path / 'f.db'}"
    environment = {**os.environ, "STATE_DIRECTORY": str(tmp_path / "agent")}

    def program(*words, **more):
        return subprocess.run(
            [sys.executable, "-m", "willitrun_here", *words],
            capture_output=True, text=True, check=False, env=environment, **more,
        )  # fmt: skip

    token = tmp_path / "token"
    made = program("fleet", "token", "--db", database)
    token.write_text(made.stdout)
    serving = subprocess.Popen(
        [sys.executable, "-m", "willitrun_here", "fleet", "serve", "--db", database, "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        sending = ["report", "--to", url, "--enrol-token-file", str(token), "--machine", saved]
        deadline = time.monotonic() + 30
        while (done := program(*sending)).returncode:  # kept in the spool until the server is up
            assert time.monotonic() < deadline, done.stderr
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        connection.request("GET", "/api/v1/machines")
        answer = connection.getresponse()
        assert answer.status == 401
        connection.close()
        found = json.loads(program("fleet", "where", "llama-3.1-8b", "--db", database, "--json").stdout)
        assert [row["name"] for row in found["machines"]] == ["box"]
    finally:
        serving.terminate()
        assert serving.wait(20) in (0, -15)


def test_a_measured_run_may_be_kept_before_any_report(tmp_path):
    import uuid  # noqa: PLC0415
    from datetime import UTC, datetime  # noqa: PLC0415

    from willitrun_here.fleet.document import MeasuredRun  # noqa: PLC0415

    run = MeasuredRun(run_id=uuid.UUID(int=1), model="m", engine="e", measured_at=datetime.fromtimestamp(0, UTC))
    record_run(tmp_path / "agent", run)
    assert [path.name for path in (tmp_path / "agent" / "runs").iterdir()] == [f"{run.run_id}.json"]
