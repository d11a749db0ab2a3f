"""AMD cards, partitions and APUs; Intel and Apple GPUs."""

from __future__ import annotations

import machines
import pytest

from willitrun_probe.collect import collect
from willitrun_probe.gpus import amd, amd_sysfs, apple, intel
from willitrun_probe.gpus.amd import gfx_target
from willitrun_probe.gpus.apple import default_budget
from willitrun_probe.gpus.smi import fits
from willitrun_probe.host.pci import read_pci
from willitrun_probe.interpretation import Host
from willitrun_probe.isolate import Reply

GIB, MIB = 1024**3, 1024**2


def codes(name: str) -> set[str]:
    return {found.code for found in machines.machine(name).findings}


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (90008, "gfx908"), (90010, "gfx90a"), (90402, "gfx942"), (90500, "gfx950"), (100300, "gfx1030"),
        (110000, "gfx1100"), (110501, "gfx1151"), (120001, "gfx1201"), (0, None), (-1, None),
    ],
)  # fmt: skip
def test_gfx_target(number, name):
    assert gfx_target(number) == name


@pytest.mark.parametrize(
    ("name", "gb_per_s", "source"),
    [("mi100", 1229, "kfd"), ("mi250x-two-dies", 1638, "kfd"), ("mi300x-spx", 5300, "amdsmi"),
     ("rx7900xtx-no-render", 960, "kfd")],
)  # fmt: skip
def test_bandwidth_agrees_with_the_data_sheet(name, gb_per_s, source):
    gpu = machines.machine(name).gpus[0]
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=0.005)
    assert gpu.sources["memory_bandwidth_bytes_per_s"] == source


def test_card_with_its_holder_and_name():
    gpu = machines.machine("mi100").gpus[0]
    assert gpu.name == "Arcturus GL-XL [Instinct MI100]"
    assert (gpu.gfx_target, gpu.multiprocessors, gpu.pci_id) == ("gfx908", 120, "1002:738c")
    assert gpu.memory_free_bytes == 32 * GIB - 16 * MIB - 2 * GIB - 300 * MIB
    assert [(one.pid, one.name, one.bytes) for one in gpu.holders or ()] == [(888, "python3", 2 * GIB)]
    assert gpu.uuid == "GPU-1234567890abcdef"
    assert gpu.power_limit_w == 290


def test_lendable_memory_of_a_card_is_never_counted():
    assert machines.machine("mi300x-spx").gpus[0].memory_total_bytes == 196592 * MIB


def test_partitions_share_the_card_and_count_its_memory_once():
    machine = machines.machine("mi300x-cpx")
    assert len(machine.gpus) == 8
    assert {gpu.kind for gpu in machine.gpus} == {"partition"}
    assert sum(gpu.memory_total_bytes or 0 for gpu in machine.gpus) == 196592 * MIB
    assert {gpu.multiprocessors for gpu in machine.gpus} == {38}
    assert "memory-shared-by-partitions" in codes("mi300x-cpx")


@pytest.mark.parametrize(
    ("name", "total", "free"),
    [
        # carve-out + lendable, each less what is in use
        ("strix-halo", 66 * GIB, 66 * GIB - 600 * MIB - 78 * MIB),
        ("phoenix-apu", 15 * GIB + 512 * MIB, 15 * GIB + 512 * MIB - 500 * MIB),
    ],
)
def test_apu_pool(name, total, free):
    gpu = machines.machine(name).gpus[0]
    assert gpu.unified
    assert gpu.kind == "integrated"
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (total, free)
    assert gpu.memory_bandwidth_bytes_per_s is None


def test_apu_lends_no_more_than_the_host_has_left():
    found = machines.recording("strix-halo")
    recorded = found.roots.recorded
    assert recorded is not None
    busy = recorded.files["/proc/meminfo"].replace(b"MemAvailable:   115343360 kB", b"MemAvailable:   1048576 kB")
    assert busy != recorded.files["/proc/meminfo"]
    recorded.files["/proc/meminfo"] = busy
    gpu = collect(
        roots=found.roots, libraries=found.libraries, environment={}, timeout_s=5, now=0, isolated=False
    ).gpus[0]
    assert gpu.memory_free_bytes == 4 * GIB - 600 * MIB + 1 * GIB


def test_apu_by_processor_cores_in_its_node():
    assert machines.machine("mi300a").gpus[0].unified


def test_fabric_links_between_dies():
    first = machines.machine("mi250x-two-dies", HIP_VISIBLE_DEVICES="0,1").gpus[0]
    assert [(link.kind, link.bytes_per_s) for link in first.links] == [("xgmi", 200e9)]


def test_two_stages_of_visibility():
    gpus = machines.machine("mi250x-two-dies").gpus
    assert [(gpu.pci_address, gpu.visible) for gpu in gpus] == [("0000:c6:00.0", True), ("0000:c1:00.0", False)]


def test_bindings_of_another_release_are_not_used():
    machine = machines.machine("rx6800-smi-mismatch")
    assert "library-incompatible" in codes("rx6800-smi-mismatch")
    assert machine.gpus[0].memory_free_bytes == 16 * GIB - 16 * MIB - 500 * MIB
    assert {source.name: source.outcome for source in machine.sources}["amdsmi"] == "failed"


def test_library_that_contradicts_the_kernel_is_not_used():
    gpu = machines.machine("rx7900-smi-disagrees").gpus[0]
    assert "garbage" not in gpu.name
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(959e9, rel=0.01)


@pytest.mark.parametrize(
    ("bindings", "library", "good"),
    [
        ("7.0.2", [26, 0, 2], True), ("7.0.2", [25, 3, 0], False), ("7.0.2", [27, 0, 0], False),
        ("6.4.4", [25, 5, 1], True),
        ("6.3.3", [24, 7, 1], False), ("", [26, 0, 0], False), ("7.0.2", None, False), ("7.0.2", [], False),
    ],
)  # fmt: skip
def test_which_bindings_fit(bindings, library, good):
    assert fits(bindings, library) is good


def test_permission_findings_say_which_group():
    found = {f.code: f for f in machines.machine("rx7900xtx-no-render").findings}
    assert "usermod -aG render" in found["render-permission"].advice
    assert found["gfx-override"].subject == "0000:03:00.0"
    assert "kfd-missing" in codes("amd-vulkan-only")


def test_intel_card_and_integrated_graphics():
    card = machines.machine("arc-a770").gpus[0]
    assert (card.name, card.memory_total_bytes, card.memory_free_bytes) == ("DG2 [Arc A770]", 16 * GIB, None)
    assert {"free-memory-unknown", "render-permission"} <= codes("arc-a770")
    machine = machines.machine("intel-igpu")
    shared = machine.gpus[0]
    assert shared.unified
    assert shared.memory_free_bytes == machine.memory.available_bytes


@pytest.mark.parametrize(
    ("gib", "budget"), [(16, 11.84), (24, 17.76), (64, 48.0), (128, 107.5), (8, 5.92), (96, 77.75)]
)
def test_default_budget_of_apple_silicon(gib, budget):
    assert default_budget(gib * GIB) / GIB == pytest.approx(budget, rel=0.001)


@pytest.mark.parametrize(
    ("name", "source", "total_gib"),
    [("apple-m4-max", "metal", 107.5), ("apple-m2-pro-wired", "sysctl", 28), ("apple-m1", "table", 11.84)],
)
def test_apple_budget_and_who_said_it(name, source, total_gib):
    gpu = machines.machine(name).gpus[0]
    assert gpu.sources["memory_total_bytes"] == source
    assert gpu.memory_total_bytes == pytest.approx(total_gib * GIB, rel=1e-6)
    assert gpu.memory_free_bytes <= gpu.memory_total_bytes


def replied(*lines: dict[str, object], ending: str = "complete", reason: str = "", **lost: str) -> Reply:
    return Reply(list(lines), ending, reason, 0.1, "", {int(key[1:]): text for key, text in lost.items()}, ())  # type: ignore[arg-type]


def surroundings(name: str) -> Host:
    found = machines.recording(name)
    return Host(found.roots, {}, machines.machine(name).memory, read_pci(found.roots))


@pytest.mark.parametrize(("vendor", "name"), [(amd, "mi100"), (intel, "arc-a770")])
def test_card_whose_files_hang_is_named(vendor, name):
    late = "gave no answer in time"
    told = vendor.interpret(replied(ending="timeout", reason=late, _0=late), surroundings(name))
    address = surroundings(name).devices[0].address
    assert [(f.code, f.subject) for f in told.findings if f.code == "gpu-hangs"] == [("gpu-hangs", address)]
    assert told.sources[0].outcome == "failed"


def test_devices_left_alone_keep_the_numbers_of_the_others():
    lines: list[dict[str, object]] = []
    amd_sysfs.read(machines.recording("mi250x-two-dies").roots, lines.append, leave=frozenset({0}))
    assert [line["device"] for line in lines if line["kind"] == "device"] == [1]
    assert [line["kind"] for line in lines] == ["at", "device", "kfd"]


def test_apple_reader_that_does_not_answer():
    told = apple.interpret(replied(ending="timeout", reason="gave no answer in time"), surroundings("apple-m1"))
    assert [(f.code, f.subject) for f in told.findings] == [("driver-failed", "apple")]
