"""The table of everything the server offers. Routes, access checks and the OpenAPI document are made from it."""

from __future__ import annotations

from willitrun_here.fleet import api, pages
from willitrun_here.fleet.cluster import ClusterPlan
from willitrun_here.fleet.detail import MachineDetail
from willitrun_here.fleet.document import Enrolled, Enrolment, Problem, Receipt, Report
from willitrun_here.fleet.endpoint import Operation
from willitrun_here.fleet.query import MachineFilter, MachinePage, Totals
from willitrun_here.fleet.where import Where

_AGENT = {"type": "string", "format": "uuid"}
_SEQUENCE = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}

API: tuple[Operation, ...] = (
    Operation(
        method="GET", path="/healthz", name="healthz", summary="Whether the server works.", access="open",
        handler=api.healthz, answers={200: api.Health, 503: Problem},
    ),
    Operation(
        method="GET", path="/metrics", name="metrics", summary="Metrics for Prometheus.", access="read",
        handler=api.metrics, answers={200: "text/plain"},
    ),
    Operation(
        method="POST", path="/api/v1/enrol", name="enrol", summary="Register an agent; answers with its token.",
        access="enrol", handler=api.enrol, body=Enrolment, answers={201: Enrolled, 400: Problem, 409: Problem},
    ),
    Operation(
        method="PUT", path="/api/v1/agents/{agent_id}/reports/{sequence}", name="put_report",
        summary="Store a report; the same one may come again. Answered after the commit.", access="agent",
        handler=api.put_report, body=Report, path_schemas={"agent_id": _AGENT, "sequence": _SEQUENCE},
        answers={200: Receipt, 400: Problem, 409: Problem},
    ),
    Operation(
        method="GET", path="/api/v1/machines", name="list_machines", summary="The machines, a page at a time.",
        access="read", handler=api.list_machines, query=MachineFilter, answers={200: MachinePage, 400: Problem},
    ),
    Operation(
        method="GET", path="/api/v1/machines.csv", name="list_machines_csv", summary="The machines as CSV.",
        access="read", handler=api.list_machines_csv, query=MachineFilter, answers={200: "text/csv", 400: Problem},
    ),
    Operation(
        method="GET", path="/api/v1/machines/{agent_id}", name="get_machine",
        summary="One machine: facts, state, history, measured runs.", access="read", handler=api.get_machine,
        path_schemas={"agent_id": _AGENT}, answers={200: MachineDetail, 400: Problem, 404: Problem},
    ),
    Operation(
        method="GET", path="/api/v1/totals", name="get_totals", summary="The fleet in sums.", access="read",
        handler=api.get_totals, answers={200: Totals},
    ),
    Operation(
        method="GET", path="/api/v1/where", name="where", summary="Which machines run a model, and with which plan.",
        access="read", handler=api.where, query=api.Ask, answers={200: Where, 400: Problem, 404: Problem},
    ),
    Operation(
        method="GET", path="/api/v1/plan", name="plan", summary="Run a model over several machines: every command.",
        access="read", handler=api.plan, query=api.Ask, answers={200: ClusterPlan, 400: Problem, 404: Problem},
    ),
)  # fmt: skip

_PAGES = (
    ("GET", "/", "page_machines", "The table of machines.", pages.show_machines, pages.PageFilter),
    ("GET", "/machines/{agent_id}", "page_machine", "One machine.", pages.show_machine, None),
    ("GET", "/ask", "page_ask", "Which machines run a model.", pages.show_ask, pages.PageAsk),
    ("GET", "/plan", "page_plan", "A model over several machines.", pages.show_plan, pages.PageAsk),
    ("GET", "/totals", "page_totals", "The fleet in pictures.", pages.show_totals, None),
)
_OPEN_PAGES = (
    ("GET", "/login", "login_form", "Ask for the read token.", pages.show_login),
    ("POST", "/login", "login", "Take the read token and keep it in a cookie.", pages.log_in),
    ("POST", "/logout", "logout", "Forget the cookie.", pages.log_out),
    ("GET", "/static/{name}", "static", "Style and script of the pages.", pages.static),
)

PAGES: tuple[Operation, ...] = tuple(
    Operation(
        method=method, path=path, name=name, summary=summary, access="page", handler=handler, query=asked, answers={}
    )
    for method, path, name, summary, handler, asked in _PAGES
) + tuple(
    Operation(method=method, path=path, name=name, summary=summary, access="open", handler=handler, answers={})
    for method, path, name, summary, handler in _OPEN_PAGES
)

ALL = (*API, *PAGES)
