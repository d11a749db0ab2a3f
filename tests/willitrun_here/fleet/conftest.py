from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import (
    Answer,
    Command,
    Context,
    DeviceUse,
    Fit,
    Interval,
    MachineFacts,
    ModelFacts,
    Plan,
    Speed,
)  # fmt: skip
from willitrun_here.fleet.agent import Setup, compose
from willitrun_here.fleet.auth import create_token
from willitrun_here.fleet.database import open_database
from willitrun_here.fleet.document import Fingerprint, encode
from willitrun_here.fleet.identity import Agent
from willitrun_probe.machine import Cpu, Engine, Gpu, Machine, Memory

GIB = 1024**3
START = 1_790_000_000.0
AGENT = uuid.UUID("0b0e6a52-6c5e-4d86-9a52-0f0a3d1b7a11")


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def build_machine(name="box", *, gpus=1, total=24, free=None, ram=64, ram_free=60, model="NVIDIA GeForce RTX 3090",
                  vendor="nvidia", driver="550.90", at=START, engines=()):  # fmt: skip
    free = total if free is None else free
    return Machine(
        name=name,
        observed_at=datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
        gpus=tuple(
            Gpu(
                vendor=vendor, name=model, uuid=f"GPU-{name}-{number}", pci_address=f"0000:{number + 1:02x}:00.0",
                index=number, memory_total_bytes=total * GIB, memory_free_bytes=int(free * GIB), driver_version=driver,
            )
            for number in range(gpus)
        ),
        cpu=Cpu(name="CPU", physical_cores=16, usable_threads=16),
        memory=Memory(total_bytes=ram * GIB, available_bytes=int(ram_free * GIB)),
        engines=tuple(Engine(name=engine, version=version) for engine, version in engines),
    )  # fmt: skip


def build_spec(name="toy-8b", *, layers=32, heads=32, kv_heads=8):
    layer = Layer(
        mixers=(Attention(heads=heads, kv_heads=kv_heads, key_dim=128, value_dim=128),), ffn=Dense(width=14336)
    )
    return ModelSpec(
        name=name, title=name.title(), architecture="llama", source="catalog", hidden_size=4096, vocab_size=128256,
        tied_embeddings=False, max_context_tokens=131072, layers=(layer,) * layers,
    )  # fmt: skip


class Planner:
    """A small pure planner: the model takes `needed` bytes of the emptiest GPUs together, or of RAM without any."""

    def __init__(self, needed_gib: float = 10.0, decode: float = 50.0) -> None:
        self.needed = int(needed_gib * GIB)
        self.decode = decode
        self.calls = 0

    def __call__(self, machine, spec, request):
        self.calls += 1
        if request.quant == "impossible":
            raise EstimatorError("no such quantization", "take another")
        gpus = list(machine.gpus)
        reserved = 0 if request.assume_idle else None
        free = [gpu.memory_total_bytes if reserved == 0 else gpu.memory_free_bytes or 0 for gpu in gpus]
        ram = machine.memory.total_bytes if reserved == 0 else machine.memory.available_bytes or 0
        fits = sum(free) >= self.needed if gpus else ram >= self.needed
        facts = MachineFacts(name=machine.name, gpus=(), ram_available_bytes=ram)
        model = ModelFacts(
            name=spec.name, title=spec.title, source="catalog", architecture="llama", params=8, active_params=8,
            max_context_tokens=spec.max_context_tokens,
        )  # fmt: skip
        headroom = (sum(free) if gpus else ram) - self.needed
        common = {
            "model": model, "machine": facts, "context": Context(safe_tokens=1, max_tokens=1), "serving": None, "tags": None,  # noqa: E501
            "quants": (), "workloads": (), "limits": (), "improvements": (),
        }  # fmt: skip
        if not fits:
            fit = Fit(status="too-large", headroom_bytes=headroom, host_ram_needed_bytes=0,
                      message=f"needs {self.needed} and {sum(free) if gpus else ram} are there")  # fmt: skip
            return Answer(plan=None, fit=fit, speed=None, score=0, grade="F", **common)
        uses, left, shares = [], self.needed, []
        for position, gpu in sorted(enumerate(gpus), key=lambda item: -free[item[0]]):
            take = min(left, free[position])
            if take:
                uses.append((position, gpu.name, take))
                left -= take
        uses.sort()
        shares = tuple(float(take) for _, _, take in uses) if len(uses) > 1 else ()
        devices = tuple(use(name, "gpu", take) for _, name, take in uses) or (use("host", "host", self.needed),)
        plan = Plan(
            engine=request.engine or "llama.cpp", quant=request.quant or "Q4_K_M",
            context_tokens=request.context or 8192, kv_type="f16", flash_attention=True, gpu_layers=33, layers=32,
            cpu_moe_layers=0, tensor_split=shares, ubatch=512, batch=2048, threads=16, parallel=1, file_bytes=1,
            devices=devices, memory_bytes=self.needed, offloaded_fraction=0.0,
            gpu_indexes=tuple(gpus[position].index for position, _, _ in uses),
            tensor_parallel=request.tensor_parallel or 1, pipeline_parallel=request.pipeline_parallel or 1,
        )  # fmt: skip
        speed = Speed(
            decode_tokens_per_s=Interval(expected=self.decode, low=self.decode * 0.8, high=self.decode * 1.2),
            prefill_tokens_per_s=None, ttft_s=None,
        )  # fmt: skip
        command = Command(argv=("llama-server", "-m", spec.name), env={}, shell=f"llama-server -m {spec.name}")  # noqa: S604
        fit = Fit(status="fits", headroom_bytes=headroom, host_ram_needed_bytes=0, message="it fits")
        commands = {"llama.cpp": command} if plan.engine == "llama.cpp" else {}
        return Answer(plan=plan, fit=fit, speed=speed, score=80, grade="A", commands=commands, **common)


def use(name, kind, total):
    return DeviceUse(
        name=name, kind=kind, weights_bytes=total, kv_cache_bytes=0, recurrent_bytes=0, compute_bytes=0,
        output_bytes=0, runtime_bytes=0, total_bytes=total, free_bytes=0,
    )  # fmt: skip


def build_report(machine, sequence, *, agent=AGENT, facts_sequence=None, with_facts=True, runs=(), fingerprint=None,
                 labels=None):  # fmt: skip
    setup = Setup(
        directory=Path("/nonexistent"), fingerprint=fingerprint or Fingerprint(machine="m1"), labels=labels or {}
    )
    report = compose(machine, setup, Agent(agent_id=agent), sequence=sequence, with_facts=with_facts, runs=tuple(runs))
    return msgspec.structs.replace(report, facts_sequence=facts_sequence or sequence)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_machine():
    return build_machine


@pytest.fixture
def make_spec():
    return build_spec


@pytest.fixture
def make_report():
    return build_report


@pytest.fixture
def make_planner():
    return Planner


@pytest.fixture
def make_clock():
    return Clock


@pytest.fixture(scope="session")
def postgres_server():
    """A cluster of its own, reached over a socket, run by an unprivileged user and thrown away."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="wih-pg-", dir="/tmp"))
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    data = folder / "data"
    initdb = [programs / "initdb", "-D", data, "-A", "trust", "-U", "fleet", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *options], user=user, cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        ready = [programs / "pg_isready", "-q", "-h", folder, "-U", "fleet"]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline and server.poll() is None, "the server did not start"  # noqa: PT018
            time.sleep(0.1)
        yield f"postgresql://fleet@/{{}}?host={folder}"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=DATABASES)
def engine(request, tmp_path):
    """An empty database of either kind."""
    yield from new_engine(request, tmp_path, request.param)


@pytest.fixture
def sqlite_engine(request, tmp_path):
    yield from new_engine(request, tmp_path, "sqlite")


@pytest.fixture
def postgres_engine(request, tmp_path):
    yield from new_engine(request, tmp_path, "postgresql")


def new_engine(request, tmp_path, kind):
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.db'}"
    else:
        import psycopg  # noqa: PLC0415

        pattern = request.getfixturevalue("postgres_server")
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(pattern.format("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = pattern.format(name)
    engine = open_database(url)
    yield engine
    engine.dispose()


class RunningServer:
    """A real server on a free port of loopback, in a thread of this process."""

    def __init__(self, engine, clock, planner, listen=None, options=None) -> None:
        import uvicorn  # noqa: PLC0415

        from willitrun_catalog.errors import CatalogError  # noqa: PLC0415
        from willitrun_here.fleet.app import Fleet, Options, create_app  # noqa: PLC0415

        def find_model(text):
            if text != "toy-8b":
                raise CatalogError(f"no model {text!r}", "Nearest: toy-8b.")
            return build_spec()

        self.engine, self.clock, self.planner = engine, clock, planner
        self.fleet = Fleet(
            engine, planner=planner, find_model=find_model, model_names=lambda: ("toy-8b",), catalog_version="1",
            options=options or Options(), clock=clock,
        )  # fmt: skip
        self.app = create_app(self.fleet)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.app, port=self.port, log_level="error", ws="none", **(listen or {}))
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def start(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return self

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)

    def enrol_token(self):
        return create_token(self.engine, "enrol", now=self.clock())

    def read_token(self):
        return create_token(self.engine, "read", now=self.clock())

    def call(self, method, path, *, token=None, body=None, headers=None):
        """One request with the standard library; returns (status, headers, body)."""
        import http.client  # noqa: PLC0415

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {"Content-Type": "application/json", **(headers or {})}
            if token is not None:
                sent["Authorization"] = f"Bearer {token}"
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path, token):
        status, _, body = self.call("GET", path, token=token)
        assert status == 200, body
        return msgspec.json.decode(body)

    def enrol(self, agent=AGENT, fingerprint=None, **more):
        body = msgspec.json.encode({"agent_id": agent, "fingerprint": fingerprint or {"machine": "m1"}, **more})
        return self.call("POST", "/api/v1/enrol", token=self.enrol_token(), body=body)

    def secret(self, **given):
        status, _, body = self.enrol(**given)
        assert status == 201, body
        return msgspec.json.decode(body)["token"]

    def put(self, report, token):
        path = f"/api/v1/agents/{report.agent_id}/reports/{report.sequence}"
        return self.call("PUT", path, token=token, body=encode(report))


@pytest.fixture
def start_server(clock):
    running = []

    def start(engine, planner=None, **more):
        server = RunningServer(engine, clock, planner or Planner(), **more).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def server(start_server, sqlite_engine):
    return start_server(sqlite_engine)


@pytest.fixture
def setup_at(tmp_path):
    def make(name="state", **more):
        return Setup(directory=tmp_path / name, fingerprint=Fingerprint(machine=more.pop("machine", "m1")), **more)

    return make
