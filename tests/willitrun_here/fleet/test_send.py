from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from willitrun_here.fleet.document import Receipt
from willitrun_here.fleet.errors import (
    CloneError,
    DocumentError,
    FleetUsageError,
    RefusedError,
    UnreachableError,
)  # fmt: skip
from willitrun_here.fleet.send import Reply, Security, check_url, connect, put_report, retry_delay_s

PLAIN = Security()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8470/", "http://[::1]:1", "http://localhost", "https://fleet.example"]
)
def test_addresses_that_are_safe_are_taken(url):
    assert check_url(url, PLAIN) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["http://fleet.example", "http://10.0.0.1:8470", "ftp://127.0.0.1", "fleet.example:8470", "https://",
     "https://user:secret@fleet.example", "http://127.0.0.1.evil.example"],
)  # fmt: skip
def test_addresses_that_would_leak_are_refused(url):
    with pytest.raises(FleetUsageError):
        check_url(url, PLAIN)


def test_plain_http_beyond_loopback_needs_to_be_allowed():
    assert check_url("http://fleet.example", Security(allow_plain_http=True)) == "http://fleet.example"


def test_delays_double_from_five_seconds_to_a_quarter_of_an_hour_and_never_end():
    longest = [retry_delay_s(failures, lambda low, high: high) for failures in (1, 2, 3, 8, 9, 10_000)]
    assert longest == [5.0, 10.0, 20.0, 640.0, 900.0, 900.0]
    assert retry_delay_s(4, lambda low, high: low) == 0.0


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, RefusedError), (403, RefusedError), (409, CloneError), (400, DocumentError), (413, DocumentError),
     (422, DocumentError), (429, UnreachableError), (500, UnreachableError), (503, UnreachableError),
     (302, UnreachableError), (404, UnreachableError)],
)  # fmt: skip
def test_statuses_mean_what_the_protocol_says(status, error):
    with pytest.raises(error):
        put_report(lambda *_: Reply(status, b'{"code":"x","message":"no"}', 7.0), "a", 1, b"", "t")


def test_a_wish_to_come_back_later_is_obeyed_up_to_an_hour():
    for wish, kept in ((7.0, 7.0), (1e9, 3600.0)):
        with pytest.raises(UnreachableError) as caught:
            put_report(lambda *_, wish=wish: Reply(429, b"", wish), "a", 1, b"", "t")
        assert caught.value.retry_after_s == kept


def test_an_answer_that_is_no_receipt_is_not_taken_for_a_delivery():
    with pytest.raises(UnreachableError):
        put_report(lambda *_: Reply(200, b"<html>captive portal</html>"), "a", 1, b"", "t")


@pytest.fixture
def odd_server():
    class Handler(BaseHTTPRequestHandler):
        seen: list[tuple[str, str | None]] = []  # noqa: RUF012

        def do_PUT(self):
            self.seen.append((self.path, self.headers.get("Authorization")))
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/redirect"):
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
            elif self.path.startswith("/close"):
                self.wfile.write(b"garbage\r\n\r\n")
                return
            else:
                self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"result":"stored"}')

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler.seen
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_token_goes_in_a_header_and_redirects_are_not_followed(odd_server, monkeypatch):
    url, seen = odd_server
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # loopback is reached without a proxy
    assert put_report(connect(url, PLAIN), "a", 1, b"{}", "secret") == Receipt(result="stored")
    assert seen == [("/api/v1/agents/a/reports/1", "Bearer secret")]
    with pytest.raises(UnreachableError):
        put_report(connect(url + "/redirect", PLAIN), "a", 2, b"{}", "secret")
    assert len(seen) == 2


def test_a_dead_or_garbled_server_is_unreachable_and_never_a_traceback(odd_server):
    url, _ = odd_server
    for address in ("http://127.0.0.1:1", url + "/close"):
        with pytest.raises(UnreachableError):
            put_report(connect(address, PLAIN, timeout_s=2), "a", 1, b"{}", None)
