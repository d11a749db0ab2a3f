from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.detail import machine_detail
from willitrun_here.fleet.document import MeasuredRun, decode, encode
from willitrun_here.fleet.errors import CloneError, DocumentError
from willitrun_here.fleet.ingest import Ingest, parcel
from willitrun_here.fleet.query import MachineFilter, list_machines
from willitrun_here.fleet.writer import Writer

START = 1_790_000_000.0
SHAPES = [{"gpus": 1}, {"gpus": 2}, {"gpus": 0}, {"driver": "560.1"}]


def run_of(number):
    return MeasuredRun(
        run_id=uuid.UUID(int=number), model="toy-8b", engine="llama.cpp", decode_tokens_per_s=40.0 + number,
        measured_at=datetime.fromtimestamp(START, UTC),
    )  # fmt: skip


def stream(make_report, make_machine, agent, shapes, carried):
    """The reports of one agent: facts only where they changed and the server was given them, runs here and there."""
    reports, since = [], 0
    for sequence, shape in enumerate(shapes, start=1):
        changed = sequence == 1 or shapes[sequence - 2] != shape
        since = sequence if changed else since
        machine = make_machine(f"box-{agent.int}", at=START + 300 * sequence, free=sequence % 20, **SHAPES[shape])
        runs = [run_of(agent.int * 1000 + sequence)] if carried[sequence - 1] else []
        reports.append(make_report(machine, sequence, agent=agent, facts_sequence=since, with_facts=changed, runs=runs))
    return [encode(report) for report in reports]


def deliver(engine, bodies):
    ingest = Ingest(engine.dialect.name)
    for body in bodies:
        with writing(engine) as connection:
            ingest.store(connection, parcel(*decode(body)), received_at=START)


def contents(engine):
    found = {}
    with engine.connect() as connection:
        for table in (tables.machine, tables.facts, tables.facts_seen, tables.measured):
            rows = connection.execute(select(table)).all()
            found[table.name] = sorted(tuple(map(str, row)) for row in rows)
    return found


def empty(engine):
    with writing(engine) as connection:
        for table in tables.metadata.sorted_tables:
            connection.execute(delete(table))


STREAMS = {
    "shapes": st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=3),
    "carried": st.lists(st.booleans(), min_size=6, max_size=6),
    "seed": st.integers(0, 2**32),
}


def check_delivery(engine, make_report, make_machine, shapes, carried, seed):
    bodies = []
    for number, one in enumerate(shapes, start=1):
        bodies += stream(make_report, make_machine, uuid.UUID(int=number), one, carried)
    empty(engine)
    deliver(engine, bodies)
    straight = contents(engine)
    draw = random.Random(seed)
    # Every report is lost and sent again any number of times, and all arrive in any order.
    jumbled = [body for body in bodies for _ in range(draw.randint(1, 3))]
    draw.shuffle(jumbled)
    empty(engine)
    deliver(engine, jumbled)
    assert contents(engine) == straight


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(**STREAMS)
def test_any_order_and_repetition_of_a_stream_ends_in_the_same_tables(
    sqlite_engine, make_report, make_machine, shapes, carried, seed
):
    check_delivery(sqlite_engine, make_report, make_machine, shapes, carried, seed)


@pytest.mark.postgres
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(**STREAMS)
def test_any_order_and_repetition_of_a_stream_ends_in_the_same_tables_of_postgresql(
    postgres_engine, make_report, make_machine, shapes, carried, seed
):
    check_delivery(postgres_engine, make_report, make_machine, shapes, carried, seed)


def test_answers_tell_stored_duplicate_and_stale_and_ask_for_missing_facts(engine, make_report, make_machine):
    ingest = Ingest(engine.dialect.name)
    first = parcel(*decode(encode(make_report(make_machine(), 5, with_facts=False))))
    older = parcel(*decode(encode(make_report(make_machine(at=START - 300), 4))))
    with writing(engine) as connection:
        receipts = [ingest.store(connection, item, received_at=START) for item in (first, first, older, first)]
    assert [receipt.result for receipt in receipts] == ["stored", "duplicate", "stale", "duplicate"]
    assert [receipt.need for receipt in receipts] == [("facts",), ("facts",), (), ()]


def test_facts_that_come_after_the_state_complete_the_row(engine, make_report, make_machine):
    deliver(engine, [encode(make_report(make_machine(free=7), 5, with_facts=False))])
    deliver(engine, [encode(make_report(make_machine(at=START - 300), 4))])
    with engine.connect() as connection:
        row = list_machines(connection, MachineFilter(), now=START).machines[0]
    assert (row.name, row.gpus, row.vram_free_bytes) == ("box", "NVIDIA GeForce RTX 3090", 7 * 1024**3)


def test_facts_under_a_foreign_hash_are_refused(make_report, make_machine):
    report = msgspec.structs.replace(make_report(make_machine(), 1), facts_hash="sha256:" + "0" * 64)
    with pytest.raises(DocumentError, match="facts_hash"):
        parcel(*decode(encode(report)))


def test_a_hardware_change_and_its_return_are_three_periods_with_differences(engine, make_report, make_machine):
    bodies = stream(make_report, make_machine, uuid.UUID(int=1), [1, 1, 0, 0, 1], [False] * 5)
    deliver(engine, bodies)
    with engine.connect() as connection:
        history = machine_detail(connection, str(uuid.UUID(int=1)), now=START).history
    assert [(item.first_at - START, item.last_at - START) for item in history] == [
        (1500, 1500),
        (900, 1200),
        (300, 600),
    ]
    assert any(line.startswith("gpus + ") for line in history[0].changes)
    assert any(line.startswith("gpus - ") for line in history[1].changes)
    assert history[2].changes == ()


def test_a_sequence_used_twice_with_other_content_is_a_clone(engine, make_report, make_machine):
    ingest = Ingest(engine.dialect.name)
    with writing(engine) as connection:
        ingest.store(connection, parcel(*decode(encode(make_report(make_machine(), 5)))), received_at=START)
        with pytest.raises(CloneError):  # noqa: PT012
            other = parcel(*decode(encode(make_report(make_machine(free=3), 5))))
            ingest.store(connection, other, received_at=START)
        with pytest.raises(CloneError):  # noqa: PT012
            late = parcel(*decode(encode(make_report(make_machine(at=START + 60), 4))))
            ingest.store(connection, late, received_at=START)


def test_a_batch_with_a_broken_piece_of_work_stores_the_others(engine, make_report, make_machine, clock):
    writer = Writer(engine, clock)
    try:
        good = [
            writer.submit_report(parcel(*decode(encode(make_report(make_machine(), 1, agent=uuid.UUID(int=number))))))
            for number in range(1, 4)
        ]
        bad = writer.submit(lambda connection: 1 / 0)
        assert [future.result(10).result for future in good] == ["stored"] * 3
        with pytest.raises(ZeroDivisionError):
            bad.result(10)
    finally:
        writer.close()
    with engine.connect() as connection:
        assert len(list_machines(connection, MachineFilter(), now=START).machines) == 3


KILLED = """
import os, sys, time
import msgspec
from willitrun_here.fleet.database import open_database, writing
from willitrun_here.fleet.document import decode
from willitrun_here.fleet.ingest import Ingest, parcel
engine = open_database(sys.argv[1])
ingest = Ingest(engine.dialect.name)
with writing(engine) as connection:
    ingest.store(connection, parcel(*decode(sys.stdin.buffer.read())), received_at=1790000000.0)
os.kill(os.getpid(), 9)  # after the commit, before any answer
"""


def test_a_server_killed_between_commit_and_answer_loses_and_doubles_nothing(tmp_path, make_report, make_machine):
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from willitrun_here.fleet.database import open_database  # noqa: PLC0415

    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    open_database(url).dispose()
    bodies = [encode(make_report(make_machine(), 1, runs=[run_of(1)]))]
    done = subprocess.run([sys.executable, "-c", KILLED, url], input=bodies[0], check=False)
    assert done.returncode == -9
    engine = open_database(url)
    ingest = Ingest(engine.dialect.name)
    with writing(engine) as connection:
        assert ingest.store(connection, parcel(*decode(bodies[0])), received_at=START).result == "duplicate"
    after = contents(engine)
    assert [len(after[name]) for name in ("machine", "facts", "facts_seen", "measured")] == [1, 1, 1, 1]
    engine.dispose()
