"""What NVML's answers mean, in numbers that data sheets confirm."""

from __future__ import annotations

import machines
import pytest

from willitrun_probe.gpus.nvidia import multiprocessors
from willitrun_probe.machine import Machine

GIB = 1024**3


def codes(machine: Machine) -> set[str]:
    return {found.code for found in machine.findings}


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        # data sheets: RTX 3090 936, H100 SXM 3350, T4 320, RTX 5090 1792, L40S 864, V100 900, A100 40GB 1555 GB/s
        ("rtx3090-shared", 936), ("h100x8-nvlink", 3350), ("t4-old-driver", 320), ("rtx5090x2-narrow", 1792),
        ("forbidden-gpu", 864), ("v100x4-nvlink-sick", 900), ("mig-without-instances", 1555),
    ],
)  # fmt: skip
def test_bandwidth_from_clock_and_width(name, gb_per_s):
    gpu = machines.machine(name).gpus[0]
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=0.005)
    assert gpu.sources["memory_bandwidth_bytes_per_s"] == "nvml"


@pytest.mark.parametrize(
    ("cores", "capability", "count"),
    [
        (10496, (8, 6), 82), (6912, (8, 0), 108), (16896, (9, 0), 132), (2560, (7, 5), 40), (5120, (7, 0), 80),
        (3584, (6, 0), 56), (3840, (6, 1), 30), (21760, (12, 0), 170), (2880, (3, 5), 15), (100, (8, 6), None),
        (None, (9, 0), None),
    ],
)  # fmt: skip
def test_multiprocessors_from_cores(cores, capability, count):
    assert multiprocessors(cores, *capability) == count


def test_mig_instances_replace_their_gpu():
    machine = machines.machine("a100-mig")
    slices = [gpu for gpu in machine.gpus if gpu.kind == "mig"]
    whole = [gpu for gpu in machine.gpus if gpu.kind == "gpu"]
    assert [gpu.multiprocessors for gpu in slices] == [42, 28, 14]
    shares = [gpu.memory_bandwidth_bytes_per_s / whole[0].memory_bandwidth_bytes_per_s for gpu in slices]
    assert shares == [4 / 8, 2 / 8, 1 / 8]
    assert {gpu.parent_uuid for gpu in slices} == {"GPU-00000000-0000-4000-8000-000000000001"}
    assert [gpu.index for gpu in whole] == [1]
    assert slices[1].memory_free_bytes == 4_000_000_000
    assert [one.name for one in slices[1].holders or ()] == ["vllm"]


def test_mig_in_a_container_where_the_parent_is_forbidden():
    gpus = machines.machine("h200-mig-container").gpus
    assert [(gpu.kind, gpu.memory_total_bytes) for gpu in gpus] == [("mig", 75161927680)]
    assert gpus[0].memory_bandwidth_bytes_per_s is None
    assert gpus[0].holders is None


def test_holders_with_container_and_the_advice_to_stop_them():
    machine = machines.machine("rtx3090-shared")
    gpu = machine.gpus[0]
    assert gpu.memory_free_bytes == 18_900_000_000
    assert gpu.memory_reserved_bytes == 427_819_008
    assert [(one.pid, one.name, one.bytes, one.container) for one in gpu.holders or ()] == [
        (4242, "python3", 6291456000, "abababababab"),
        (5151, "Xorg", 100000000, None),
    ]
    assert "memory-held" in codes(machine)
    assert gpu.display_active is True


@pytest.mark.parametrize("name", ["gb10", "gb10-hugepages", "jetson-orin", "jetson-xavier-no-nvml"])
def test_parts_without_own_memory_use_the_hosts(name):
    machine = machines.machine(name)
    gpu = machine.gpus[0]
    assert gpu.unified
    assert gpu.kind == "integrated"
    assert gpu.memory_total_bytes == machine.memory.total_bytes
    assert gpu.memory_bandwidth_bytes_per_s is None
    assert "memory-unified" in codes(machine)
    free = 18432 * 2048 * 1024 if name == "gb10-hugepages" else machine.memory.available_bytes
    assert gpu.memory_free_bytes == free


def test_grace_hopper_has_its_own_memory():
    gpu = machines.machine("gh200").gpus[0]
    assert not gpu.unified
    assert gpu.memory_total_bytes == 102625181696
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(4.02e12, rel=0.01)


def test_nvswitch_links_reach_every_gpu_at_full_rate():
    gpus = machines.machine("h100x8-nvlink").gpus
    assert len(gpus) == 8
    for gpu in gpus:
        assert len(gpu.links) == 7
        # NVIDIA H100 data sheet: NVLink 900 GB/s both directions, 450 in one
        assert {(link.kind, link.bytes_per_s, link.peer_to_peer) for link in gpu.links} == {("nvlink", 450e9, True)}
    near = {link.peer: link.topology for link in gpus[0].links}
    assert near["GPU-00000000-0000-4000-8000-000000000002"] == "host-bridge"
    assert near["GPU-00000000-0000-4000-8000-000000000008"] == "system"
    assert [gpu.numa_node for gpu in gpus] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_direct_nvlinks_add_up_by_neighbour():
    machine = machines.machine("v100x4-nvlink-sick")
    first = {link.peer[-1]: link.bytes_per_s for link in machine.gpus[0].links}
    assert first == {"2": 50e9, "3": 50e9, "4": 50e9}
    second = {link.peer[-1]: link.bytes_per_s for link in machine.gpus[1].links}
    assert second == {"1": 50e9, "3": 50e9, "4": 25e9}
    assert {"nvlink-inactive", "gpu-throttled", "gpu-unhealthy", "compute-prohibited"} <= codes(machine)
    assert machine.gpus[3].health == ("ecc-uncorrected", "row-remap-pending")
    assert not machine.gpus[3].usable


def test_virtual_gpu_gets_no_bandwidth_from_clocks():
    gpu = machines.machine("vgpu-guest").gpus[0]
    assert gpu.virtualization == "vgpu"
    assert gpu.memory_bandwidth_bytes_per_s is None
    assert gpu.memory_free_bytes is not None


def test_wsl_falls_back_to_the_first_memory_call_and_knows_no_sizes_of_processes():
    machine = machines.machine("wsl2-rtx4080")
    gpu = machine.gpus[0]
    assert machine.virtualization == "wsl2"
    assert gpu.memory_free_bytes == 15_200_000_000
    assert gpu.memory_reserved_bytes is None
    assert [(one.pid, one.bytes) for one in gpu.holders or ()] == [(31, None)]


def test_slow_slot_and_lowered_power_limit():
    machine = machines.machine("rtx5090x2-narrow")
    assert {"pcie-narrow", "power-capped"} <= codes(machine)
    assert machine.gpus[1].pcie is not None
    assert machine.gpus[1].pcie.bytes_per_s == pytest.approx(7.877e9, rel=1e-3)
    assert machine.gpus[0].links[0].peer_to_peer is False


def test_old_driver_below_the_floors_of_engines():
    floors = {f.subject: f.reason for f in machines.machine("t4-old-driver").findings if "floor" in f.code}
    assert set(floors) == {"ollama (CUDA 12 builds)", "vllm images since 25.10 (CUDA 13)"}
    assert "driver-below-engine-floor" not in codes(machines.machine("rtx3090-shared"))


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("driver-mismatch", "driver-mismatch", "AD102 [GeForce RTX 4090]"),
        ("container-unknown-error", "driver-unknown-error", "NVIDIA GPU 10de:2684"),
        ("nouveau", "driver-missing", "NVIDIA GPU 10de:1b06"),
        ("vfio-passthrough", "passed-through", "NVIDIA GPU 10de:2684"),
    ],
)
def test_a_sick_driver_is_never_no_gpu(name, code, named):
    machine = machines.machine(name)
    assert [(gpu.name, gpu.usable) for gpu in machine.gpus] == [(named, False)]
    assert code in codes(machine)
    assert "570.86.15" in next(f.reason for f in machine.findings) or name != "driver-mismatch"
