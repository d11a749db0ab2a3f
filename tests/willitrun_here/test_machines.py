from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.probe import machines as recorded
from willitrun_catalog.errors import UnknownGpu
from willitrun_here import machines
from willitrun_here.errors import UnreadableError, UsageError
from willitrun_here.machines import from_object, open_machine, parse_words
from willitrun_probe.errors import ProbeError
from willitrun_probe.machine import to_json
from willitrun_probe.units import GIB


def test_words_become_a_machine():
    machine = open_machine("2x NVIDIA GeForce RTX 3090 (20 GiB free), 64 GiB RAM, 16 cores, 80 GB/s RAM")
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 3090"] * 2
    assert [gpu.index for gpu in machine.gpus] == [0, 1]
    assert machine.gpus[0].memory_free_bytes == 20 * GIB
    assert 23 * GIB < machine.gpus[0].memory_total_bytes <= 24 * GIB
    assert machine.memory.available_bytes == 64 * GIB
    assert machine.memory.bandwidth_bytes_per_s == 80e9
    assert machine.memory.sources["bandwidth_bytes_per_s"] == "given"
    assert machine.cpu.usable_threads == 16
    assert not machine.findings


@pytest.mark.parametrize(
    ("text", "counts", "ram"),
    [
        ("RTX 3090 + RTX 3060 12GB + 32GB RAM", [1, 1], 32 * 10**9),
        ("4\u00d7RTX 3090; RAM: 128G", [4], 128 * GIB),
        ("3 * RTX 3090, 8 GiB of memory", [3], 8 * GIB),
        ("no GPU, 16 GiB RAM", [], 16 * GIB),
        ("cpu", [], None),
        ("2x RTX 3090", [2], None),
    ],
)
def test_forms_of_words(text, counts, ram):
    words = parse_words(text)
    assert [gpu.count for gpu in words.gpus] == counts
    assert words.ram_bytes == ram


def test_ram_nobody_gave_is_assumed_and_said():
    machine = open_machine("RTX 3090")
    assert machine.memory.available_bytes == machines.ASSUMED_RAM_BYTES
    (finding,) = machine.findings
    assert finding.code == "ram-assumed"


@pytest.mark.parametrize(
    "text", ["", "  ", ",", "RTX 3090, 1.2.3 GiB RAM", "0x RTX 3090", "65x RTX 3090", "40x RTX 3090, 40x RTX 3090",
             "x" * 5000, "a\0b", "RTX 3090, " + "9" * 400 + " GiB RAM", "RTX 3090, 9999999999 GiB RAM",
             "RTX 3090, 0 GB/s"]
)  # fmt: skip
def test_words_that_mean_nothing(text):
    with pytest.raises(UsageError):
        open_machine(text)


def test_gpus_nobody_knows():
    with pytest.raises(UnknownGpu):
        open_machine("Voodoo 2, 1 GiB RAM")
    given_memory = from_object({"gpus": [{"name": "Radeon Future 1", "memory_free_bytes": 8 * GIB}]})
    (gpu,) = given_memory.gpus
    assert (gpu.vendor, gpu.memory_total_bytes) == ("amd", 8 * GIB)


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("Radeon X", "amd"),
        ("AMD MI999X", "amd"),
        ("Intel Arc Z", "intel"),
        ("Apple M9", "apple"),
        ("Some card", "nvidia"),
    ],
)
def test_the_maker_of_an_unknown_name(name, vendor):
    assert machines.vendor_of(name) == vendor


def test_objects_become_a_machine():
    machine = from_object(
        {
            "gpus": [
                {"name": "RTX 3090", "count": 2, "memory_free_bytes": 30 * GIB, "memory_bandwidth_bytes_per_s": 9e11}
            ],
            "ram_bytes": 32 * GIB,
            "ram_total_bytes": 64 * GIB,
            "disk_read_bytes_per_s": 3e9,
            "cpu": "Ryzen",
            "cores": 12,
        }
    )
    assert machine.name == "2x RTX 3090, 32 GiB RAM"
    assert machine.gpus[0].memory_total_bytes == 30 * GIB, "more free than a sheet's total: what was given counts"
    assert machine.gpus[1].memory_bandwidth_bytes_per_s == 9e11
    assert (machine.memory.total_bytes, machine.memory.available_bytes) == (64 * GIB, 32 * GIB)
    assert machine.disks[0].read_bytes_per_s == 3e9
    assert (machine.cpu.name, machine.cpu.usable_threads) == ("Ryzen", 12)


@pytest.mark.parametrize(
    "value",
    [
        {"gpu": []},
        {"gpus": "RTX 3090"},
        {"gpus": [{"name": "RTX 3090", "count": -1}]},
        {"gpus": [{"name": "RTX 3090", "memory_free_bytes": -5}]},
        {"gpus": [{"name": "RTX 3090", "memory_bandwidth_bytes_per_s": 0}]},
        {"ram_bytes": -1},
        {"ram_bytes": 2**63},
        {"cores": -4},
        {"disk_read_bytes_per_s": 0.0},
        {"ram_bandwidth_bytes_per_s": -1.0},
    ],
)
def test_objects_that_mean_nothing(value):
    with pytest.raises(UsageError, match="machine"):
        from_object(value)


def test_saved_probes_come_back(tmp_path):
    machine = recorded.machine("rtx3090-shared")
    path = tmp_path / "probe.json"
    path.write_bytes(to_json(machine))
    assert open_machine(str(path)) == machine
    bare = tmp_path / "probe"
    bare.write_bytes(to_json(machine))
    assert open_machine(str(bare)) == machine


def test_files_that_are_no_probe(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "none.json"):
        with pytest.raises(UnreadableError) as caught:
            open_machine(str(tmp_path / name))
        assert "probe --save" in caught.value.advice
    with pytest.raises(ProbeError):
        open_machine(str(tmp_path))


def test_recordings_are_replayed():
    machine = open_machine(str(recorded.FOLDER / "rtx3090-shared"))
    assert machine.gpus[0].name == recorded.machine("rtx3090-shared").gpus[0].name


def test_this_machine():
    assert open_machine("here").memory.total_bytes


def test_integrated_and_unified_memory():
    (strix,) = open_machine("AMD Ryzen AI Max+ 395, 96 GiB RAM").gpus[:1]
    assert strix.unified
    (apple,) = open_machine("Apple M4 Max, 64 GiB RAM").gpus
    assert (apple.kind, apple.unified) == ("gpu", True)


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 512))
def test_counts_and_sizes_come_back(count, ram, cores):
    words = parse_words(f"{count}x RTX 3090, {ram} GiB RAM, {cores} cores")
    assert (words.gpus[0].count, words.ram_bytes, words.cores) == (count, ram * GIB, cores)


@given(st.text(max_size=60))
def test_any_words(text):
    with suppress(UsageError):
        assert parse_words(text).name == text


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("MI50 32GB", 32),
        ("RTX 3080 Laptop GPU 16GB", 16),
        ("NVIDIA L40S-8Q", 8),
        ("Tesla M40 24GB", 24),
        ("RTX 3090", 24),
    ],
)
def test_memory_that_a_name_states_is_believed(words, gib):
    (gpu,) = open_machine(f"{words}, 64 GiB RAM").gpus
    assert 0.95 * gib < gpu.memory_total_bytes / GIB <= gib
