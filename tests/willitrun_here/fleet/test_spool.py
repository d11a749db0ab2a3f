from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from willitrun_here.fleet import spool as module
from willitrun_here.fleet.spool import Spool


def sequences(spool):
    return [(entry.sequence, entry.kind) for entry in spool.entries()]


def test_reports_come_out_in_the_order_they_were_put(tmp_path):
    spool = Spool(tmp_path)
    for sequence in (1, 2, 10, 11, 100):
        spool.put("facts", sequence, str(sequence).encode())
    assert [entry.body() for entry in Spool(tmp_path).entries()] == [b"1", b"2", b"10", b"11", b"100"]


def test_a_newer_report_of_any_kind_replaces_an_older_state(tmp_path):
    spool = Spool(tmp_path)
    spool.put("state", 1, b"a")
    spool.put("state", 2, b"b")
    assert sequences(spool) == [(2, "state")]
    spool.put("facts", 3, b"c")
    spool.put("state", 4, b"d")
    assert sequences(spool) == [(3, "facts"), (4, "state")]


def test_when_facts_are_too_many_the_oldest_go_and_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FACTS", 3)
    spool = Spool(tmp_path)
    for sequence in range(1, 7):
        spool.put("facts", sequence, b"x")
    assert sequences(spool) == [(4, "facts"), (5, "facts"), (6, "facts")]
    assert Spool(tmp_path).dropped == 3


def test_measured_runs_are_bounded_by_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_MEASURED_BYTES", 250)
    spool = Spool(tmp_path)
    for sequence in range(1, 6):
        spool.put("measured", sequence, b"x" * 100)
    assert sequences(spool) == [(4, "measured"), (5, "measured")]
    assert spool.dropped == 3


def test_a_refused_report_is_put_aside_with_its_reason_and_only_the_newest_stay(tmp_path):
    spool = Spool(tmp_path)
    for sequence in range(1, 15):
        spool.put("facts", sequence, b"x")
        spool.reject(spool.entries()[0], f"reason {sequence}")
    assert spool.entries() == []
    assert len(spool.rejected()) == module.KEPT_REJECTED
    assert spool.rejected()[-1][1] == "reason 14"


def test_half_written_files_are_removed_at_the_next_opening(tmp_path):
    spool = Spool(tmp_path)
    spool.put("facts", 1, b"whole")
    (tmp_path / ".00000000000000000002-facts.json.77").write_bytes(b"ha")
    assert sequences(Spool(tmp_path)) == [(1, "facts")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000000000000001-facts.json"]


def test_the_age_of_the_oldest_report_is_known(tmp_path):
    spool = Spool(tmp_path)
    assert spool.oldest_s(time.time()) == 0.0
    spool.put("facts", 1, b"x")
    os.utime(spool.entries()[0].path, (1000.0, 1000.0))
    spool.put("facts", 2, b"x")
    assert spool.oldest_s(1060.0) == pytest.approx(60.0)


WRITER = """
import sys
from pathlib import Path
from willitrun_here.fleet.spool import Spool
spool, sequence = Spool(Path(sys.argv[1])), int(sys.argv[2])
while True:
    sequence += 1
    body = b'{"sequence":%d,"filler":"%s"}' % (sequence, b"x" * (997 * sequence % 9000))
    spool.put("facts" if sequence % 3 else "measured", sequence, body)
    sys.stdout.write(f"{sequence}\\n")
    sys.stdout.flush()
"""


def kill_runs(folder: Path, runs: int, draw: random.Random) -> int:
    """Kill a writer at random moments; all it said it had kept must be there, whole. Returns how much that was."""
    acknowledged: set[int] = set()
    for _ in range(runs):
        start = max(acknowledged, default=0) + 1
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder, str(start)], stdout=subprocess.PIPE)
        first = writer.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.06))
        os.kill(writer.pid, signal.SIGKILL)
        lines = (first + writer.stdout.read()).split(b"\n")[:-1]
        writer.wait()
        writer.stdout.close()
        acknowledged |= {int(line) for line in lines}
        spool = Spool(folder)
        kept = {}
        for entry in spool.entries():
            value = msgspec.json.decode(entry.body())  # a torn file would not decode
            assert value["sequence"] == entry.sequence
            kept[entry.sequence] = len(value["filler"])
        recent = {sequence for sequence in acknowledged if sequence > start}
        assert spool.dropped or recent <= kept.keys()
        for entry in spool.entries():
            spool.remove(entry)
        assert spool.dropped == 0, "the writer was faster than the bounds of this test"
    return len(acknowledged)


def test_a_killed_writer_loses_nothing_it_had_kept(tmp_path):
    assert kill_runs(tmp_path / "spool", 6, random.Random(1)) >= 6


@pytest.mark.slow
def test_two_hundred_killed_writers_lose_nothing_they_had_kept(tmp_path):
    assert kill_runs(tmp_path / "spool", 200, random.Random(2)) >= 200
