from __future__ import annotations

import uuid

import pytest
from sqlalchemy import insert

from willitrun_estimator.request import Request
from willitrun_here.fleet import tables
from willitrun_here.fleet.database import writing
from willitrun_here.fleet.document import decode, encode
from willitrun_here.fleet.ingest import Ingest, parcel
from willitrun_here.fleet.where import Questions

GIB = 1024**3


def store(engine, make_report, machines, at):
    ingest = Ingest(engine.dialect.name)
    with writing(engine) as connection:
        for number, machine in enumerate(machines, start=1):
            report = make_report(machine, 1, agent=uuid.UUID(int=number))
            ingest.store(connection, parcel(*decode(encode(report))), received_at=at)


def by_name(answer):
    return {row.name: row for row in answer.machines}


@pytest.fixture
def asked(engine, make_report, make_spec, make_planner, clock):
    def ask(machines, request=None, planner=None, at=None):
        store(engine, make_report, machines, at or clock())
        questions = Questions(engine, planner or make_planner(10.0), "1", clock)
        return questions.where(make_spec(), request or Request())

    return ask


def test_verdicts_are_now_if_idle_and_no_each_with_both_numbers(asked, make_machine):
    found = by_name(
        asked([make_machine("now", free=20), make_machine("idle", free=4), make_machine("no", total=8, free=8)])
    )
    assert {name: row.verdict for name, row in found.items()} == {
        "now": "runs-now", "idle": "runs-if-idle", "no": "does-not-run",
    }  # fmt: skip
    assert found["idle"].reason == "NVIDIA GeForce RTX 3090 needs 10.0 GiB and has 4.0 GiB free"
    assert (found["now"].needs[0].needed_bytes, found["now"].needs[0].free_bytes) == (10 * GIB, 20 * GIB)
    assert str(8 * GIB) in found["no"].reason
    assert str(10 * GIB) in found["no"].reason
    assert found["now"].command == "llama-server -m toy-8b"


def test_answers_come_best_first(asked, make_machine):
    machines = [make_machine("no", total=8), make_machine("idle", free=1), make_machine("now")]
    assert [row.name for row in asked(machines).machines] == ["now", "idle", "no"]


def test_a_partly_busy_machine_runs_on_the_gpus_that_are_free(asked, make_machine):
    from msgspec.structs import replace  # noqa: PLC0415

    machine = make_machine("two", gpus=2, free=24)
    busy = replace(machine.gpus[0], memory_free_bytes=1 * GIB)
    (row,) = asked([replace(machine, gpus=(busy, machine.gpus[1]))]).machines
    assert row.verdict == "runs-now"
    assert [(need.device, need.free_bytes) for need in row.needs] == [("NVIDIA GeForce RTX 3090", 24 * GIB)]


def test_unknown_free_memory_is_never_taken_for_free(asked, make_machine):
    from msgspec.structs import replace  # noqa: PLC0415

    machine = make_machine("silent")
    silent = replace(machine, gpus=(replace(machine.gpus[0], memory_free_bytes=None),))
    (row,) = asked([silent]).machines
    assert (row.verdict, row.reason) == ("runs-if-idle", "free memory of NVIDIA GeForce RTX 3090 is not known")


def test_machines_without_gpus_are_asked_too(asked, make_machine):
    (row,) = asked([make_machine("cpu", gpus=0, ram_free=30)]).machines
    assert (row.verdict, row.needs[0].device) == ("runs-now", "host")


def test_late_machines_are_marked(asked, make_machine, clock):
    assert asked([make_machine()], at=clock() - 7200).machines[0].status == "late"


def test_gone_machines_are_not_offered(asked, make_machine, clock):
    assert asked([make_machine()], at=clock() - 2 * 86400).machines == ()


def test_too_slow_is_said_with_both_speeds(asked, make_machine):
    (row,) = asked([make_machine()], request=Request(min_decode=80.0)).machines
    assert (row.verdict, row.reason) == ("does-not-run", "decodes 50.0 tokens/s, 80 were asked for")


def test_a_question_without_an_answer_is_a_verdict_and_no_failure(asked, make_machine):
    (row,) = asked([make_machine()], request=Request(quant="impossible")).machines
    assert (row.verdict, row.reason) == ("does-not-run", "no such quantization")


def test_plans_are_computed_once_a_shape_and_kept_over_restarts(
    engine, make_report, make_machine, make_spec, make_planner, clock
):
    machines = [make_machine(f"a{number}", free=20) for number in range(10)]
    machines += [make_machine(f"b{number}", gpus=2, free=20) for number in range(10)]
    store(engine, make_report, machines, clock())
    planner = make_planner(10.0)
    questions = Questions(engine, planner, "1", clock)
    first = questions.where(make_spec(), Request())
    assert (first.shapes, first.plans_computed, planner.calls) == (2, 2, 2)
    assert questions.where(make_spec(), Request()).plans_computed == 0
    assert Questions(engine, planner, "1", clock).where(make_spec(), Request()).plans_computed == 0
    assert Questions(engine, planner, "2", clock).where(make_spec(), Request()).plans_computed == 2
    assert Questions(engine, planner, "1", clock).where(make_spec(), Request(context=4096)).plans_computed == 2


def big_fleet(engine, make_report, make_machine, clock, count=10_000, shapes=60):
    """A fleet of many machines in few shapes, written straight into the tables."""
    models = [(f"NVIDIA GPU {number}", 8 + 4 * (number % 12), 1 + number % 8) for number in range(shapes)]
    kinds = [
        make_machine(f"s{number}", gpus=gpus, total=total, model=model)
        for number, (model, total, gpus) in enumerate(models)
    ]
    store(engine, make_report, kinds, clock())
    with writing(engine) as connection:
        rows = connection.execute(tables.machine.select()).mappings().all()
        copies = []
        for number in range(count - shapes):
            row = dict(rows[number % shapes])
            total = [int(value) for value in row["free"].strip("[]").split(",")]
            free = [value * ((number * 7919 + position * 104_729) % 100) // 100 for position, value in enumerate(total)]
            row |= {
                "agent_id": str(uuid.UUID(int=1000 + number)), "name": f"node-{number}",
                "free": "[" + ",".join(map(str, free)) + "]", "vram_free_bytes": sum(free[1:]),
            }  # fmt: skip
            copies.append(row)
        connection.execute(insert(tables.machine), copies)


def test_ten_thousand_machines_cost_the_plans_of_their_shapes(
    sqlite_engine, make_report, make_machine, make_spec, make_planner, clock
):
    big_fleet(sqlite_engine, make_report, make_machine, clock)
    planner = make_planner(10.0)
    questions = Questions(sqlite_engine, planner, "1", clock)
    answer = questions.where(make_spec(), Request())
    assert (len(answer.machines), answer.shapes) == (10_000, 60)
    assert {"runs-now", "runs-if-idle", "does-not-run"} == answer.counts.keys()
    # Each shape is planned idle, and at no more than eight levels of free memory on as many cards as it has.
    first = planner.calls
    assert 60 <= first < 10_000 / 2
    assert len(questions.where(make_spec(), Request()).machines) == 10_000
    assert planner.calls == first
