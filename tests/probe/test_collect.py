"""The collector itself: names, clocks, what it does about readers that fail or do not end."""

from __future__ import annotations

import threading
import time

import machines

from willitrun_probe.collect import collect, engine_cache_file, libraries_from
from willitrun_probe.findings import driver_broken
from willitrun_probe.gpus.spec import ABSENT, Libraries
from willitrun_probe.roots import Roots, Space

NONE = Libraries(ABSENT, ABSENT)


class DeadMount(Roots):
    """A machine whose model folder is on a network mount without a server."""

    def __init__(self) -> None:
        super().__init__("/")
        self.released = threading.Event()

    def space(self, path: str) -> Space | None:
        self.released.wait(30)
        return super().space(path)


class BrokenReader(Roots):
    """A machine on which reading the bus fails in a way nobody thought of."""

    def listing(self, path: str) -> tuple[str, ...]:
        if "pci" in path:
            raise RuntimeError("unthinkable")
        return super().listing(path)


def test_dead_mount_does_not_hold_the_probe():
    roots = DeadMount()
    start = time.monotonic()
    machine = collect(roots=roots, libraries=NONE, environment={"HOME": "/root"}, timeout_s=0.4, now=0)
    roots.released.set()
    assert time.monotonic() - start < 2
    assert machine.disks == ()
    assert [f.code for f in machine.findings if f.subject == "storage"] == ["model-folder-hangs"]
    assert machine.memory.total_bytes


def test_reader_that_fails_costs_its_part_only():
    machine = collect(roots=BrokenReader(), libraries=NONE, environment={}, timeout_s=5, now=0)
    assert {f.code: f.reason for f in machine.findings}["reader-failed"] == "RuntimeError: unthinkable"
    assert {source.name: source.outcome for source in machine.sources}["pci"] == "failed"
    assert machine.cpu.logical_cpus


def test_clock_is_the_one_that_is_given():
    machine = collect(roots=machines.roots({}), libraries=NONE, environment={}, now=1767225600, isolated=False)
    assert machine.observed_at == "2026-01-01T00:00:00Z"


def test_no_child_on_a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr("os.posix_spawnp", None)
    found = machines.recording("desktop-cpu-only")
    machine = collect(roots=found.roots, libraries=NONE, environment={}, now=0)
    assert {source.name for source in machine.sources} == {"pci", "cpu", "memory", "storage"}


def test_no_room_for_a_child_is_not_the_drivers_fault(monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.posix_spawnp", refuse)
    for name in ("rtx3090-shared", "mi100", "arc-a770", "apple-m1"):
        found = machines.recording(name)
        machine = collect(roots=found.roots, libraries=found.libraries, environment={}, now=0)
        told = [f for f in machine.findings if f.code == "reader-failed"]
        assert "no child process could be started" in told[0].reason
        assert not driver_broken(machine)
        assert not any(gpu.usable for gpu in machine.gpus)
        assert machine.cpu.physical_cores


def test_libraries_from_the_environment():
    assert libraries_from({"WILLITRUN_NVML": "/x.so", "WILLITRUN_AMDSMI": ""}) == Libraries("/x.so", None)


def test_engine_cache_is_where_platformdirs_puts_it():
    assert engine_cache_file({"HOME": "/home/a"}) == "/home/a/.cache/willitrun-here/engines.json"
    assert engine_cache_file({"HOME": "/home/a", "XDG_CACHE_HOME": "/c"}) == "/c/willitrun-here/engines.json"
    assert engine_cache_file({"HOME": "relative"}) is None
    assert engine_cache_file({}) is None
