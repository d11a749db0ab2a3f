from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from msgspec import structs

from willitrun_estimator.calibration import Corrections, Run
from willitrun_here import calibrate as store
from willitrun_here.cli.calibrate import calibrate, lines_of
from willitrun_probe.machine import Cpu, Disk, Machine, Memory

MACHINE = Machine(
    name="box",
    observed_at="2026-11-22T00:00:00Z",
    shape_hash="0123456789abcdef",
    cpu=Cpu(usable_threads=2),
    memory=Memory(total_bytes=2**34),
    disks=(Disk(path="/models", purpose="llama.cpp"), Disk(path="/root", purpose="home")),
)
RUN = Run(
    test="decode",
    model="llama-3.2-1b-instruct",
    quant="Q4_K_M",
    engine="llama.cpp",
    where="host",
    gpu_layers=0,
    cpu_moe_layers=0,
    predicted_tokens_per_s=40.0,
    measured_tokens_per_s=35.0,
)
KNOWN = Corrections(
    shape_hash=MACHINE.shape_hash,
    measured_at="2026-11-22T00:00:00Z",
    ram_bandwidth_bytes_per_s=40e9,
    disk_read_bytes_per_s={"/models": 2e9},
    runs=(RUN,),
)


def test_the_store_gives_back_what_it_was_given(tmp_path):
    assert store.read(MACHINE.shape_hash, tmp_path) is None
    path = store.write(KNOWN, tmp_path / "deep")
    assert store.read(MACHINE.shape_hash, tmp_path / "deep") == KNOWN
    assert path.name == "calibration-0123456789abcdef.json"
    assert store.remove(MACHINE.shape_hash, tmp_path / "deep")
    assert not store.remove(MACHINE.shape_hash, tmp_path / "deep")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": 3}', b"\xff\xfe", b'{"shape_hash": "other"}'])
def test_a_broken_or_foreign_store_is_no_store(tmp_path, text):
    store.path_of(MACHINE.shape_hash, tmp_path).write_bytes(text)
    assert store.read(MACHINE.shape_hash, tmp_path) is None


def test_the_state_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path))
    assert store.store_folder() == tmp_path
    monkeypatch.delenv("WILLITRUN_STATE")
    assert store.store_folder().name == "willitrun-here"


def test_measurements_join_the_machine_they_were_made_on():
    found = store.with_measurements(MACHINE, KNOWN)
    assert found.memory.bandwidth_bytes_per_s == 40e9
    assert found.memory.sources["bandwidth_bytes_per_s"] == "micro-benchmark"
    assert [disk.read_bytes_per_s for disk in found.disks] == [2e9, None]
    assert store.with_measurements(MACHINE, None) is MACHINE
    other = structs.replace(MACHINE, shape_hash="changed")
    assert store.with_measurements(other, KNOWN) is other
    without = structs.replace(KNOWN, ram_bandwidth_bytes_per_s=None)
    assert store.with_measurements(MACHINE, without).memory == MACHINE.memory


def test_memory_bandwidth_is_that_of_memory():
    rate = store.memory_bandwidth(1, window_s=0.2)
    assert 1e9 < rate < 500e9


def test_a_disk_is_read_through_its_largest_model_file(tmp_path):
    assert store.disk_read(tmp_path) is None
    (tmp_path / "small.gguf").write_bytes(b"x" * 1000)
    assert store.disk_read(tmp_path) is None
    (tmp_path / "large.gguf").write_bytes(bytes(store.BLOCK_BYTES))
    assert store.disk_read(tmp_path, limit_s=1.0) > 1e6


def test_measuring_tells_its_progress_and_keeps_earlier_runs(tmp_path):
    machine = structs.replace(MACHINE, disks=(Disk(path=str(tmp_path), purpose="llama.cpp"), MACHINE.disks[1]))
    (tmp_path / "large.gguf").write_bytes(bytes(store.BLOCK_BYTES))
    said = []
    found = store.measure(machine, say=said.append, now="2026-11-22T01:00:00Z", before=KNOWN)
    assert found.runs == (RUN,)
    assert found.ram_bandwidth_bytes_per_s > 1e9
    assert list(found.disk_read_bytes_per_s) == [str(tmp_path)]
    assert len(said) == 4


def test_a_newer_run_of_the_same_plan_replaces_the_older(tmp_path):
    store.write(KNOWN, tmp_path)
    newer = structs.replace(RUN, measured_tokens_per_s=36.0)
    other = structs.replace(RUN, quant="Q8_0")
    store.keep_runs(MACHINE.shape_hash, (newer, other), tmp_path)
    found = store.read(MACHINE.shape_hash, tmp_path)
    assert found.runs == (newer, other)
    assert found.ram_bandwidth_bytes_per_s == 40e9
    for rate in range(100):
        store.keep_runs(MACHINE.shape_hash, (structs.replace(RUN, quant=f"Q{rate}"),), tmp_path)
    assert len(store.read(MACHINE.shape_hash, tmp_path).runs) == store.MOST_RUNS


def launched(decode, prefill, predicted):
    probe = SimpleNamespace(decode_tokens_per_s=decode, prefill_tokens_per_s=prefill)
    comparison = SimpleNamespace(
        probe=probe, planned_decode_tokens_per_s=predicted, planned_prefill_tokens_per_s=predicted
    )
    plan = SimpleNamespace(quant="Q4_K_M", engine="llama.cpp", gpu_layers=0, layers=16, cpu_moe_layers=0)
    return SimpleNamespace(plan=plan, spec=SimpleNamespace(name="llama"), machine=MACHINE), comparison


def test_what_launch_measured_is_kept(tmp_path):
    target, comparison = launched(30.0, 200.0, 40.0)
    assert store.keep_measured(target, comparison, now="now", folder=tmp_path).exists()
    runs = store.read(MACHINE.shape_hash, tmp_path).runs
    assert [(run.test, run.measured_tokens_per_s, run.where) for run in runs] == [
        ("decode", 30.0, "host"),
        ("prefill", 200.0, "host"),
    ]


def test_a_launch_that_measured_nothing_keeps_nothing(tmp_path):
    assert store.keep_measured(*launched(0.0, 0.0, 40.0), folder=tmp_path) is None
    assert store.keep_measured(*launched(5.0, 5.0, None), folder=tmp_path) is None
    target, comparison = launched(5.0, 5.0, 1.0)
    comparison.probe = None
    assert store.keep_measured(target, comparison, folder=tmp_path) is None
    (tmp_path / "file").write_text("")
    assert store.keep_measured(*launched(5.0, 5.0, 1.0), folder=tmp_path / "file") is None


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_llama_bench_is_read(tmp_path):
    rows = (
        '{"n_gen": 0, "avg_ts": 100.5}',
        '{"n_gen": 32, "avg_ts": 20, "samples_ts": [15, 25.5]}',
        '{"n_gen": 32, "avg_ts": null}',
    )
    program = script(tmp_path / "llama-bench", f"echo '[{', '.join(rows)}]'")
    assert store.bench(program, tmp_path / "m.gguf", gpu_layers=0, threads=2) == {"prefill": 100.5, "decode": 25.5}
    arguments = script(tmp_path / "arguments", f"""echo "$@" > {tmp_path}/said; echo '[]'""")
    assert store.bench(arguments, tmp_path / "m.gguf", gpu_layers=7, threads=2, cpu_moe_layers=3) == {}
    assert "-ngl 7 -ncmoe 3" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("text", ["exit 1", "echo nothing", "sleep 5"])
def test_a_llama_bench_that_fails_measures_nothing(tmp_path, text):
    program = script(tmp_path / "llama-bench", text)
    assert store.bench(program, tmp_path / "m.gguf", gpu_layers=0, threads=2, limit_s=0.5) == {}
    assert store.bench(str(tmp_path / "absent"), tmp_path / "m.gguf", gpu_layers=0, threads=2) == {}


def test_what_is_known_is_said():
    assert lines_of(KNOWN) == [
        "memory  40.0 GB/s",
        "disk    2.00 GB/s  /models",
        "decode  35.0 tok/s, predicted 40.0  llama-3.2-1b-instruct Q4_K_M (host)",
    ]
    assert lines_of(Corrections()) == ["memory  unknown"]


def test_the_command_measures_shows_and_forgets(monkeypatch, tmp_path):
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path))
    monkeypatch.setattr(store, "WINDOW_S", 0.1)
    monkeypatch.setattr("willitrun_probe.collect.here", lambda timeout_s: MACHINE)
    run = CliRunner().invoke
    assert "Nothing was measured" in run(calibrate, ["--show"]).output
    assert "GB/s" in run(calibrate, []).output
    assert "are gone" in run(calibrate, ["--remove"]).output
    assert "no corrections" in run(calibrate, ["--remove"]).output
