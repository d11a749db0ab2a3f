from __future__ import annotations

from types import SimpleNamespace

from msgspec import structs

from tests.catalog.readers import gguf_writer
from tests.willitrun_here.calibrate.known import MACHINE, PLAN, SPEC
from willitrun_catalog.quant import tensor_types
from willitrun_catalog.shipped import model
from willitrun_estimator.calibration import Corrections, prediction_of
from willitrun_estimator.request import Request
from willitrun_estimator.tensors import tensors
from willitrun_here.ask import ask, open_model
from willitrun_here.calibrate import runs as kept
from willitrun_here.calibrate import store
from willitrun_probe.machine import Gpu, Memory


def launched(decode, prefill):
    probe = SimpleNamespace(
        decode_tokens_per_s=decode, prefill_tokens_per_s=prefill, prompt_tokens=64, output_tokens=32
    )
    return SimpleNamespace(plan=PLAN, spec=SPEC, machine=MACHINE), SimpleNamespace(probe=probe)


def test_what_launch_measured_is_kept(tmp_path):
    target, comparison = launched(30.0, 200.0)
    assert kept.keep_measured(target, comparison, now="now", folder=tmp_path).exists()
    runs = store.read(MACHINE.shape_hash, tmp_path).runs
    assert [(run.test, run.measured_tokens_per_s, run.where, run.depth_tokens) for run in runs] == [
        ("decode", 30.0, "host", 80),
        ("prefill", 200.0, "host", 64),
    ]
    assert all(run.predicted_tokens_per_s > 0 and run.measured_at == "now" for run in runs)


def test_a_run_is_held_against_the_bare_model(tmp_path):
    said = {"decode_tokens_per_s": 1.0, "prefill_tokens_per_s": None, "prompt_tokens": 128, "depth_tokens": 16}
    first = kept.record_run(MACHINE, SPEC, PLAN, folder=tmp_path, **said)
    again = kept.record_run(MACHINE, SPEC, PLAN, folder=tmp_path, **said)
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
    found = kept.predicted_speeds(machine, SPEC, plan, prompt_tokens=512, depth_tokens=0)
    slow = kept.predicted_speeds(MACHINE, SPEC, PLAN, prompt_tokens=512, depth_tokens=0)
    assert found["decode"] > 5 * slow["decode"]
    assert found["prefill"] > 5 * slow["prefill"]


def test_a_launch_that_measured_nothing_keeps_nothing(tmp_path):
    assert kept.keep_measured(*launched(0.0, 0.0), folder=tmp_path) is None
    target, comparison = launched(5.0, 5.0)
    comparison.probe = None
    assert kept.keep_measured(target, comparison, folder=tmp_path) is None
    (tmp_path / "file").write_text("")
    assert kept.keep_measured(*launched(5.0, 5.0), folder=tmp_path / "file") is None


def test_an_engine_run_is_kept_beside_its_prediction(engine, tmp_path):
    program, model = engine
    machine = structs.replace(MACHINE, memory=Memory(total_bytes=2**34, available_bytes=2**33))
    runs = kept.run_engine(machine, model, program=program, now="now", folder=tmp_path)
    assert [(run.test, run.measured_tokens_per_s, run.quant) for run in runs] == [
        ("decode", 90.0, "Q8_0"),
        ("prefill", 900.0, "Q8_0"),
    ]
    assert store.read(machine.shape_hash, tmp_path).runs == runs
    nothing = structs.replace(machine, memory=Memory(total_bytes=0, available_bytes=0))
    assert kept.run_engine(nothing, model, program=str(tmp_path / "absent"), now="now", folder=tmp_path) == ()


def test_a_bench_that_knows_no_patterns_is_planned_for_without_them(engine, tmp_path):
    program, _ = engine
    spec = model("qwen3-30b-a3b")
    listed = tensors(spec)
    kinds = tensor_types("Q4_K_M", listed, spec)
    path = tmp_path / "qwen3-30b-a3b-Q4_K_M.gguf"
    pieces = [(one.name, one.shape, kind) for one, kind in zip(listed, kinds, strict=True)]
    gguf_writer.write(path, gguf_writer.metadata_of(spec), pieces)
    card = Gpu(
        name="NVIDIA GeForce RTX 3060", vendor="nvidia", kind="gpu", memory_total_bytes=12 * 2**30,
        memory_free_bytes=11 * 2**30, compute_capability="8.6", usable=True, visible=True,
    )  # fmt: skip
    memory = Memory(total_bytes=2**37, available_bytes=2**36)
    machine = structs.replace(MACHINE, gpus=(card,), memory=memory)
    asked = Request(engine="llama.cpp", context=512, prompt_tokens=128)
    planned = ask(machine, open_model(str(path)), asked, commands=False).plan
    assert planned is not None
    assert planned.experts_apart
    runs = kept.run_engine(machine, path, program=program, now="now", folder=tmp_path)
    assert {run.test for run in runs} == {"decode", "prefill"}
    assert all(run.cpu_moe_layers > planned.cpu_moe_layers for run in runs)
