from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.willitrun_here.launch.targets import on_words
from willitrun_here.launch import log

MIB = 1024**2
LOG = """\
0.00.341.123 I load_tensors: offloaded 33/33 layers to GPU
0.00.341.200 I load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
0.00.341.201 I load_tensors:   CPU_REPACK model buffer size =   100.00 MiB
0.00.341.210 I load_tensors:        CUDA0 model buffer size =  4403.49 MiB
0.00.500.000 I llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB
0.00.500.100 I llama_memory_recurrent:      CUDA0 RS buffer size =     2.50 MiB
0.00.600.000 I llama_context:      CUDA0 compute buffer size =   560.00 MiB
0.00.600.001 I llama_context:  CUDA_Host compute buffer size =    24.01 MiB
0.00.600.002 I llama_context:  CUDA_Host  output buffer size =     0.49 MiB
""".splitlines()


def test_buffers_are_held_against_the_plan():
    plan = on_words().plan
    rows = {(row.device, row.kind): row for row in log.compare(plan, log.buffers(LOG))}
    gpu, host = plan.devices[0].name, plan.devices[-1].name
    assert rows[gpu, "weights"].actual_bytes == round(4403.49 * MIB)
    assert rows[gpu, "weights"].planned_bytes == plan.devices[0].weights_bytes
    assert rows[gpu, "kv_cache"].difference == pytest.approx(0, abs=1e-6)
    assert rows[gpu, "recurrent"].difference == float("inf")
    assert rows[host, "weights"].actual_bytes == round(281.81 * MIB), "the repacked copy is not counted"
    assert rows[host, "compute"].actual_bytes == round(24.01 * MIB)
    assert rows[host, "output"].actual_bytes == round(0.49 * MIB)
    assert log.Compared(device="x", kind="kv_cache", planned_bytes=0, actual_bytes=0).difference == 0


def test_a_repacked_copy_counts_where_nothing_is_mapped():
    lines = [line for line in LOG if "CPU_Mapped" not in line]
    (row,) = [
        r
        for r in log.compare(on_words().plan, log.buffers(lines))
        if r.kind == "weights" and r.device != on_words().plan.devices[0].name
    ]
    assert row.actual_bytes == 100 * MIB


@pytest.mark.parametrize(
    ("device", "number"),
    [("CUDA0", 0), ("CUDA11", 11), ("ROCm1", 1), ("Vulkan2", 2), ("Metal", 0), ("MTL0_Mapped", 0), ("CUDA_Host", None),
     ("Vulkan_Host", None), ("CPU", None), ("CPU_Mapped", None), ("CUDA10_Host", None)],
)  # fmt: skip
def test_numbers_of_devices(device, number):
    assert log.gpu_number(device) == number


def test_remote_devices_are_told_apart_by_address():
    lines = [f"x: RPC0[10.0.0.{i}:50052] model buffer size = {i}.00 MiB" for i in (1, 2)]
    plan = on_words("2x RTX 3090, 64 GiB RAM", "llama-3.3-70b").plan
    rows = [
        row for row in log.compare(plan, log.buffers(lines), ("10.0.0.1:50052", "10.0.0.2:50052")) if row.actual_bytes
    ]
    assert [row.actual_bytes for row in rows] == [MIB, 2 * MIB]


@pytest.mark.parametrize(
    "line",
    [
        "alloc_buffer: allocating 4403.49 MiB on device 0: cudaMalloc failed: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "ggml_vulkan: Device memory allocation of size 1 failed. vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "E llama_init_from_model: failed to create context with model 'x'",
        "unable to allocate CUDA0 buffer",
    ],
)
def test_lack_of_memory_is_recognized(line):
    assert log.ran_out_of_memory(["fine", line])
    assert log.own_words([line]) == line.removeprefix("E ")


def test_other_failures_are_not_lack_of_memory():
    assert not log.ran_out_of_memory(["error: unknown argument: --foo", "error: unknown model architecture: 'x'"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.00.123.456 E error: invalid value", "error: invalid value"),
        ("Error: no such file", "Error: no such file"),
        ("Invalid magic", "Invalid magic"),
        ("Device 3 failed", "Device 3 failed"),
        ("2 of 3 shards failed", "2 of 3 shards failed"),
        ("E unable to load", "unable to load"),
    ],
)
def test_the_engine_s_words_are_whole(line, words):
    assert log.own_words(["I fine", line, ""]) == words


def test_without_a_failure_the_last_lines_are_shown():
    assert log.own_words([f"line {i}" for i in range(9)], most=2) == "line 7\nline 8"
    assert log.own_words([]) == ""


@given(st.lists(st.text(max_size=60), max_size=10))
def test_any_log_is_read(lines):
    log.compare(on_plan, log.buffers(lines))
    assert log.own_words(lines).count("\n") < 6 * 60
    log.ran_out_of_memory(lines)


on_plan = on_words().plan
