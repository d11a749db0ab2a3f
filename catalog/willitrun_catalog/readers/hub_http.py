"""Bounded HTTP reads from a hub: ranges, redirects, retries, and bodies that are slow, short or far too long.

The connection, proxies, token and endpoint are those of huggingface_hub (extra `hub`), whose session may be a
requests, httpx or httpx2 client, depending on its version.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from msgspec import Struct

from willitrun_catalog.errors import CatalogError, HubError

TRIES = 3
CONNECT_TIMEOUT_S = 10.0
REQUEST_DEADLINE_S = 60.0
LONGEST_WAIT_S = 8.0
SKIPPED_BYTES = 64 << 20
"""How far into a body a server without ranges is followed."""
FIRST_STEP_BYTES = 1 << 20
LAST_STEP_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16
_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")
_YES = frozenset({"1", "on", "yes", "true"})


class Connection(Struct, frozen=True, kw_only=True):
    """A way to a hub. Made by `connect`; tests make their own."""

    session: Any
    endpoint: str
    headers: dict[str, str]
    offline: bool = False
    deadline_s: float = REQUEST_DEADLINE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def connect(environment: Mapping[str, str] | None = None) -> Connection:
    """Open a connection as huggingface_hub would; raises `CatalogError` where the extra is not installed."""
    env = os.environ if environment is None else environment
    try:
        library: Any = import_module("huggingface_hub")
        constants: Any = import_module("huggingface_hub.constants")
        utils: Any = import_module("huggingface_hub.utils")
    except ImportError as error:
        raise CatalogError(
            "hf: needs huggingface_hub, which is not installed", "pip install 'willitrun-here[hub]'"
        ) from error
    endpoint = (env.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    offline = (env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or "").lower() in _YES
    token = env.get("HF_TOKEN") or library.get_token()
    headers = dict(utils.build_hf_headers(token=token or False, library_name="willitrun-here"))
    return Connection(session=utils.get_session(), endpoint=endpoint, headers=headers, offline=offline)


class Piece(Struct, frozen=True):
    """A part of a file, with the length of the whole where the server says it."""

    data: bytes
    total_bytes: int | None


def fetch(connection: Connection, path: str, source: str, *, start: int = 0, length: int, ranged: bool = True) -> Piece:
    """Read up to `length` bytes of `path` at `start`, trying again where that can help; raises `HubError`."""
    if connection.offline:
        raise HubError(source, "offline mode is on (HF_HUB_OFFLINE)", advice="unset it, or fetch the files first")
    error = HubError(source, "was not reached")
    for attempt in range(TRIES):
        try:
            return _fetch_once(connection, path, source, start, length, ranged=ranged)
        except _RetryableError as retry:
            error = retry.error
            if attempt + 1 == TRIES or retry.wait_s > LONGEST_WAIT_S:
                break
            connection.sleep(retry.wait_s or 0.2 * 2**attempt)
    raise error


class _RetryableError(Exception):
    def __init__(self, error: HubError, wait_s: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s


def _fetch_once(connection: Connection, path: str, source: str, start: int, length: int, *, ranged: bool) -> Piece:
    headers = dict(connection.headers)
    if ranged:
        headers["Range"] = f"bytes={start}-{start + length - 1}"
        headers["Accept-Encoding"] = "identity"
    until = connection.clock() + connection.deadline_s
    try:
        with _response(connection.session, connection.endpoint + path, headers) as response:
            _check_status(response, source)
            begins, total = _placement(response, source, start)
            body = _read(connection, response, source, start - begins, length, until)
    except (CatalogError, _RetryableError):
        raise
    except Exception as error:  # each client library has a tree of errors of its own
        raise _RetryableError(HubError(source, f"was not reached: {type(error).__name__}: {error}")) from error
    expected = length if total is None else max(0, min(length, total - start))
    if ranged and total is not None and len(body) < expected:
        raise _RetryableError(HubError(source, f"the body ended after {len(body)} of {expected} bytes"))
    return Piece(body, total)


@contextmanager
def _response(session: Any, url: str, headers: dict[str, str]) -> Iterator[Any]:
    if hasattr(session, "stream") and not hasattr(session, "mount"):
        with session.stream("GET", url, headers=headers, timeout=CONNECT_TIMEOUT_S, follow_redirects=True) as response:
            yield response
    else:
        with session.get(url, headers=headers, timeout=CONNECT_TIMEOUT_S, stream=True) as response:
            yield response


def _check_status(response: Any, source: str) -> None:
    status = int(response.status_code)
    if status in {200, 206}:
        return
    if status in {401, 403}:
        raise HubError(
            source,
            f"access was refused ({status})",
            status=status,
            advice="accept its licence on the hub, then set HF_TOKEN or run `hf auth login`; or check the name",
        )
    if status == 404:  # noqa: PLR2004 - the status itself
        raise HubError(source, "does not exist (404)", status=status, advice="check organisation, name and file")
    if status == 416:  # noqa: PLR2004
        raise HubError(source, "is shorter than its header says (416)", status=status)
    error = HubError(source, f"the hub answered {status}", status=status, advice="try again later")
    if status == 429 or status >= 500:  # noqa: PLR2004
        raise _RetryableError(error, _retry_after(response))
    raise error


def _retry_after(response: Any) -> float:
    text = str(response.headers.get("Retry-After") or "")
    return float(text) if text.isdigit() else 0.0


def _placement(response: Any, source: str, start: int) -> tuple[int, int | None]:
    """Tell where the body begins in the file, and how long the file is."""
    if int(response.status_code) == 206:  # noqa: PLR2004
        match = _RANGE.match(str(response.headers.get("Content-Range") or ""))
        if match is None or int(match[1]) != start:
            raise HubError(source, f"answered another range than was asked for: {match and match[0]}")
        return start, None if match[3] == "*" else int(match[3])
    if start > SKIPPED_BYTES:
        raise HubError(source, "the server does not serve ranges")
    text = str(response.headers.get("Content-Length") or "")
    encoded = response.headers.get("Content-Encoding")
    return 0, int(text) if text.isdigit() and not encoded else None


def _read(connection: Connection, response: Any, source: str, skip: int, length: int, until: float) -> bytes:
    """Read `length` bytes of a body after `skip`, and nothing beyond them."""
    chunks = getattr(response, "iter_bytes", None) or response.iter_content
    kept = bytearray()
    for chunk in chunks(_CHUNK_BYTES):
        if skip >= len(chunk):
            skip -= len(chunk)
        else:
            kept += chunk[skip : skip + length - len(kept)]
            skip = 0
        if len(kept) >= length:
            break
        if connection.clock() > until:
            raise HubError(
                source, f"sent {len(kept)} of {length} bytes in {connection.deadline_s:.0f} s", advice="try again later"
            )
    return bytes(kept)


class HubFile:
    """A file on a hub, read in ranges that grow while it is read on."""

    def __init__(
        self, connection: Connection, path: str, name: str, size: int, *, first_bytes: int = FIRST_STEP_BYTES
    ) -> None:
        self.name = name
        self.size = size
        self._connection = connection
        self._path = path
        self._step = first_bytes
        self._begin = 0
        self._data = b""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; raises `HubError`."""
        length = max(0, min(length, self.size - offset))
        end = self._begin + len(self._data)
        if not (self._begin <= offset and offset + length <= end):
            wanted = min(max(length, self._step), self.size - offset)
            piece = fetch(self._connection, self._path, self.name, start=offset, length=wanted) if wanted > 0 else None
            self._data, self._begin = (piece.data if piece else b""), offset
            self._step = min(LAST_STEP_BYTES, self._step * 2)
            if piece is not None and piece.total_bytes not in {None, self.size}:
                raise HubError(self.name, f"has {piece.total_bytes} bytes, its listing says {self.size}")
        at = offset - self._begin
        return self._data[at : at + length]
