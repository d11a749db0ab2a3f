"""A small program that behaves like llama-server: logs, listens, answers; fails as it is told by FAKE_ENGINE."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HELP = Path(__file__).with_name("help_new.txt")
BUFFERS = """\
0.00.1.1 I load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
0.00.1.2 I load_tensors:        CUDA0 model buffer size =  4403.49 MiB
0.00.1.3 I llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body: object, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer([] if MODE == "odd-health" and next(POLLS) < 2 else {"status": "ok"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if MODE == "dies-when-asked":
            print("E fatal error: assertion failed in decode", flush=True)
            os._exit(134)
        if MODE == "no-timings":
            self.answer({"error": {"message": "no"}}, 500)
        elif MODE == "half-timings":
            self.answer({"timings": {"prompt_n": 1}})
        elif MODE == "no-http":
            self.wfile.write(b"nonsense\r\n\r\n")
        else:
            timings = {"prompt_n": 192, "prompt_per_second": 1500.0, "predicted_n": 48, "predicted_per_second": 61.5}
            self.answer({"content": "text", "timings": timings})

    def log_message(self, *_: object) -> None:
        pass


MODE = os.environ.get("FAKE_ENGINE", "")
POLLS = iter(range(10**6))


def main() -> None:
    if "--help" in sys.argv:
        sys.stdout.write(HELP.read_text())
        return
    if (started := os.environ.get("FAKE_STARTED")) is not None:
        with Path(started).open("a") as file:
            file.write(f"{os.getpid()} {json.dumps(sys.argv[1:])}\n")
    tries = 1 if started is None else len(Path(started).read_text().splitlines())
    if MODE == "unknown-argument":
        sys.exit("error: unknown argument: --frobnicate")
    if MODE == "no-memory" or (MODE == "no-memory-once" and tries == 1):
        print("E alloc_buffer: allocating 4403.49 MiB on device 0: cudaMalloc failed: out of memory", flush=True)
        sys.exit(1)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE == "wrapper":
        child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:]], env={**os.environ, "FAKE_ENGINE": ""})
        child.wait()
        return
    sys.stdout.write(BUFFERS)
    sys.stdout.flush()
    if MODE == "never-ready":
        time.sleep(60)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with http.server.HTTPServer(("127.0.0.1", port), Handler) as server:
        if MODE == "stops-later":
            server.timeout = 0.2
            while next(POLLS) < 4:
                server.handle_request()
            print("E abort: lost the device", flush=True)
            sys.exit(3)
        server.serve_forever()


if __name__ == "__main__":
    main()
