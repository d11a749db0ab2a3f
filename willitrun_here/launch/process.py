"""One engine process: started, watched until it answers, asked once, stopped without leaving anything behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from msgspec import Struct

POLL_S = 0.1
STOP_S = 10.0
MOST_LINES = 4000
PROMPT_WORDS = 192
OUTPUT_TOKENS = 48
PR_SET_PDEATHSIG = 1


def ended_with_parent() -> Callable[[], object] | None:
    """Return what makes a child end when we are killed outright, as by the kernel for lack of memory; Linux alone.

    The C library is opened before the fork, so that nothing is left to import after it (prctl(2), PR_SET_PDEATHSIG).
    """
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - only where an engine is started

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


class Probe(Struct, frozen=True, kw_only=True):
    """What one short request measured, by the engine's own clock."""

    prompt_tokens: int
    prefill_tokens_per_s: float
    output_tokens: int
    decode_tokens_per_s: float
    text: str


class Server:
    """A running llama-server. Use as a context manager: leaving it stops the process group."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, host: str, port: int, heard: Callable[[str], None]
    ) -> None:
        self.host, self.port = host, port
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self._heard = heard
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(argv),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=ended_with_parent(),  # noqa: PLW1509 - one system call between fork and exec
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - opened as a pipe above
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._heard(line)

    def wait_until_ready(self, timeout_s: float) -> float | None:
        """Wait until `/health` says ok; return the seconds it took, or None when the process ended or time is up."""
        deadline = self.started + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self._reader.join(timeout=STOP_S)
                return None
            try:
                if self._request("GET", "/health").get("status") == "ok":
                    return time.monotonic() - self.started
            except (OSError, ValueError, http.client.HTTPException):
                pass  # not listening yet
            time.sleep(POLL_S)
        return None

    def _request(self, method: str, path: str, body: Any = None, timeout_s: float = 5.0) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, body=payload, headers={"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            if not isinstance(answer, dict):
                raise ValueError(f"{path} answered {type(answer).__name__}, not an object")  # noqa: TRY004 - its content is wrong
            return answer
        finally:
            connection.close()

    def probe(self, timeout_s: float = 300.0) -> Probe:
        """Send one short request and return the engine's own timings.

        Raises OSError, HTTPException or ValueError when it cannot.
        """
        prompt = " ".join(f"word{i}" for i in range(PROMPT_WORDS // 2))
        body = {"prompt": prompt, "n_predict": OUTPUT_TOKENS, "cache_prompt": False, "ignore_eos": True}
        answer = self._request("POST", "/completion", body, timeout_s)
        timings = answer.get("timings")
        if not isinstance(timings, dict):
            raise ValueError(str(answer.get("error", "the engine sent no timings")))  # noqa: TRY004 - its content is wrong
        try:
            return Probe(
                prompt_tokens=int(timings["prompt_n"]),
                prefill_tokens_per_s=float(timings["prompt_per_second"]),
                output_tokens=int(timings["predicted_n"]),
                decode_tokens_per_s=float(timings["predicted_per_second"]),
                text=str(answer.get("content", "")),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the engine's timings lack {error}") from None

    def wait(self) -> int:
        """Wait until the engine ends and return its exit code."""
        return self.process.wait()

    def stop(self) -> None:
        """End the process group: asked first, then by force; nothing of it is left running."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
            except ProcessLookupError:
                break
            if self._ended(STOP_S):
                break
        self._reader.join(timeout=STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _ended(self, timeout_s: float) -> bool:
        """Wait until no process of the group is left; a wrapper script can end before the engine it started."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.process.poll()
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(POLL_S / 5)
        return False
