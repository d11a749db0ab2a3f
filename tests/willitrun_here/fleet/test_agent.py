from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from datetime import UTC, datetime

import msgspec
import pytest

from willitrun_here.fleet.agent import beat, carried, labels_of, record_run
from willitrun_here.fleet.document import MeasuredRun, Report
from willitrun_here.fleet.errors import FleetUsageError, RefusedError, UnreachableError
from willitrun_here.fleet.identity import load_agent, load_secret, save_secret
from willitrun_here.fleet.send import Reply, Security, connect
from willitrun_here.fleet.spool import Spool


def nobody(*_):
    raise UnreachableError("nobody answers")


def run(setup, machine, send, token=None, clock=lambda: 0.0, *, patient=False):
    return beat(machine, setup, send, enrol_token=token, now=clock, patient=patient)


def machines(server):
    return server.get("/api/v1/machines", server.read_token())["machines"]


def test_a_first_beat_enrols_and_delivers_and_the_next_sends_the_state_alone(server, setup_at, make_machine, clock):
    setup, send = setup_at(labels={"site": "ams1"}), connect(server.url, Security())
    first = run(setup, make_machine(free=20), send, server.enrol_token(), clock)
    assert (first.delivered, first.waiting, first.problem) == (1, 0, None)
    secret = load_secret(setup.directory)
    second = run(setup, make_machine(free=3), send, None, clock)
    assert (second.delivered, load_secret(setup.directory)) == (1, secret)
    (row,) = machines(server)
    assert (row["name"], row["vram_free_bytes"], row["labels"]) == ("box", 3 * 1024**3, {"site": "ams1"})
    assert load_agent(setup.directory).sequence == 2


def test_without_a_token_the_report_waits_and_the_error_says_what_to_do(server, setup_at, make_machine):
    setup = setup_at()
    with pytest.raises(RefusedError, match="not enrolled"):
        run(setup, make_machine(), connect(server.url, Security()))
    assert len(Spool(setup.directory / "spool").entries()) == 1


def test_a_server_away_for_days_gets_one_state_all_changes_and_the_count_of_drops(
    server, setup_at, make_machine, clock, monkeypatch
):
    monkeypatch.setattr("willitrun_here.fleet.spool.MAX_FACTS", 3)
    setup, send = setup_at(), connect(server.url, Security())
    run(setup, make_machine(), send, server.enrol_token(), clock)
    for day in range(1, 7):
        run(setup, make_machine(driver=f"{day}.0", at=clock.now + day), nobody, None, clock)
        run(setup, make_machine(driver=f"{day}.0", at=clock.now + day + 0.5, free=day), nobody, None, clock)
    spool = Spool(setup.directory / "spool")
    assert [entry.kind for entry in spool.entries()] == ["facts", "facts", "facts", "state"]
    back = run(setup, make_machine(driver="6.0", at=clock.now + 9), send, None, clock)
    assert (back.waiting, back.problem) == (0, None)
    (row,) = machines(server)
    assert row["spool_dropped"] == 3
    detail = server.get(f"/api/v1/machines/{row['agent_id']}", server.read_token())
    assert next(period["changes"] for period in detail["history"]) == ['gpus[0].driver_version: "5.0" → "6.0"']
    assert len(detail["history"]) == 4


def test_pauses_grow_outlive_the_process_and_end_with_the_first_success(server, setup_at, make_machine, clock):
    setup, send = setup_at(), connect(server.url, Security())
    run(setup, make_machine(), send, server.enrol_token(), clock)
    for _ in range(20):
        clock.now = load_agent(setup.directory).next_try_at or clock.now
        away = run(setup, make_machine(), nobody, None, clock, patient=True)
        assert 0 <= away.next_try_at - clock.now <= 900
    pause = load_agent(setup.directory)
    assert pause.failures == 20
    calls = []

    def counted(*given):
        calls.append(given)
        return send(*given)

    clock.now = pause.next_try_at - 0.001
    if pause.next_try_at - 0.001 > 0:
        run(setup, make_machine(), counted, None, clock, patient=True)
        assert calls == []
    run(setup, make_machine(), counted, None, clock, patient=False)  # a person at the keyboard does not wait
    assert len(calls) == 1
    assert load_agent(setup.directory).failures == 0


def test_a_pause_that_the_server_asked_for_holds_for_everybody_and_not_beyond_a_turned_clock(
    setup_at, make_machine, clock
):
    setup = setup_at()
    save_secret(setup_at().directory / ".." / "state", None)
    calls = []

    def busy(*given):
        calls.append(given)
        return Reply(429, b"", 120.0)

    run(setup, make_machine(), busy, "wih_enrol_x", clock)
    assert len(calls) == 1
    run(setup, make_machine(), busy, "wih_enrol_x", clock)
    assert len(calls) == 1
    clock.now -= 10 * 86400  # the clock was turned back: the pause is no longer believable
    run(setup, make_machine(), busy, "wih_enrol_x", clock)
    assert len(calls) == 2


def test_a_server_that_lost_its_facts_gets_them_within_the_same_beat(server, setup_at, make_machine, clock):
    from sqlalchemy import delete  # noqa: PLC0415

    from willitrun_here.fleet import tables  # noqa: PLC0415
    from willitrun_here.fleet.database import writing  # noqa: PLC0415

    setup, send = setup_at(), connect(server.url, Security())
    run(setup, make_machine(), send, server.enrol_token(), clock)
    with writing(server.engine) as connection:
        connection.execute(delete(tables.facts))
    server.fleet.writer.forget()
    done = run(setup, make_machine(free=2), send, None, clock)
    assert (done.delivered, done.waiting) == (2, 0)
    assert machines(server)[0]["gpus"] == "NVIDIA GeForce RTX 3090"


def test_a_revoked_or_unknown_token_leads_to_a_new_enrolment(server, setup_at, make_machine, clock):
    setup, send = setup_at(), connect(server.url, Security())
    run(setup, make_machine(), send, server.enrol_token(), clock)
    save_secret(setup.directory, "wih_agent_wrong")
    done = run(setup, make_machine(free=1), send, server.enrol_token(), clock)
    assert (done.delivered, done.problem) == (1, None)
    assert len(machines(server)) == 1


def test_two_clones_of_one_state_become_two_machines_and_a_warning_within_two_beats(
    server, setup_at, make_machine, clock
):
    setup, send, token = setup_at(), connect(server.url, Security()), server.enrol_token()
    run(setup, make_machine(), send, token, clock)
    shutil.copytree(setup.directory, setup.directory.parent / "clone")
    clone = setup_at("clone")  # same machine id, as in a copied container
    for minute in (1, 2):
        run(setup, make_machine(at=clock.now + minute), send, token, clock)
        run(clone, make_machine(at=clock.now + minute + 0.5, free=1), send, token, clock)
    rows = machines(server)
    assert len(rows) == 2
    old, new = load_agent(setup.directory), load_agent(clone.directory)
    assert new.previous_agent_id == old.agent_id
    read = server.read_token()
    warnings = [server.get(f"/api/v1/machines/{agent.agent_id}", read)["warnings"] for agent in (old, new)]
    assert any("Another machine reported" in text for text in warnings[0])
    assert any(str(old.agent_id) in text for text in warnings[1])


def test_a_copied_disk_in_another_machine_is_told_apart_by_its_fingerprint(server, setup_at, make_machine, clock):
    setup, send, token = setup_at(), connect(server.url, Security()), server.enrol_token()
    run(setup, make_machine(), send, token, clock)
    shutil.copytree(setup.directory, setup.directory.parent / "clone")
    done = run(setup_at("clone", machine="m2"), make_machine("other"), send, token, clock)
    assert done.problem is None
    assert sorted(row["name"] for row in machines(server)) == ["box", "other"]


def test_a_reinstalled_machine_is_offered_as_a_merge_and_never_merged_by_itself(server, setup_at, make_machine, clock):
    send, token = connect(server.url, Security()), server.enrol_token()
    run(setup_at("before"), make_machine(), send, token, clock)
    run(setup_at("after"), make_machine(), send, token, clock)
    assert len(machines(server)) == 2
    new = load_agent(setup_at("after").directory).agent_id
    (warning,) = server.get(f"/api/v1/machines/{new}", server.read_token())["warnings"]
    assert "fleet merge" in warning


@pytest.mark.parametrize("skew_s", [-86400, 86400])
def test_a_clock_a_day_off_is_live_and_its_skew_is_shown(server, setup_at, make_machine, clock, skew_s):
    machine = make_machine(at=clock.now + skew_s)
    run(setup_at(), machine, connect(server.url, Security()), server.enrol_token(), clock)
    (row,) = machines(server)
    assert (row["status"], round(row["skew_s"])) == ("live", skew_s)


def test_measured_runs_reach_the_server_once(server, setup_at, make_machine, clock):
    setup, send = setup_at(), connect(server.url, Security())
    for number in range(3):
        record_run(
            setup.directory,
            MeasuredRun(
                run_id=uuid.UUID(int=number), model="toy-8b", engine="llama.cpp", decode_tokens_per_s=41.0,
                expected_decode_tokens_per_s=40.0, measured_at=datetime.fromtimestamp(clock.now, UTC),
            ),
        )  # fmt: skip
    run(setup, make_machine(), send, server.enrol_token(), clock)
    run(setup, make_machine(), send, None, clock)
    (row,) = machines(server)
    detail = server.get(f"/api/v1/machines/{row['agent_id']}", server.read_token())
    assert [run["decode_tokens_per_s"] for run in detail["measured"]] == [41.0] * 3


def test_a_refused_document_is_put_aside_and_the_next_ones_still_go(server, setup_at, make_machine, clock):
    setup, send = setup_at(), connect(server.url, Security())
    run(setup, make_machine(), send, server.enrol_token(), clock)
    Spool(setup.directory / "spool").put("facts", 2, b'{"schema":"willitrun.report/9.0"}')
    agent = load_agent(setup.directory)
    (setup.directory / "agent.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(agent, sequence=2)))
    done = run(setup, make_machine(), send, None, clock)
    assert (done.delivered, done.rejected, done.waiting) == (1, 1, 0)
    assert "willitrun.report/9.0" in Spool(setup.directory / "spool").rejected()[0][1]


def test_printing_shows_a_whole_report_and_changes_nothing(setup_at, make_machine):
    setup = setup_at()
    report = msgspec.json.decode(carried(make_machine(), setup, take=False), type=Report)
    assert report.sequence == 1
    assert report.facts is not None
    assert not setup.directory.exists()
    sequences = [msgspec.json.decode(carried(make_machine(), setup, take=True), type=Report).sequence for _ in range(2)]
    assert sequences == [1, 2]


def test_labels_are_pairs():
    assert labels_of(("site=ams1", "note=a=b")) == {"site": "ams1", "note": "a=b"}
    for wrong in ("site", "=x", "k=" + "x" * 300):
        with pytest.raises(FleetUsageError):
            labels_of((wrong,))


def test_an_agent_needs_nothing_of_the_server():
    code = (
        "import sys, willitrun_here.cli.report, willitrun_here.fleet.agent, willitrun_here.fleet.send;"
        "print([n for n in ('sqlalchemy','starlette','uvicorn','alembic','jinja2','prometheus_client','ray','rich',"
        "'urllib.request') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
