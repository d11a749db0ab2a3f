"""The fleet server as an ASGI application: checks who calls, validates, answers known errors, counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from willitrun_catalog.model import ModelSpec
from willitrun_here.fleet import auth, endpoint, operations, pages
from willitrun_here.fleet.endpoint import Call, Operation, problem
from willitrun_here.fleet.errors import StoreError
from willitrun_here.fleet.limits import RateLimit
from willitrun_here.fleet.metrics import Metrics
from willitrun_here.fleet.openapi import document
from willitrun_here.fleet.retention import prune
from willitrun_here.fleet.where import Planner, Questions
from willitrun_here.fleet.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Engine

_log = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PRUNE_EVERY_S = 86400.0


class Options(Struct, frozen=True, kw_only=True):
    """How the server behaves."""

    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose `X-Forwarded-User` is believed."""
    reports_per_s: float = 2.0
    """Per agent, on average."""
    enrolments_per_minute: float = 600.0
    """Per address and per enrolment token; a site that enrols at once comes from one address."""
    archive: str | None = None
    """File that machines are written to before they are forgotten."""
    secure_cookies: bool = False


class Fleet:
    """What the operations work with: the database, its writer, the questions, limits and counters."""

    def __init__(
        self,
        engine: Engine,
        *,
        planner: Planner,
        find_model: Callable[[str], ModelSpec],
        model_names: Callable[[], Iterable[str]],
        catalog_version: str,
        options: Options = Options(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.options = options
        self.find_model = find_model
        self.model_names = model_names
        self.planner = planner
        self.catalog_version = catalog_version
        self.questions = Questions(engine, planner, catalog_version, clock)
        self.writer = Writer(engine, clock)
        self.agents = auth.AgentTokens(clock)
        self.metrics = Metrics()
        self.reports = RateLimit(options.reports_per_s, 60.0, clock)
        self.enrolments = RateLimit(options.enrolments_per_minute / 60.0, options.enrolments_per_minute, clock)
        self.mistakes = RateLimit(1.0, 100.0, clock)

    def close(self) -> None:
        """Finish what waits to be written."""
        self.writer.close()
        self.engine.dispose()


def create_app(fleet: Fleet) -> Starlette:
    """Return the application that serves the API and the pages of one fleet."""
    described: list[bytes] = []

    async def openapi(_request: Request) -> Response:
        if not described:
            described.append(msgspec.json.encode(document(operations.API)))
        return Response(described[0], media_type="application/json", headers=SECURITY_HEADERS)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        pruning = asyncio.create_task(_prune_daily(fleet))
        yield
        pruning.cancel()
        await run_in_threadpool(fleet.close)

    async def not_found(_request: Request, _error: Exception) -> Response:
        return _secured(problem(404, "not-found", "nothing is here"))

    async def not_allowed(_request: Request, error: Any) -> Response:
        answer = problem(405, "not-allowed", "this method is not offered here")
        answer.headers.update(error.headers or {})
        return _secured(answer)

    async def failed(_request: Request, _error: Exception) -> Response:
        return _secured(problem(500, "defect", "the server met a defect; its log has the trace"))

    routes = [
        Route(operation.path, _endpoint(fleet, operation), methods=[operation.method], name=operation.name)
        for operation in operations.ALL
    ]
    routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    handlers: Any = {404: not_found, 405: not_allowed, Exception: failed}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def _endpoint(fleet: Fleet, operation: Operation) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        started = time.perf_counter()
        answer = await _answer(fleet, operation, request)
        fleet.metrics.request(operation.name, answer.status_code, time.perf_counter() - started)
        return _secured(answer)

    return handle


async def _answer(fleet: Fleet, operation: Operation, request: Request) -> Response:
    try:
        allowed = await _allow(fleet, operation, request)
        if isinstance(allowed, Response):
            return allowed
        raw = await endpoint.read_body(request) if operation.method in ("POST", "PUT") else b""
        query = endpoint.read_query(request, operation.query)
        call = Call(request, request.path_params, query, raw, allowed)
        return await operation.handler(fleet, call)
    except OverflowError:
        return problem(413, "too-large", "the body is too large")
    except Exception as error:
        answer = endpoint.problem_of(error)
        if answer is None:
            raise
        return answer


async def _allow(fleet: Fleet, operation: Operation, request: Request) -> Any:
    """Return who calls, or the answer that refuses; lookups in the database happen in a thread."""
    address = request.client.host if request.client is not None else "local"
    token = _bearer(request)
    match operation.access:
        case "open":
            return None
        case "agent":
            return await _allow_agent(fleet, request, address, token)
        case "enrol":
            return await _allow_enrolment(fleet, address, token)
    if address in fleet.options.trusted_proxies and request.headers.get("x-forwarded-user"):
        return None
    token = token or request.cookies.get(pages.COOKIE)
    if token is not None and await run_in_threadpool(_holds, fleet, token, "read"):
        return None
    refusal = _unauthorized(fleet, address, "a valid read token is needed")
    return pages.login_page(wrong=token is not None, status=401) if operation.access == "page" else refusal


async def _allow_enrolment(fleet: Fleet, address: str, token: str | None) -> Response | None:
    for key in (address, auth.token_hash(token or "")):
        wait_s = fleet.enrolments.wait_s(key)
        if wait_s:
            return problem(429, "slow-down", "too many enrolments", retry_after_s=max(1.0, wait_s))
    if token is not None and await run_in_threadpool(_holds, fleet, token, "enrol"):
        return None
    return _unauthorized(fleet, address, "a valid enrolment token is needed")


async def _allow_agent(fleet: Fleet, request: Request, address: str, token: str | None) -> Any:
    agent_id = request.path_params["agent_id"]
    subject = request.scope.get("extensions", {}).get("willitrun.peer")
    if token is None and subject is None:
        return _unauthorized(fleet, address, "an agent token is needed")
    holder = fleet.agents.remembered(token, subject, agent_id) or await run_in_threadpool(
        fleet.agents.holder, fleet.engine, token, subject, agent_id
    )
    if holder is None and token is None and await _register(fleet, agent_id, subject):
        holder = await run_in_threadpool(fleet.agents.holder, fleet.engine, None, subject, agent_id)
    if holder is None:
        return _unauthorized(fleet, address, "this token does not belong to this agent; enrol again")
    wait_s = fleet.reports.wait_s(agent_id)
    if wait_s:
        return problem(429, "slow-down", "too many reports", retry_after_s=max(1.0, wait_s))
    return holder


async def _register(fleet: Fleet, agent_id: str, subject: str) -> bool:
    """Let an agent with a certificate in without an enrolment."""
    try:
        known = str(UUID(agent_id)) == agent_id
    except ValueError:
        return False
    if not known:
        return False
    now = fleet.clock()
    work = fleet.writer.submit(lambda connection: auth.register_certified(connection, agent_id, subject, now=now))
    return bool(await asyncio.wrap_future(work))


def _unauthorized(fleet: Fleet, address: str, message: str) -> Response:
    wait_s = fleet.mistakes.wait_s(address)
    if wait_s:
        return problem(429, "slow-down", "too many refused requests", retry_after_s=max(1.0, wait_s))
    answer = problem(401, "not-authorized", message)
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _holds(fleet: Fleet, token: str, kind: auth.TokenKind) -> bool:
    with fleet.engine.connect() as connection:
        return auth.token_holds(connection, token, kind, now=fleet.clock())


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _secured(answer: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


async def _prune_daily(fleet: Fleet) -> None:
    while True:
        archive = None if fleet.options.archive is None else Path(fleet.options.archive)
        try:
            await run_in_threadpool(prune, fleet.engine, now=fleet.clock(), archive=archive)
        except (StoreError, SQLAlchemyError):
            _log.exception("pruning failed; it is tried again tomorrow")
        fleet.writer.forget()
        await asyncio.sleep(PRUNE_EVERY_S)
