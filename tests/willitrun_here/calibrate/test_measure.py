from __future__ import annotations

import functools

from msgspec import structs

from tests.willitrun_here.calibrate.known import KNOWN, MACHINE, RUN
from willitrun_here.calibrate import measure
from willitrun_here.calibrate.busy import Processor
from willitrun_here.calibrate.kernels import Kernels
from willitrun_probe.machine import Disk, Memory


def test_memory_bandwidth_is_that_of_memory():
    rate = measure.memory_bandwidth(1, window_s=0.2)
    assert 1e9 < rate < 500e9


def test_a_disk_is_read_through_its_largest_model_file(tmp_path):
    assert measure.disk_read(tmp_path) is None
    (tmp_path / "small.gguf").write_bytes(b"x" * 1000)
    assert measure.disk_read(tmp_path) is None
    (tmp_path / "large.gguf").write_bytes(bytes(measure.BLOCK_BYTES))
    assert measure.disk_read(tmp_path, limit_s=1.0) > 1e6


def test_measuring_tells_its_progress_and_keeps_earlier_runs(monkeypatch, tmp_path):
    machine = structs.replace(MACHINE, disks=(Disk(path=str(tmp_path), purpose="llama.cpp"), MACHINE.disks[1]))
    (tmp_path / "large.gguf").write_bytes(bytes(measure.BLOCK_BYTES))
    said = []
    monkeypatch.setattr(measure, "processor", lambda: None)  # whoever runs the tests may be busy
    found = measure.measure(machine, say=said.append, now="2026-11-22T01:00:00Z", before=KNOWN)
    assert found.runs == (RUN,)
    assert found.ram_bandwidth_bytes_per_s > 1e9
    assert list(found.disk_read_bytes_per_s) == [str(tmp_path)]
    assert said[-1] == "no llama-bench is installed: the speed of the processor's kernels stays estimated"


def test_a_busy_machine_is_not_measured(monkeypatch):
    taken = iter([Processor(0.0, 0.0, 0.0), Processor(10.0, 10.0, 2.0)])
    monkeypatch.setattr(measure, "processor", lambda: next(taken))
    said = []
    machine = structs.replace(MACHINE, disks=())
    found = measure.measure(machine, say=said.append, now="later", before=KNOWN, program="/absent/llama-bench")
    assert (found.ram_bandwidth_bytes_per_s, found.product_rates) == (40e9, KNOWN.product_rates)
    assert "80%" in said[-1]


def test_figures_of_a_machine_that_became_busy_are_not_kept(monkeypatch):
    taken = (Processor(*one) for one in [(0.0, 0.0, 0.0), (1.0, 10.0, 1.0), (1.0, 10.0, 1.0), (9.0, 20.0, 1.0)])
    monkeypatch.setattr(measure, "processor", lambda: next(taken))
    monkeypatch.setattr(measure, "measured_products", lambda *_, **__: Kernels(block_s=1.0))
    found = measure.measure(structs.replace(MACHINE, disks=()), say=lambda _: None, now="later", before=KNOWN)
    assert found.ram_bandwidth_bytes_per_s > 1e9
    assert found.product_rates == KNOWN.product_rates


def test_kernels_need_an_engine_and_room(tmp_path):
    said = []
    measured = functools.partial(measure.measured_products, threads=2, say=said.append, folder=tmp_path)
    assert measured(MACHINE, None) == Kernels()
    full = structs.replace(MACHINE, memory=Memory(available_bytes=1))
    assert measured(full, "llama-bench") == Kernels()
    assert measured(MACHINE, str(tmp_path / "absent")) == Kernels()
    (tmp_path / "file").write_text("")
    assert measure.measured_products(MACHINE, "llama-bench", 2, say=said.append, folder=tmp_path / "file") == Kernels()
    assert [line.split(":")[0].strip() for line in said if line.startswith("  ")] == [
        "not enough free memory",
        "it measured nothing",
        "not measurable here",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_silent_engine_is_said(engine, monkeypatch, tmp_path):
    monkeypatch.setattr("willitrun_here.calibrate.kernels.measure_products", lambda *_, **__: Kernels(block_s=1.0))
    said = []
    found = measure.measured_products(MACHINE, engine[0], 2, say=said.append, folder=tmp_path)
    assert found == Kernels(block_s=1.0)
    assert said[-1] == "  it measured nothing"
