"""Talking to the server: one request at a time over verified TLS, and when to try again."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from willitrun_here.fleet.document import Enrolled, Enrolment, Problem, Receipt
from willitrun_here.fleet.errors import CloneError, DocumentError, FleetUsageError, RefusedError, UnreachableError

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

FIRST_DELAY_S = 5.0
LAST_DELAY_S = 900.0
LONGEST_HOLD_S = 3600.0
"""A Retry-After beyond this is cut: a wrong header must not silence an agent for days."""
MAX_ANSWER_BYTES = 64 * 1024

Send = Callable[[str, str, bytes, str | None], "Reply"]
"""(method, path, body, token) -> Reply; raises UnreachableError."""


class Reply(Struct, frozen=True):
    """What came back, whatever its status."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Security(Struct, frozen=True, kw_only=True):
    """How the server is trusted and, with a certificate, how this agent shows who it is."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plain_http: bool = False


def check_url(url: str, security: Security) -> str:
    """Return the server's base address; raises FleetUsageError for plain HTTP to anything but loopback."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FleetUsageError(f"{url!r} is not a server's address", "Write https://HOST[:PORT].")
    if parts.username or parts.password:
        raise FleetUsageError("the address holds a password", "Secrets come from files alone: --enrol-token-file.")
    if parts.scheme == "http" and not security.allow_plain_http and not is_loopback(parts.hostname):
        raise FleetUsageError(
            f"{url} would send the token in clear", "Use https://, or say --allow-plain-http on a trusted network."
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Tell whether a host name means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def connect(url: str, security: Security, *, timeout_s: float = 20.0) -> Send:
    """Return the function that sends one request to the server. Redirects are never followed: they could leak tokens.

    Proxies of the environment are used, except for loopback.
    """
    import http.client  # noqa: PLC0415 - only when something is sent
    import ssl  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    base = check_url(url, security)

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
            return None

    handlers: list[urllib.request.BaseHandler] = [NoRedirect()]
    if base.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_tls(security)))
    if is_loopback(urlsplit(base).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)

    def send(method: str, path: str, body: bytes, token: str | None) -> Reply:
        headers = {"Content-Type": "application/json", "User-Agent": "willitrun-here"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(base + path, data=body, headers=headers, method=method)  # noqa: S310 - checked
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return Reply(answer.status, answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.read(MAX_ANSWER_BYTES), _seconds(error.headers.get("Retry-After")))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            advice = "Give the authority that signed it: --ca-file." if isinstance(reason, ssl.SSLError) else ""
            raise UnreachableError(f"{base} did not answer: {reason}", advice) from error

    return send


def enrol(send: Send, enrolment: Enrolment, token: str) -> str:
    """Exchange an enrolment token for this agent's own; raises RefusedError, CloneError or UnreachableError."""
    reply = send("POST", "/api/v1/enrol", msgspec.json.encode(enrolment), token)
    _raise_for(reply, "enrol")
    return _decode(reply, Enrolled).token


def put_report(send: Send, agent_id: str, sequence: int, body: bytes, secret: str | None) -> Receipt:
    """Hand one report to the server; it has committed it when this returns.

    Raises RefusedError (enrol again), CloneError, DocumentError (never retry) or UnreachableError.
    """
    reply = send("PUT", f"/api/v1/agents/{agent_id}/reports/{sequence}", body, secret)
    _raise_for(reply, "report")
    return _decode(reply, Receipt)


def retry_delay_s(failures: int, draw: Callable[[float, float], float] = random.uniform) -> float:
    """Return how long to wait after so many failures in a row: full jitter, 5 s doubling to 15 min, without end."""
    return draw(0.0, min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30)))


def _raise_for(reply: Reply, what: str) -> None:
    if reply.status in (200, 201):
        return
    try:
        reason = msgspec.json.decode(reply.body, type=Problem).message
    except msgspec.DecodeError:
        reason = f"status {reply.status}"
    if reply.status in (401, 403):
        raise RefusedError(f"the server refused to {what}: {reason}", "Ask for a new enrolment token: fleet token.")
    if reply.status == 409:  # noqa: PLR2004 - Conflict
        raise CloneError(reason)
    if reply.status in (400, 413, 415, 422):
        raise DocumentError(f"the server will not take this {what}: {reason}")
    hold = None if reply.retry_after_s is None else min(reply.retry_after_s, LONGEST_HOLD_S)
    raise UnreachableError(f"the server cannot take a {what} now: {reason}", retry_after_s=hold)


def _decode(reply: Reply, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"not a fleet server's answer: {error}", "Is the address right?") from error


def _tls(security: Security) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - only for https

    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        if security.certificate_file is not None:
            context.load_cert_chain(security.certificate_file, security.key_file)
    except (OSError, ssl.SSLError) as error:
        raise FleetUsageError(f"cannot read the certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None
