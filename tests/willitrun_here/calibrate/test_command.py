from __future__ import annotations

from click.testing import CliRunner
from msgspec import structs

from tests.willitrun_here.calibrate.known import KNOWN, MACHINE
from willitrun_estimator.calibration import Corrections
from willitrun_here.calibrate import measure
from willitrun_here.calibrate.kernels import Kernels
from willitrun_here.cli.calibrate import calibrate, lines_of
from willitrun_here.errors import UnreadableError
from willitrun_probe.machine import Memory


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
    monkeypatch.setattr(measure, "WINDOW_S", 0.1)
    monkeypatch.setattr(measure, "processor", lambda: None)
    monkeypatch.setattr("willitrun_here.cli.calibrate.llama_bench", lambda: None)
    monkeypatch.setattr("willitrun_probe.collect.here", lambda timeout_s: MACHINE)
    run = CliRunner().invoke
    assert "Nothing was measured" in run(calibrate, ["--show"]).output
    assert "GB/s" in run(calibrate, []).output
    assert "are gone" in run(calibrate, ["--remove"]).output
    assert "no corrections" in run(calibrate, ["--remove"]).output


def test_the_command_runs_a_model_of_ones_own(engine, monkeypatch, tmp_path):
    program, model = engine
    machine = structs.replace(MACHINE, memory=Memory(total_bytes=2**34, available_bytes=2**33), disks=())
    monkeypatch.setenv("WILLITRUN_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(measure, "WINDOW_S", 0.1)
    monkeypatch.setattr(measure, "processor", lambda: None)
    monkeypatch.setattr(measure, "measured_products", lambda *_, **__: Kernels())
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
