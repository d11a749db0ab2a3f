"""What doctor says of reporting."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec
import pytest

from willitrun_here.fleet.agent import beat
from willitrun_here.fleet.errors import DocumentError, FleetError, UnreachableError
from willitrun_here.fleet.reporting import lines, reporting
from willitrun_here.fleet.send import Security, connect
from willitrun_here.fleet.spool import Spool


def nobody(*_):
    raise UnreachableError("nobody answers")


def doctor(folder, *options):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WILLITRUN", "XDG"))}
    return subprocess.run(
        [sys.executable, "-m", "willitrun_here", "doctor", *options],
        capture_output=True, text=True, check=False, timeout=60, env={**env, "HOME": str(folder)},
    )  # fmt: skip


def test_a_machine_that_never_reported_says_nothing_and_keeps_nothing(tmp_path):
    assert reporting(tmp_path / "agent", now=0.0) is None
    assert not (tmp_path / "agent").exists()
    assert msgspec.json.decode(doctor(tmp_path, "--json").stdout)["reporting"] is None


def test_what_was_taken_what_waits_and_what_was_dropped(server, setup_at, make_machine, clock, monkeypatch):
    monkeypatch.setattr("willitrun_here.fleet.spool.MAX_FACTS", 2)
    setup, send = setup_at(), connect(server.url, Security())
    beat(make_machine(), setup, send, enrol_token=server.enrol_token(), now=clock, patient=False)
    taken = reporting(setup.directory, now=clock())
    assert (taken.acknowledged, taken.pending, taken.failures, taken.enrolled) == (1, 0, 0, True)
    assert taken.acknowledged_at.endswith("Z")
    for driver in ("1.0", "2.0", "3.0", "4.0"):
        beat(make_machine(driver=driver), setup, nobody, enrol_token=None, now=clock, patient=False)
    late = reporting(setup.directory, now=time.time() + 60)
    assert (late.acknowledged, late.pending, late.dropped, late.failures) == (1, 2, 2, 4)
    assert late.pending_oldest_s >= 60
    said = "\n".join(lines(late))
    for word in ("report 1 was acknowledged", "2 waiting", "2 given up", "4 attempts in a row"):
        assert word in said


def test_what_was_refused_for_good_is_shown_with_its_reason(setup_at, make_machine, server, clock):
    setup = setup_at()

    def refuses(method, path, body, token):
        if path.endswith("/enrol"):
            return connect(server.url, Security())(method, path, body, token)
        raise DocumentError("the server will not take this report: too old")

    beat(make_machine(), setup, refuses, enrol_token=server.enrol_token(), now=clock, patient=False)
    told = reporting(setup.directory, now=clock())
    assert (told.rejected, told.acknowledged) == (1, None)
    assert "too old" in told.rejected_reason
    assert any("refused for good" in line for line in lines(told))


def test_looking_does_not_disturb_an_agent_that_is_writing(setup_at, make_machine, clock):
    setup = setup_at()
    beat(make_machine(), setup, nobody, enrol_token="x", now=clock, patient=False)
    half = setup.directory / "spool" / ".half-written"
    half.write_text("{")
    reporting(setup.directory, now=clock())
    assert half.exists()
    Spool(setup.directory / "spool")
    assert not half.exists()


def test_an_unreadable_record_is_said_and_the_machine_still_diagnosed(tmp_path):
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(FleetError):
        reporting(tmp_path, now=0.0)
    shown = doctor(tmp_path, "--state-dir", str(tmp_path), "--json")
    assert "agent.json" in shown.stderr
    assert msgspec.json.decode(shown.stdout)["reporting"] is None


def test_doctor_shows_it_to_people(tmp_path, setup_at, make_machine, clock):
    setup = setup_at()
    beat(make_machine(), setup, nobody, enrol_token="x", now=clock, patient=False)
    shown = doctor(tmp_path, "--state-dir", str(setup.directory))
    assert "reporting: no report has been acknowledged" in shown.stdout
    assert "1 waiting" in shown.stdout
    seen = doctor(tmp_path, "--state-dir", str(setup.directory), "--json")
    assert msgspec.json.decode(seen.stdout)["reporting"]["pending"] == 1
