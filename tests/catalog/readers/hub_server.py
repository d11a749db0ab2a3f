"""A local HTTP server that speaks a model hub's routes: lists, files with ranges, redirects, refusals, bad bodies."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """What the server holds and how it misbehaves."""

    repositories: dict = field(default_factory=dict)
    """Repository to {file name: bytes or (head, total size)}."""
    token: str | None = None
    fail: dict = field(default_factory=dict)
    """Path ending to a list of statuses to answer first."""
    redirect: bool = False
    ranges: bool = True
    cut_after: int | None = None
    """Close the connection after this many body bytes."""
    trickle_s: float = 0.0
    garbage: bool = False
    requests: list = field(default_factory=list)
    sent: int = 0
    url: str = ""


def serve(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args):
            return

        def do_GET(self):  # noqa: PLR0911 - one route each
            where = urlsplit(self.path)
            path = unquote(where.path)
            hub.requests.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
            for ending, statuses in hub.fail.items():
                if path.endswith(ending) and statuses:
                    status = statuses.pop(0)
                    return self.answer(status, b"{}", {"Retry-After": "0"} if status == 429 else {})
            if hub.token is not None and not path.startswith("/cdn/"):
                given = self.headers.get("Authorization")
                if given != f"Bearer {hub.token}":
                    return self.answer(401, b'{"error": "restricted"}')
            if path == "/api/models":
                author = parse_qs(where.query)["author"][0]
                found = [{"id": name} for name in hub.repositories if name.startswith(f"{author}/")]
                return self.answer(200, json.dumps(found).encode())
            if path.startswith("/api/models/"):
                return self.listing(path.removeprefix("/api/models/"))
            match = re.match(r"^(/cdn)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)$", path)
            if match is None or match[2] not in hub.repositories or match[3] not in hub.repositories[match[2]]:
                return self.answer(404, b"not found")
            if hub.redirect and not match[1]:
                return self.answer(302, b"", {"Location": f"{hub.url}/cdn{path}".replace("127.0.0.1", "localhost")})
            return self.file(hub.repositories[match[2]][match[3]])

        def listing(self, name):
            if name not in hub.repositories:
                return self.answer(404, b"{}")
            if hub.garbage:
                return self.answer(200, b"<html>a captive portal</html>")
            siblings = [
                {"rfilename": file, "size": body[1] if isinstance(body, tuple) else len(body)}
                for file, body in hub.repositories[name].items()
            ]
            body = {"id": name, "sha": "abc123", "siblings": siblings, "cardData": {"license": "apache-2.0"}}
            return self.answer(200, json.dumps(body).encode())

        def file(self, body):
            head, total = body if isinstance(body, tuple) else (body, len(body))
            asked = re.match(r"^bytes=(\d+)-(\d+)$", self.headers.get("Range") or "")
            start, end = (int(asked[1]), min(int(asked[2]) + 1, total)) if asked and hub.ranges else (0, total)
            if start >= total:
                return self.answer(416, b"")
            self.send_response(206 if asked and hub.ranges else 200)
            self.send_header("Content-Length", str(end - start))
            if asked and hub.ranges:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            self.end_headers()
            sent = 0
            try:
                while start + sent < end:
                    size = min(1 << 16, end - start - sent)
                    if hub.cut_after is not None and sent + size > hub.cut_after:
                        self.close_connection = True
                        return self.connection.close()
                    at = start + sent
                    piece = head[at : at + size]
                    self.wfile.write(piece + b"\0" * (size - len(piece)))
                    sent += size
                    hub.sent += size
                    time.sleep(hub.trickle_s)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            return None

        def answer(self, status, body, headers=()):
            self.send_response(status)
            for key, value in dict(headers).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
