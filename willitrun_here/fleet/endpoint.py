"""What an HTTP operation is: one table entry that gives routes, access checks and OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from willitrun_here.fleet.document import MAX_BODY_BYTES, Problem
from willitrun_here.fleet.errors import (
    CloneError,
    DocumentError,
    FleetError,
    RefusedError,
    UnreachableError,
)  # fmt: skip

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Access = Literal["open", "enrol", "agent", "read", "page"]
"""Who may call: anybody, a holder of an enrolment token, the agent in the address, a reader, a reader's browser."""


class Call(Struct, frozen=True):
    """One request whose caller was checked: path parameters, the query as a value, the body as it came."""

    request: Request
    path: Mapping[str, str]
    query: Any
    body: bytes
    identity: Any
    """Who calls: an agent's row, or None."""


Handler = Callable[[Any, Call], Awaitable["Response"]]
"""(the server's fleet, the call) -> answer."""


class Operation(Struct, frozen=True, kw_only=True):
    """One operation of the server."""

    method: str
    path: str
    name: str
    summary: str
    access: Access
    handler: Handler
    answers: Mapping[int, Any]
    """Status to the Struct of a JSON body, or to a media type."""
    query: type | None = None
    body: type | None = None
    path_schemas: Mapping[str, Mapping[str, Any]] = {}


def problem(status: int, code: str, message: str, **more: Any) -> Response:
    """Build the answer that says what went wrong."""
    headers = {"Retry-After": str(round(more.pop("retry_after_s")))} if "retry_after_s" in more else None
    return json_answer(Problem(code=code, message=message, **more), status=status, headers=headers)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Build a JSON answer from a Struct."""
    from starlette.responses import Response  # noqa: PLC0415 - the server's alone

    return Response(msgspec.json.encode(value), status, headers, "application/json")


def problem_of(error: Exception) -> Response | None:
    """Turn a known error into an answer; None for a defect."""
    if isinstance(error, DocumentError):
        return problem(400, "not-acceptable", error.message, accepts=error.accepts)
    if isinstance(error, RefusedError):
        return problem(401, "not-authorized", error.message)
    if isinstance(error, CloneError):
        return problem(409, "clone", error.message)
    if isinstance(error, UnreachableError):
        return problem(429, "busy", error.message, retry_after_s=error.retry_after_s or 5.0)
    if isinstance(error, FleetError):
        return problem(400, "not-possible", error.message)
    return None


def read_query(request: Request, kind: type | None) -> Any:
    """Convert the query of an address; raises DocumentError naming the parameter that is wrong."""
    given = {key: value for key, value in request.query_params.items() if value != ""}
    if kind is None:
        return None
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise DocumentError(f"query: {error}") from error


async def read_body(request: Request) -> bytes:
    """Read a body within the limit; raises OverflowError as soon as it is passed."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise OverflowError
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise OverflowError
    return bytes(body)
