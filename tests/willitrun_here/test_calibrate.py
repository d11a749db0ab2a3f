from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from msgspec import structs

from willitrun_catalog import shipped
from willitrun_estimator.calibration import Corrections, Run, prediction_of
from willitrun_estimator.plan import Plan
from willitrun_estimator.tensors import tensors
from willitrun_here import calibrate as store
from willitrun_here import made_up
from willitrun_here.calibrate_engine import NARROW, Kernels
from willitrun_here.cli.calibrate import calibrate, lines_of
from willitrun_here.errors import UnreadableError
from willitrun_probe.machine import Cpu, Disk, Gpu, Machine, Memory, ProductRate

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
    product_rates=(ProductRate(weight_type="Q4_K", decode_bytes_per_s=30e9, prefill_ops_per_s=300e9),),
    block_s=4e-5,
    side_s=2e-9,
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
    assert (found.cpu.product_rates, found.cpu.block_s, found.cpu.side_s) == (KNOWN.product_rates, 4e-5, 2e-9)
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


def test_measuring_tells_its_progress_and_keeps_earlier_runs(monkeypatch, tmp_path):
    machine = structs.replace(MACHINE, disks=(Disk(path=str(tmp_path), purpose="llama.cpp"), MACHINE.disks[1]))
    (tmp_path / "large.gguf").write_bytes(bytes(store.BLOCK_BYTES))
    said = []
    monkeypatch.setattr(store, "cpu_seconds", lambda: None)  # whoever runs the tests may be busy
    found = store.measure(machine, say=said.append, now="2026-11-22T01:00:00Z", before=KNOWN)
    assert found.runs == (RUN,)
    assert found.ram_bandwidth_bytes_per_s > 1e9
    assert list(found.disk_read_bytes_per_s) == [str(tmp_path)]
    assert said[-1] == "no llama-bench is installed: the speed of the processor's kernels stays estimated"


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


PLAN = Plan(
    engine="llama.cpp", quant="Q4_K_M", context_tokens=4096, kv_type="f16", flash_attention=True, gpu_layers=0,
    layers=16, cpu_moe_layers=0, tensor_split=(), ubatch=512, batch=2048, threads=2, parallel=1, file_bytes=1,
    devices=(), memory_bytes=1, offloaded_fraction=0.0,
)  # fmt: skip
SPEC = shipped.model("llama-3.2-1b-instruct")


def launched(decode, prefill):
    probe = SimpleNamespace(
        decode_tokens_per_s=decode, prefill_tokens_per_s=prefill, prompt_tokens=64, output_tokens=32
    )
    return SimpleNamespace(plan=PLAN, spec=SPEC, machine=MACHINE), SimpleNamespace(probe=probe)


def test_what_launch_measured_is_kept(tmp_path):
    target, comparison = launched(30.0, 200.0)
    assert store.keep_measured(target, comparison, now="now", folder=tmp_path).exists()
    runs = store.read(MACHINE.shape_hash, tmp_path).runs
    assert [(run.test, run.measured_tokens_per_s, run.where, run.depth_tokens) for run in runs] == [
        ("decode", 30.0, "host", 80),
        ("prefill", 200.0, "host", 64),
    ]
    assert all(run.predicted_tokens_per_s > 0 and run.measured_at == "now" for run in runs)


def test_a_run_is_held_against_the_bare_model(tmp_path):
    said = {"decode_tokens_per_s": 1.0, "prefill_tokens_per_s": None, "prompt_tokens": 128, "depth_tokens": 16}
    first = store.record_run(MACHINE, SPEC, PLAN, folder=tmp_path, **said)
    again = store.record_run(MACHINE, SPEC, PLAN, folder=tmp_path, **said)
    assert [run.test for run in again] == ["decode"]
    assert first[0].predicted_tokens_per_s == again[0].predicted_tokens_per_s > 1.0
    assert first[0].predicted_with == prediction_of(None)
    assert again[0].predicted_with == prediction_of(Corrections())


def test_a_run_with_gpus_is_predicted_too():
    fast = Gpu(
        name="NVIDIA GeForce RTX 3090", vendor="nvidia", kind="gpu", memory_total_bytes=24 * 2**30,
        memory_free_bytes=23 * 2**30, compute_capability="8.6", usable=True, visible=True,
    )  # fmt: skip
    machine = structs.replace(MACHINE, gpus=(fast,))
    plan = structs.replace(PLAN, gpu_layers=17, backend="cuda")
    found = store.predicted_speeds(machine, SPEC, plan, prompt_tokens=512, depth_tokens=0)
    slow = store.predicted_speeds(MACHINE, SPEC, PLAN, prompt_tokens=512, depth_tokens=0)
    assert found["decode"] > 5 * slow["decode"]
    assert found["prefill"] > 5 * slow["prefill"]


def test_a_launch_that_measured_nothing_keeps_nothing(tmp_path):
    assert store.keep_measured(*launched(0.0, 0.0), folder=tmp_path) is None
    target, comparison = launched(5.0, 5.0)
    comparison.probe = None
    assert store.keep_measured(target, comparison, folder=tmp_path) is None
    (tmp_path / "file").write_text("")
    assert store.keep_measured(*launched(5.0, 5.0), folder=tmp_path / "file") is None


def test_a_busy_machine_is_not_measured(monkeypatch):
    taken = iter([(0.0, 0.0, 0.0), (10.0, 10.0, 2.0)])
    monkeypatch.setattr(store, "cpu_seconds", lambda: next(taken))
    said = []
    machine = structs.replace(MACHINE, disks=())
    found = store.measure(machine, say=said.append, now="later", before=KNOWN, program="/absent/llama-bench")
    assert (found.ram_bandwidth_bytes_per_s, found.product_rates) == (40e9, KNOWN.product_rates)
    assert "80%" in said[-1]


def test_figures_of_a_machine_that_became_busy_are_not_kept(monkeypatch):
    taken = iter([(0.0, 0.0, 0.0), (1.0, 10.0, 1.0), (1.0, 10.0, 1.0), (9.0, 20.0, 1.0)])
    monkeypatch.setattr(store, "cpu_seconds", lambda: next(taken))
    monkeypatch.setattr(store, "measured_products", lambda *_, **__: Kernels(block_s=1.0))
    found = store.measure(structs.replace(MACHINE, disks=()), say=lambda _: None, now="later", before=KNOWN)
    assert found.ram_bandwidth_bytes_per_s > 1e9
    assert found.product_rates == KNOWN.product_rates


def test_the_processor_tells_how_busy_it_is():
    busy, total, own = store.cpu_seconds()
    assert 0 < busy <= total
    assert 0 < own < total
    assert not store.told_busy(None, print)
    assert not store.told_busy((busy, total + 1e9, own), print)


def test_kernels_need_an_engine_and_room(tmp_path):
    said = []
    measured = functools.partial(store.measured_products, threads=2, say=said.append, folder=tmp_path)
    assert measured(MACHINE, None) == Kernels()
    full = structs.replace(MACHINE, memory=Memory(available_bytes=1))
    assert measured(full, "llama-bench") == Kernels()
    assert measured(MACHINE, str(tmp_path / "absent")) == Kernels()
    (tmp_path / "file").write_text("")
    assert store.measured_products(MACHINE, "llama-bench", 2, say=said.append, folder=tmp_path / "file") == Kernels()
    assert [line.split(":")[0].strip() for line in said if line.startswith("  ")] == [
        "not enough free memory",
        "it measured nothing",
        "not measurable here",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_known_is_said():
    assert lines_of(KNOWN) == [
        "memory  40.0 GB/s",
        "disk    2.00 GB/s  /models",
        "Q4_K    30.0 GB/s of weights, 300 Gop/s in a prompt",
        "decode  35.0 tok/s, predicted 40.0  llama-3.2-1b-instruct Q4_K_M (host)",
    ]
    assert lines_of(Corrections()) == ["memory  unknown"]


def test_the_command_measures_shows_and_forgets(monkeypatch, tmp_path):
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path))
    monkeypatch.setattr(store, "WINDOW_S", 0.1)
    monkeypatch.setattr(store, "cpu_seconds", lambda: None)
    monkeypatch.setattr("willitrun_here.cli.calibrate.llama_bench", lambda: None)
    monkeypatch.setattr("willitrun_probe.collect.here", lambda timeout_s: MACHINE)
    run = CliRunner().invoke
    assert "Nothing was measured" in run(calibrate, ["--show"]).output
    assert "GB/s" in run(calibrate, []).output
    assert "are gone" in run(calibrate, ["--remove"]).output
    assert "no corrections" in run(calibrate, ["--remove"]).output


@pytest.fixture
def engine(tmp_path):
    """A llama-bench that answers at once, and a model to give it."""
    spec = NARROW.spec(2)
    listed = [(one.name, one.shape, "F32" if len(one.shape) == 1 else "Q8_0") for one in tensors(spec)]
    model = made_up.write(tmp_path / "tiny.gguf", made_up.metadata_of(spec), listed)
    program = tmp_path / "llama-bench"
    program.write_text("""#!/bin/sh\necho '[{"n_gen": 0, "avg_ts": 900.0}, {"n_gen": 32, "avg_ts": 90.0}]'""")
    program.chmod(0o755)
    return str(program), model


def test_an_engine_run_is_kept_beside_its_prediction(engine, tmp_path):
    program, model = engine
    machine = structs.replace(MACHINE, memory=Memory(total_bytes=2**34, available_bytes=2**33))
    runs = store.run_engine(machine, model, program=program, now="now", folder=tmp_path)
    assert [(run.test, run.measured_tokens_per_s, run.quant) for run in runs] == [
        ("decode", 90.0, "Q8_0"),
        ("prefill", 900.0, "Q8_0"),
    ]
    assert store.read(machine.shape_hash, tmp_path).runs == runs
    nothing = structs.replace(machine, memory=Memory(total_bytes=0, available_bytes=0))
    assert store.run_engine(nothing, model, program=str(tmp_path / "absent"), now="now", folder=tmp_path) == ()


def test_the_command_runs_a_model_of_ones_own(engine, monkeypatch, tmp_path):
    program, model = engine
    machine = structs.replace(MACHINE, memory=Memory(total_bytes=2**34, available_bytes=2**33), disks=())
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(store, "WINDOW_S", 0.1)
    monkeypatch.setattr(store, "cpu_seconds", lambda: None)
    monkeypatch.setattr(store, "measured_products", lambda *_, **__: Kernels())
    monkeypatch.setattr("willitrun_probe.collect.here", lambda timeout_s: machine)
    monkeypatch.setattr("willitrun_here.cli.calibrate.llama_bench", lambda: program)
    run = CliRunner().invoke
    assert "90.0 tok/s" in run(calibrate, ["--model", str(model)]).output
    assert '"measured_tokens_per_s":90.0' in run(calibrate, ["--show", "--json"]).stdout.replace(" ", "")
    monkeypatch.setattr("willitrun_here.cli.calibrate.llama_bench", lambda: None)
    refused = run(calibrate, ["--model", str(model)])
    assert isinstance(refused.exception, UnreadableError)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path / "file"))
    assert isinstance(run(calibrate, []).exception, UnreadableError)


def test_a_silent_engine_is_said(engine, monkeypatch, tmp_path):
    monkeypatch.setattr("willitrun_here.calibrate_engine.measure_products", lambda *_, **__: Kernels(block_s=1.0))
    said = []
    found = store.measured_products(MACHINE, engine[0], 2, say=said.append, folder=tmp_path)
    assert found == Kernels(block_s=1.0)
    assert said[-1] == "  it measured nothing"
