"""Running the server: TLS off loopback, client certificates where asked for, one process, quiet shutdown."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from willitrun_here.fleet.errors import FleetError, FleetUsageError
from willitrun_here.fleet.send import is_loopback

if TYPE_CHECKING:
    from starlette.applications import Starlette

TLS_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2 (all have forward secrecy and authenticated encryption); 1.3 has none to choose."""


class Listen(Struct, frozen=True, kw_only=True):
    """Where to listen, and how callers are protected."""

    host: str = "127.0.0.1"
    port: int = 8470
    certificate_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    """Authority of the agents' certificates; an agent with one needs no token."""
    allow_plain_http: bool = False


def check_listen(listen: Listen) -> None:
    """Raise FleetUsageError for an address that would show tokens to a network."""
    plain = listen.certificate_file is None
    if plain and not listen.allow_plain_http and not is_loopback(listen.host):
        raise FleetUsageError(
            f"listening on {listen.host} without TLS would show every token to the network",
            "Give --certificate and --key, or put a proxy before 127.0.0.1, or say --allow-plain-http.",
        )
    if listen.client_ca_file is not None and plain:
        raise FleetUsageError("--client-ca needs --certificate and --key")


def serve(app: Starlette, listen: Listen) -> None:
    """Serve until a signal; raises FleetError when the port cannot be had."""
    import uvicorn  # noqa: PLC0415 - the server's alone

    check_listen(listen)
    config = uvicorn.Config(
        app,
        host=listen.host,
        port=listen.port,
        http=peer_protocol() if listen.client_ca_file is not None else "auto",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32 * 1024,
        ssl_certfile=listen.certificate_file,
        ssl_keyfile=listen.key_file,
        ssl_ca_certs=str(listen.client_ca_file) if listen.client_ca_file is not None else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if listen.client_ca_file is not None else ssl.CERT_NONE,
        ssl_ciphers=TLS_CIPHERS,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise FleetError(f"cannot read the certificates: {error}") from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:
        raise FleetError(f"cannot serve on {listen.host}:{listen.port}", "Is the port in use?") from error


def peer_protocol() -> type[Any]:
    """Return uvicorn's HTTP protocol with the verified subject of the client's certificate in the scope."""
    from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415

    class PeerProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            subject = subject_of(transport.get_extra_info("peercert"))
            if subject is None:
                return
            inner = self.app

            async def app(scope: Any, receive: Any, send: Any) -> None:
                scope.setdefault("extensions", {})["willitrun.peer"] = subject
                await inner(scope, receive, send)

            self.app = app

    return PeerProtocol


def subject_of(certificate: Any) -> str | None:
    """Write the subject of a verified certificate as one line; None without one."""
    if not certificate:
        return None
    pairs = [pair for group in certificate.get("subject", ()) for pair in group]
    return ",".join(f"{name}={value}" for name, value in pairs) or None
