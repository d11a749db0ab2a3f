from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.probe import machines as recorded
from willitrun_catalog import shipped
from willitrun_catalog.find import find_datasheet
from willitrun_estimator import hardware
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine
from willitrun_probe.machine import Cpu, Disk, Gpu, Link, Machine, Memory, Pcie
from willitrun_probe.units import GIB


def machine(*gpus: Gpu, **fields) -> Machine:
    memory = Memory(total_bytes=64 * GIB, available_bytes=60 * GIB)
    values = {"name": "m", "observed_at": "2026-01-01T00:00:00Z", "cpu": Cpu(usable_threads=8), "memory": memory}
    return Machine(gpus=gpus, **(values | fields))


def gpu(name="NVIDIA GeForce RTX 3090", **fields) -> Gpu:
    values = {"vendor": "nvidia", "memory_total_bytes": 24 * GIB, "memory_free_bytes": 20 * GIB}
    return Gpu(name=name, **(values | fields))


def seen(*gpus: Gpu, **asked):
    return hardware.devices(machine(*gpus), Request(**asked), sheet_of)


def test_hidden_and_unusable_gpus_are_left_out():
    found = seen(gpu(index=0), gpu(index=1, visible=False), gpu(index=2, usable=False))
    assert [one.index for one in found.gpus] == [0]


def test_gpus_of_the_back_end_with_most_memory_are_planned():
    amd = gpu("AMD Radeon RX 7900 XTX", vendor="amd", memory_free_bytes=22 * GIB)
    assert [one.backend for one in seen(gpu(), amd).gpus] == ["rocm"]
    assert [one.backend for one in seen(gpu(), amd, backend="cuda").gpus] == ["cuda"]
    assert [one.backend for one in seen(gpu(), amd, backend="vulkan").gpus] == ["vulkan", "vulkan"]
    assert seen(gpu(), backend="cpu").gpus == ()
    assert seen().gpus == ()


def test_a_back_end_that_reaches_nothing_is_an_error():
    with pytest.raises(EstimatorError, match="metal"):
        seen(gpu(), backend="metal")
    with pytest.raises(EstimatorError, match="cuda"):
        seen(backend="cuda")


def test_integrated_gpus_only_count_alone():
    igpu = gpu("AMD Radeon 780M", vendor="amd", kind="integrated", unified=True, memory_free_bytes=8 * GIB)
    other = gpu("AMD Radeon RX 7900 XTX", vendor="amd")
    assert [one.name for one in seen(igpu, other).gpus] == [other.name]
    assert [one.name for one in seen(igpu).gpus] == [igpu.name]


def test_one_process_gets_one_mig_instance():
    slices = [
        gpu("A MIG 1g.5gb", kind="mig", index=i, memory_free_bytes=size * GIB) for i, size in enumerate((5, 9, 7))
    ]
    assert [one.index for one in seen(*slices).gpus] == [1]
    whole = gpu("NVIDIA A100-SXM4-40GB", index=9, memory_total_bytes=40 * GIB, memory_free_bytes=39 * GIB)
    assert [one.index for one in seen(*slices, whole).gpus] == [9]
    assert len(seen(gpu(), gpu()).gpus) == 2
    recording = recorded.machine("a100-mig")
    assert len(hardware.devices(recording, Request(), sheet_of).gpus) == 1


def test_the_memory_of_a_gpu_without_any_figure_comes_from_its_sheet_or_it_is_left_out():
    sheet = find_datasheet("RTX 3090")
    (found,) = seen(gpu(memory_total_bytes=None)).gpus
    assert found.memory_total_bytes == (sheet.memory_usable_bytes or sheet.memory_bytes)
    assert seen(gpu("A card nobody knows", memory_total_bytes=None)).gpus == ()
    assert seen(gpu(memory_free_bytes=None)).gpus == ()


def test_an_idle_machine_has_all_but_what_is_reserved_free():
    (found,) = seen(gpu(memory_reserved_bytes=GIB), assume_idle=True).gpus
    assert found.memory_free_bytes == 23 * GIB
    (cleared,) = hardware.idle(seen(gpu())).gpus
    assert cleared.memory_free_bytes == cleared.memory_total_bytes


def test_bandwidth_is_the_driver_s_else_the_sheet_s_share():
    sheet = find_datasheet("NVIDIA A100 SXM4 40 GB")
    whole = gpu("NVIDIA A100-SXM4-40GB", memory_total_bytes=40 * GIB)
    assert hardware.bandwidth(structs.replace(whole, memory_bandwidth_bytes_per_s=1e12), sheet) == 1e12
    assert hardware.bandwidth(whole, sheet) == sheet.bandwidth_bytes_per_s
    assert hardware.bandwidth(whole, None) is None
    assert hardware.bandwidth(whole, structs.replace(sheet, bandwidth_bytes_per_s=None)) is None
    for profile, eighths in ((5, 1), (10, 2), (20, 4)):
        part = gpu("A100 MIG", kind="mig", memory_total_bytes=int(profile * 0.97 * GIB))
        assert hardware.bandwidth(part, sheet) == pytest.approx(sheet.bandwidth_bytes_per_s * eighths / 8)


def test_the_link_is_the_probed_one_else_the_sheet_s():
    sheet = find_datasheet("RTX 3090")
    probed = gpu(pcie=Pcie(bytes_per_s=4e9))
    assert hardware.link(probed, sheet) == pytest.approx(3.2e9)
    assert hardware.link(gpu(), sheet) == pytest.approx(16 * 1.969e9 * 0.8)
    assert hardware.link(gpu(unified=True), sheet) is None
    assert hardware.link(gpu(), None) is None


def test_the_fastest_peer_counts_and_the_host_is_none():
    links = (Link(peer="1", kind="nvlink", bytes_per_s=3e11), Link(peer="host", kind="c2c", bytes_per_s=9e11))
    (found,) = seen(gpu(links=links)).gpus
    assert found.peer_bytes_per_s == 3e11


def test_multiprocessors_from_the_rate_are_near_the_real_number():
    off = []
    for sheet in shipped.datasheets():
        if sheet.vendor in {"nvidia", "amd"} and sheet.multiprocessors and sheet.fp32_flops_per_s:
            found = hardware.multiprocessors(structs.replace(sheet, multiprocessors=None))
            off.append(abs(found / sheet.multiprocessors - 1))
    assert statistics.median(off) < 0.08
    assert statistics.quantiles(off, n=10)[-1] < 0.35
    sheet = find_datasheet("RTX 3090")
    assert hardware.multiprocessors(None) is None
    assert hardware.multiprocessors(structs.replace(sheet, multiprocessors=82)) == 82
    blank = structs.replace(sheet, multiprocessors=None)
    assert hardware.multiprocessors(structs.replace(blank, fp32_flops_per_s=None)) is None
    assert hardware.multiprocessors(structs.replace(blank, compute_capability=None, vendor="apple")) is None


def test_the_rate_of_a_multiprocessor_is_the_median_of_the_sheets():
    rates: dict[str, list[float]] = {}
    for sheet in shipped.datasheets():
        if sheet.vendor in {"nvidia", "amd"} and sheet.multiprocessors and sheet.fp32_flops_per_s:
            rates.setdefault(hardware.family_of(sheet), []).append(sheet.fp32_flops_per_s / sheet.multiprocessors)
    for name, found in rates.items():
        assert hardware.FP32_PER_MULTIPROCESSOR[name] == pytest.approx(statistics.median(found), rel=0.02), name


def test_a_slice_has_its_share_of_the_compute_units():
    sheet = find_datasheet("NVIDIA A100 SXM4 40 GB")
    one = gpu("A100 MIG", kind="mig", memory_total_bytes=5 * GIB, multiprocessors=14)
    assert hardware.compute_share(one, sheet) == pytest.approx(14 / 108)
    assert hardware.compute_share(structs.replace(one, multiprocessors=None), sheet) == pytest.approx(0.125, rel=0.1)
    unknown = structs.replace(one, multiprocessors=None, memory_total_bytes=None)
    assert hardware.compute_share(unknown, sheet) == 1
    assert hardware.compute_share(one, None) == 1
    assert hardware.compute_share(gpu(), sheet) == 1


def test_error_correction_is_on_where_data_centre_cards_have_gddr():
    names = {sheet.name for sheet in shipped.datasheets() if hardware.inline_ecc(sheet)}
    assert {"NVIDIA L40S", "NVIDIA A40 PCIe", "NVIDIA Tesla T4", "NVIDIA Tesla P40"} <= names
    assert not any("RTX" in name or "GeForce" in name or "Quadro" in name for name in names)
    assert "NVIDIA A100 SXM4 80 GB" not in names
    assert not hardware.inline_ecc(None)


def test_power_is_the_limit_that_is_enforced():
    sheet = find_datasheet("RTX 3090")
    assert seen(gpu(power_limit_w=220.0)).gpus[0].power_watts == 220
    assert seen(gpu()).gpus[0].power_watts == sheet.power_watts
    assert seen(gpu("A card nobody knows")).gpus[0].power_watts is None


def test_what_is_unknown_of_the_host_is_assumed_and_marked():
    found = seen().host
    assert (found.bandwidth_basis, found.disk_basis) == ("assumed", "assumed")
    assert found.bandwidth_bytes_per_s == pytest.approx(0.7 * 51.2e9)
    assert found.disk_read_bytes_per_s == 0.5e9
    memory = Memory(total_bytes=None, available_bytes=None, bandwidth_bytes_per_s=8e10)
    disks = (Disk(path="/a", purpose="home", read_bytes_per_s=1e9), Disk(path="/b", purpose="x", read_bytes_per_s=3e9))
    known = hardware.host(machine(memory=memory, disks=disks, cpu=Cpu()))
    assert (known.disk_read_bytes_per_s, known.disk_basis) == (3e9, "measured")
    assert (known.bandwidth_bytes_per_s, known.bandwidth_basis) == (8e10, "given")
    assert (known.ram_total_bytes, known.ram_available_bytes, known.threads) == (0, 0, 1)


@given(st.integers(1, 512))
def test_more_threads_never_read_slower(threads):
    assert hardware.assumed_bandwidth(threads) <= hardware.assumed_bandwidth(threads + 1) <= 51.2e9


def test_described_machines_are_planned_as_their_sheets_say():
    found = hardware.devices(open_machine("RTX 3090, 64 GiB RAM"), Request(), sheet_of)
    assert found.gpus[0].sheet == "NVIDIA GeForce RTX 3090"
    assert found.gpus[0].family == "ampere"


@pytest.mark.parametrize("words", ["AMD Instinct MI250X, 256 GiB RAM", str(recorded.FOLDER / "mi250x-two-dies")])
def test_a_card_of_two_dies_is_two_gpus_with_half_of_it_each(words: str) -> None:
    planned = hardware.devices(open_machine(words), Request(), sheet_of)
    assert {(gpu.bandwidth_bytes_per_s, gpu.flops_per_s, gpu.multiprocessors) for gpu in planned.gpus} == {
        (1638.4e9, 191.5e12, 110)
    }
    assert all(63 * 2**30 < gpu.memory_total_bytes <= 64 * 2**30 for gpu in planned.gpus)
    if words.startswith("AMD"):
        assert len(planned.gpus) == 2
        assert len(hardware.devices(open_machine("4x " + words), Request(), sheet_of).gpus) == 8
