"""What the operations of the API do. Each takes the server's fleet and a checked call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from willitrun_catalog.errors import CatalogError
from willitrun_estimator.request import Request as Question
from willitrun_here.fleet import auth, detail, query
from willitrun_here.fleet.document import Enrolled, Enrolment, decode
from willitrun_here.fleet.endpoint import Call, json_answer, problem
from willitrun_here.fleet.errors import CloneError, DocumentError, FleetError
from willitrun_here.fleet.exporters import table
from willitrun_here.fleet.ingest import parcel
from willitrun_here.fleet.together import plan_together

if TYPE_CHECKING:
    from willitrun_here.fleet.app import Fleet
    from willitrun_here.fleet.cluster import ClusterPlan
    from willitrun_here.fleet.where import Where


class Health(Struct, frozen=True, kw_only=True):
    """Whether the server can work."""

    status: str


class Ask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The question as the address of a page or an API call says it."""

    model: query.Words = ""
    context: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    min_decode: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    users: Annotated[int, Meta(ge=1, le=65_536)] = 1
    quant: query.Words | None = None
    engine: query.Words | None = None


async def healthz(fleet: Fleet, _call: Call) -> Response:
    """Answer 200 when the database answers."""
    try:
        await run_in_threadpool(_ping, fleet)
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is "not now"
        return problem(503, "no-database", str(error).splitlines()[0][:200], retry_after_s=5.0)
    return json_answer(Health(status="ok"))


async def enrol(fleet: Fleet, call: Call) -> Response:
    """Register an agent and hand out its token, once."""
    try:
        enrolment = msgspec.json.decode(call.body, type=Enrolment)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DocumentError(str(error)) from error
    if "\0" in f"{enrolment.fingerprint.machine}{enrolment.fingerprint.product}":
        raise DocumentError("text with a NUL - at `$.fingerprint`")
    subject = call.request.scope.get("extensions", {}).get("willitrun.peer")
    now = fleet.clock()
    work = fleet.writer.submit(lambda connection: auth.enrol(connection, enrolment, now=now, subject=subject))
    token = await asyncio.wrap_future(work)
    fleet.agents.forget()
    return json_answer(Enrolled(agent_id=enrolment.agent_id, token=token), status=201)


async def put_report(fleet: Fleet, call: Call) -> Response:
    """Store a report; answered after its commit."""
    try:
        receipt = await _store(fleet, call)
    except FleetError as error:
        fleet.metrics.report("clone" if isinstance(error, CloneError) else "refused")
        raise
    fleet.metrics.report(receipt.result)
    return json_answer(receipt)


async def _store(fleet: Fleet, call: Call) -> Any:
    report, raw = decode(call.body)
    if str(report.agent_id) != _uuid(call.path["agent_id"]) or str(report.sequence) != call.path["sequence"]:
        raise DocumentError("the address and the document name different agents or sequences")
    if auth.is_other_machine(call.identity, report.fingerprint):
        raise CloneError("this agent id belongs to another machine")
    return await asyncio.wrap_future(fleet.writer.submit_report(parcel(report, raw)))


async def list_machines(fleet: Fleet, call: Call) -> Response:
    """List machines, a page at a time."""
    return json_answer(await read(fleet, query.list_machines, call.query))


async def list_machines_csv(fleet: Fleet, call: Call) -> Response:
    """List machines as comma-separated values, all pages at once."""
    rows = await read(fleet, query.every_machine, call.query)
    return Response(table.csv_text(rows), media_type="text/csv")


async def get_machine(fleet: Fleet, call: Call) -> Response:
    """Describe one machine."""
    found = await read(fleet, detail.machine_detail, _uuid(call.path["agent_id"]))
    return problem(404, "not-found", "there is no machine of this id") if found is None else json_answer(found)


async def get_totals(fleet: Fleet, _call: Call) -> Response:
    """Sum the fleet."""
    return json_answer(await read(fleet, query.totals))


async def where(fleet: Fleet, call: Call) -> Response:
    """Tell for every machine whether it runs a model."""
    try:
        return json_answer(await run_in_threadpool(ask, fleet, call.query))
    except CatalogError as error:
        return problem(404, "unknown-model", f"{error.message} {error.advice}".strip())


async def plan(fleet: Fleet, call: Call) -> Response:
    """Plan a model over several machines."""
    try:
        return json_answer(await run_in_threadpool(ask_together, fleet, call.query))
    except CatalogError as error:
        return problem(404, "unknown-model", f"{error.message} {error.advice}".strip())


async def metrics(fleet: Fleet, _call: Call) -> Response:
    """Give the metrics to Prometheus."""
    return Response(fleet.metrics.text(await read(fleet, query.totals)), media_type="text/plain; version=0.0.4")


def ask(fleet: Fleet, asked: Ask) -> Where:
    """Find the model and ask all machines; raises CatalogError for an unknown model, DocumentError without one.

    Names of the catalog alone are taken: a path or an address would make the server read what a caller names.
    """
    if not asked.model.strip():
        raise DocumentError("query: the model is missing")
    return fleet.questions.where(fleet.find_model(asked.model), question_of(asked))


def ask_together(fleet: Fleet, asked: Ask) -> ClusterPlan:
    """Find the model and plan it over the live machines; raises as `ask` does."""
    if not asked.model.strip():
        raise DocumentError("query: the model is missing")
    return plan_together(
        fleet.engine,
        fleet.find_model(asked.model),
        question_of(asked),
        planner=fleet.planner,
        catalog_version=fleet.catalog_version,
        clock=fleet.clock,
    )


def question_of(asked: Ask) -> Question:
    """Turn the parameters into the estimator's request; raises DocumentError."""
    try:
        return msgspec.convert(
            {
                "context": asked.context,
                "min_decode": asked.min_decode,
                "concurrency": asked.users,
                "quant": asked.quant,
                "engine": asked.engine,
            },
            Question,
        )
    except msgspec.ValidationError as error:
        raise DocumentError(f"query: {error}") from error


async def read(fleet: Fleet, function: Any, *arguments: Any) -> Any:
    """Run a reading function with a connection and the time, in a thread."""

    def run() -> Any:
        with fleet.engine.connect() as connection:
            return function(connection, *arguments, now=fleet.clock())

    return await run_in_threadpool(run)


def _ping(fleet: Fleet) -> None:
    with fleet.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise DocumentError(f"{text[:64]!r} is not an agent id") from error
