from __future__ import annotations

import json
import stat

import pytest

from willitrun_here.calibrate import kernels as engine
from willitrun_here.calibrate.kernels import Kernels, Timing
from willitrun_here.cli.calibrate import llama_bench


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
    assert engine.bench(program, tmp_path / "m.gguf", gpu_layers=0, threads=2) == {"prefill": 100.5, "decode": 25.5}
    arguments = script(tmp_path / "arguments", f"""echo "$@" > {tmp_path}/said; echo '[]'""")
    found = engine.bench(arguments, tmp_path / "m.gguf", gpu_layers=7, threads=2, cpu_moe_layers=3, more=("-nopo", "1"))
    assert found == {}
    assert "-ngl 7 -nopo 1 -ncmoe 3" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("text", ["exit 1", "echo nothing", "sleep 5"])
def test_a_llama_bench_that_fails_measures_nothing(tmp_path, text):
    program = script(tmp_path / "llama-bench", text)
    assert engine.bench(program, tmp_path / "m.gguf", gpu_layers=0, threads=2, limit_s=0.5) == {}
    assert engine.bench(str(tmp_path / "absent"), tmp_path / "m.gguf", gpu_layers=0, threads=2) == {}


def test_every_type_is_measured_while_there_is_time(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "FILE_BYTES", 1 << 20)
    monkeypatch.setattr(engine, "TYPES", ("Q4_K", "Q8_0"))
    rows = [{"n_gen": 0, "avg_ts": 500.0}, {"n_gen": 16, "avg_ts": 50.0}]
    program = script(tmp_path / "llama-bench", f"echo '{json.dumps(rows)}'")
    said = []
    found = engine.measure_products(program, threads=2, folder=tmp_path, say=said.append)
    assert [rate.weight_type for rate in found.product_rates] == ["Q4_K", "Q8_0"]
    assert len(said) == 2
    assert found.block_s >= 0
    assert found.side_s >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["llama-bench"]
    assert engine.measure_products(program, threads=2, folder=tmp_path, say=print, limit_s=0) == Kernels()
    broken = script(tmp_path / "broken", "exit 1")
    assert engine.measure_products(broken, threads=2, folder=tmp_path, say=print) == Kernels()


def test_two_shapes_tell_what_comes_beside_the_weights():
    byte_s, block_s, operation_s, side_s = 1 / 30e9, 40e-6, 1 / 300e9, 2e-9

    def timing(layers, size, sides):
        token_s = size * byte_s + layers * block_s
        each = 2 * (2 * size) * operation_s + sides * side_s
        return Timing(
            layers=layers, matrix_bytes=size, matrix_elements=2 * size, sides=sides, token_s=token_s,
            prompt_s=token_s + engine.PROMPT_TOKENS * each,
        )  # fmt: skip

    wide, narrow = timing(4, 256 << 20, 180_000), timing(60, 200 << 20, 800_000)
    assert engine.seconds_per_block(wide, narrow) == pytest.approx(block_s)
    assert engine.seconds_per_side(wide, narrow) == pytest.approx(side_s)
    assert engine.solved((1.0, 1.0, 1.0), (1.0, 2.0, 0.5)) == 0.0
    rate = engine.rate_of("Q8_0", narrow, block_s, side_s, 1.0)
    assert rate.decode_bytes_per_s == pytest.approx(30e9)
    assert rate.prefill_ops_per_s == pytest.approx(300e9)
    assert engine.rate_of("Q8_0", narrow, block_s, side_s, 1.25).prefill_ops_per_s == pytest.approx(240e9)


def test_the_matrices_of_a_block_are_counted():
    shapes = engine.matrices(engine.WIDE.spec(1))
    assert sum(row * rows for row, rows in shapes) == 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert sum(row + rows for row, rows in shapes) == 44032


def test_llama_bench_is_looked_for_beside_the_server(monkeypatch, tmp_path):
    server = script(tmp_path / "llama-server", "exit 0")
    monkeypatch.setenv("WILLITRUN_LLAMA_SERVER", server)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert llama_bench() is None
    program = script(tmp_path / "llama-bench", "exit 0")
    assert llama_bench() == program
