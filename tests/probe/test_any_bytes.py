"""Whatever bytes stand in whatever file is read: a complete description with findings, never an exception."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from willitrun_probe.collect import collect
from willitrun_probe.gpus.spec import ABSENT, Libraries
from willitrun_probe.machine import from_json, to_json
from willitrun_probe.record import read_recording
from willitrun_probe.roots import Recorded, Roots

MACHINES = Path(__file__).parents[1] / "machines"
KINDS = (
    "mi300x-cpx", "mi250x-two-dies", "strix-halo", "arc-a770", "laptop-hybrid", "container-nested-limits",
    "container-cgroup-v1", "gh200", "jetson-xavier-no-nvml", "apple-m4-max", "zfs-host", "network-home",
    "rtx3090-shared",
)  # fmt: skip

tricky = st.sampled_from(
    [b"", b"\0", b"\n", b":", b"=", b"-1\n", b"0\n", b"18446744073709551615\n", b"9" * 5000, b"0x\n",
     b"1_0\n", b"max\n",
     "\u0663\n".encode(), b"\xff\xfe", b"0-99999999\n", b"5-1\n", b",,-,\n", b"NaN\n", b"1e9\n", b"../../..",
     b"0::/..\n",
     b"1 1 1:1 / / rw - \n", b"processor : 0\nprocessor : x\n", b"MemTotal: kB\n", b"MemAvailable: -5 kB\n",
     b"MemTotal: 99999999999999999999 kB\n", b"simd_count 1\nsimd_per_cu 0\n", b" - - - -\n"]
)  # fmt: skip
contents = st.one_of(st.binary(max_size=80), tricky)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_in_any_file(name, data):
    recording = read_recording(MACHINES / name)
    recorded = recording.roots.recorded
    assert recorded is not None
    paths = sorted(recorded.files)
    chosen = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=6, unique=True))
    files = {**recorded.files, **{path: data.draw(contents) for path in chosen}}
    failures = dict.fromkeys(data.draw(st.lists(st.sampled_from(paths), max_size=3, unique=True)), "EIO")
    roots = Roots(recorded=recorded._replace(files=files, failures=failures))
    machine = collect(
        roots=roots,
        libraries=recording.libraries,
        environment=recording.environment,
        timeout_s=5,
        now=recording.observed,
        isolated=False,
    )
    assert from_json(to_json(machine)) == machine
    assert "reader-failed" not in {found.code for found in machine.findings}, machine.findings
    assert not any("Error:" in source.reason for source in machine.sources), machine.sources
    for gpu in machine.gpus:
        assert gpu.memory_total_bytes is None or gpu.memory_total_bytes > 0
        if gpu.memory_free_bytes is not None:
            assert gpu.memory_total_bytes is not None
            assert gpu.memory_free_bytes <= gpu.memory_total_bytes


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(st.sampled_from(
    ["/proc/meminfo", "/proc/cpuinfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/self/status",
     "/etc/os-release",
     "/proc/sys/kernel/hostname", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/cpu.max",
     "/sys/devices/system/node/node0/meminfo", "/proc/spl/kstat/zfs/arcstats"]), st.binary(max_size=300)),
    environment=st.dictionaries(
        st.sampled_from(["HOME", "HF_HOME", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME", "OLLAMA_MODELS"]),
        st.text(max_size=20)))  # fmt: skip
def test_a_machine_of_noise(files, environment):
    roots = Roots(recorded=Recorded(files=files, links={}, failures={}, space={}, access={}))
    machine = collect(
        roots=roots, libraries=Libraries(ABSENT, ABSENT), environment=environment, now=0, timeout_s=5, isolated=False
    )
    assert from_json(to_json(machine)) == machine
    assert "reader-failed" not in {found.code for found in machine.findings}, machine.findings
    assert not any("Error:" in source.reason for source in machine.sources), machine.sources


values = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=12), st.sampled_from(["N/A", "", "GB10"]))
answers = st.one_of(st.sampled_from([3, 4, 13, 999, -1]), st.lists(values, max_size=9))


@pytest.mark.parametrize("name", ["rtx3090-shared", "a100-mig", "v100x4-nvlink-sick", "mi300x-spx"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_answer_to_any_call(name, data, tmp_path_factory):
    recording = read_recording(MACHINES / name)
    library = "amdsmi" if name.startswith("mi") else "nvml"
    lines = (MACHINES / name / f"{library}.spec").read_text().splitlines()
    for place in data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=8, unique=True)):
        call = lines[place].partition(" =")[0]
        answer = data.draw(answers)
        written = (
            f"!{answer}"
            if isinstance(answer, int)
            else " ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in answer)
        )
        lines[place] = f"{call} = {written}"
    spec = tmp_path_factory.mktemp("spec") / f"{library}.spec"
    spec.write_text("\n".join(lines), "utf-8", errors="replace")
    machine = collect(
        roots=recording.roots,
        libraries=recording.libraries._replace(**{library: str(spec)}),
        environment=recording.environment,
        timeout_s=5,
        now=0,
        isolated=False,
    )
    assert from_json(to_json(machine)) == machine
    assert "reader-failed" not in {found.code for found in machine.findings}, machine.findings
    assert not any("Error:" in source.reason for source in machine.sources), machine.sources
