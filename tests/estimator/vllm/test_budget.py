from __future__ import annotations

import pytest

from willitrun_estimator.vllm import memory
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.versions import rules
from willitrun_probe.units import GIB, MIB

BF16 = format_of("bf16")


def gib(value):
    return value / GIB


@pytest.mark.parametrize(
    ("name", "driver_gib", "cuda_gib"),
    [
        ("NVIDIA H100 SXM5 80 GB", 79.65, 79.19),
        ("NVIDIA H100 SXM5 80 GB", 79.19, 79.19),
        ("NVIDIA GeForce RTX 5090", 31.36, 31.36),
        ("NVIDIA GeForce RTX 3090", 24.0, 23.58),
        ("NVIDIA GeForce RTX 4080", 16.0, 15.728),
        ("NVIDIA H200 SXM 141 GB", 140.4, 139.56),
        ("NVIDIA A100 SXM4 40 GB", 40.0, 39.32),
    ],
)
def test_cuda_sees_less_than_the_driver_library_reports(gpu, name, driver_gib, cuda_gib):
    device = gpu(name, memory_total_bytes=round(driver_gib * GIB))
    assert gib(memory.cuda_total_bytes(device)) == pytest.approx(cuda_gib, abs=0.01)


def test_unified_memory_and_amd_report_one_figure(gpu):
    for name in ("NVIDIA GB10", "AMD Instinct MI300X"):
        device = gpu(name)
        assert memory.cuda_total_bytes(device) == device.memory_total_bytes


# Activation peaks of debug logs: rows m024, m006, m004, m035, m040, m017-like FP8 and the version sweep m162, m164.
@pytest.mark.parametrize(
    ("name", "quant", "minor", "tensor", "logged"),
    [
        ("llama-3.1-8b", "bf16", 19, 1, 1.89),
        ("gemma-2-27b", "bf16", 19, 1, 3.66),
        ("llama-3.3-70b", "fp8", 19, 4, 1.97),
        ("mixtral-8x7b", "bf16", 19, 2, 1.21),
        ("gpt-oss-20b", "mxfp4", 19, 1, 2.87),
        ("qwen3-14b", "bf16", 15, 1, 5.64),
        ("qwen3-14b", "bf16", 17, 1, 2.23),
    ],
)
def test_activation_peaks_are_near_the_logs(model, name, quant, minor, tensor, logged):
    found = memory.activation_bytes(
        model(name),
        format_of(quant),
        rules((0, minor)),
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        tensor_parallel=tensor,
    )
    assert gib(found) == pytest.approx(logged, abs=0.15)


def test_activation_follows_batch_towers_and_stage(model):
    spec, ruled = model("gemma-3-27b"), rules()
    peak = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
    whole = memory.activation_bytes(spec, BF16, ruled, **peak)
    text = memory.activation_bytes(spec, BF16, ruled, towers=False, **peak)
    assert whole - text == memory.encoder_bytes(8192, spec.hidden_size) == GIB // 4
    assert memory.encoder_bytes(16384, 1000) == GIB // 4 + 8192 * 110_000
    many = {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}
    headless = memory.activation_bytes(spec, BF16, ruled, towers=False, has_head=False, **many)
    assert headless < memory.activation_bytes(spec, BF16, ruled, towers=False, **many)
    dense = model("llama-3.1-8b")
    long = {"max_num_batched_tokens": 65536, "max_num_seqs": 64}
    slope = memory.activation_bytes(dense, BF16, ruled, **long) / 65536
    assert slope == pytest.approx(120_000, rel=0.01)
    assert memory.activation_bytes(dense, format_of("fp8"), ruled, **long) / 65536 == pytest.approx(106_000, rel=0.01)


@pytest.mark.parametrize(
    ("minor", "backend", "family", "tensor", "pipeline", "fast", "expected"),
    [
        (33, "rocm", "cdna3", 1, 1, True, 0.66),
        (19, "cuda", "hopper", 2, 1, True, 2.1),
        (19, "cuda", "hopper", 2, 1, False, 0.55),
        (19, "cuda", "ada", 2, 1, False, 0.55),
        (16, "cuda", "hopper", 2, 1, True, 0.55),
        (11, "cuda", "a100", 2, 1, True, 0.13),
        (19, "cuda", "hopper", 1, 2, True, 0.07),
        (10, "cuda", "a100", 1, 1, True, 0.1),
        (19, "cuda", "hopper", 1, 1, True, 0.25),
        (17, "cuda", "hopper", 1, 1, True, 0.13),
    ],
)
def test_libraries_by_version_and_links(minor, backend, family, tensor, pipeline, fast, expected):
    found = memory.libraries_bytes(
        rules((0, minor)),
        backend=backend,
        family=family,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        fast_links=fast,
    )
    assert gib(found) == pytest.approx(expected, abs=0.001)


def test_graphs_shrink_with_the_captured_sizes():
    assert memory.capture_sizes(4) == (1, 2, 4, 8)
    assert memory.capture_count(1024) == 51
    full = memory.graphs_bytes(layers=32, max_num_seqs=1024, enforce_eager=False)
    assert gib(full) == pytest.approx(0.57 + 0.0126 * 32, abs=0.001)
    assert memory.graphs_bytes(layers=32, max_num_seqs=8, enforce_eager=False) < full
    assert memory.graphs_bytes(layers=32, max_num_seqs=8, enforce_eager=True) == 0


@pytest.mark.parametrize(("minor", "pool", "outside"), [(19, 58.11, 0.9), (20, 57.1, 0.0)])
def test_the_budget_adds_up(model, minor, pool, outside):
    ruled = rules((0, minor))
    graphs = memory.graphs_bytes(layers=32, max_num_seqs=1024, enforce_eager=False)
    one = memory.budget(
        total_bytes=round(79.19 * GIB),
        utilization=0.95,
        weights_bytes=round(14.99 * GIB),
        libraries=round(0.25 * GIB),
        activation=round(1.89 * GIB),
        graphs=graphs,
        rules=ruled,
    )
    assert gib(one.pool_bytes) == pytest.approx(pool, abs=0.06)
    assert one.used_bytes - one.requested_bytes - one.context_bytes == (graphs if outside else 0)
    assert one.context_bytes > 500 * MIB
