"""Memory, processor, links and folders of the host."""

from __future__ import annotations

import machines
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_probe.host.cpu import read_cpu
from willitrun_probe.host.links import pcie_bytes_per_s, read_pcie
from willitrun_probe.host.memory import arc_reclaimable_bytes, control_group_folders, meminfo, numa_nodes, read_memory
from willitrun_probe.host.pci import normal_address, pci_name, read_pci
from willitrun_probe.host.storage import model_folders, read_disks
from willitrun_probe.roots import clean, cpu_list, to_integer

GIB = 1024**3
MOUNT = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
MEMINFO = "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n"


@pytest.mark.parametrize(
    ("name", "available_gib", "limit_gib"),
    [
        ("container-limits", 16 - (12 - 3 - 5 - 1), 16),
        ("container-nested-limits", 20 - (6 - 1), 20),
        ("container-cgroup-v1", 10 - (6 - 1 - 2), 10),
        ("zfs-host", 30 + 60 - 4, None),
        ("desktop-cpu-only", 55, None),
    ],
)
def test_available_memory(name, available_gib, limit_gib):
    memory = machines.machine(name).memory
    assert memory.available_bytes == available_gib * GIB
    assert memory.limit_bytes == (limit_gib and limit_gib * GIB)


def test_page_cache_of_a_full_group_is_available():
    files = {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": MOUNT,
        "/sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{8 * GIB}\n",
        "/sys/fs/cgroup/memory.stat": f"active_file {3 * GIB}\ninactive_file {4 * GIB}\nslab_reclaimable 0\n",
    }
    assert read_memory(machines.roots(files)).available_bytes == 7 * GIB


def test_a_group_without_a_number_is_no_limit():
    files = {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": "0::/a\n",
        "/proc/self/mountinfo": MOUNT,
        "/sys/fs/cgroup/a/memory.max": "max\n",
        "/sys/fs/cgroup/a/memory.current": f"{60 * GIB}\n",
    }
    memory = read_memory(machines.roots(files))
    assert memory.limit_bytes is None
    assert memory.available_bytes == 48 * GIB


def test_group_path_outside_the_mount_falls_back_to_the_mount():
    files = {
        "/proc/self/cgroup": "0::/../../system.slice/x\n",
        "/proc/self/mountinfo": MOUNT,
        "/sys/fs/cgroup/memory.max": "1\n",
    }
    assert control_group_folders(machines.roots(files), "memory") == [(2, "/sys/fs/cgroup")]
    files["/proc/self/cgroup"] = "0::/not/mounted/here\n"
    assert control_group_folders(machines.roots(files), "memory") == [(2, "/sys/fs/cgroup")]


def test_all_ancestors_of_a_group_are_asked():
    files = {
        "/proc/self/cgroup": "0::/a/b\n",
        "/proc/self/mountinfo": MOUNT,
        "/sys/fs/cgroup/a/b/cgroup.type": "domain\n",
    }
    found = control_group_folders(machines.roots(files), "memory")
    assert [folder for _, folder in found] == ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]


def test_gpu_memory_on_grace_is_no_ram():
    host = machines.machine("gh200").memory
    assert host.total_bytes == (480 + 96) * GIB - 300000 * 1024 - 96 * GIB
    nodes = numa_nodes(machines.recording("gh200").roots)
    assert [node.node for node in nodes if node.cpus] == [0]


def test_memory_node_without_processors_elsewhere_is_ram():
    files = {
        "/proc/meminfo": MEMINFO,
        "/sys/devices/system/node/node1/cpulist": "\n",
        "/sys/devices/system/node/node1/meminfo": "Node 1 MemTotal: 33554432 kB\n",
    }
    assert read_memory(machines.roots(files)).total_bytes == 64 * GIB


def test_meminfo_skips_what_is_no_number():
    text = "MemTotal: 5 kB\nMemAvailable: x kB\nHugePages_Total: 7\n: 1\nMemFree: -3 kB\n"
    assert meminfo(machines.roots({"/proc/meminfo": text})) == {"MemTotal": 5120, "HugePages_Total": 7}


def test_arc_below_its_minimum_gives_nothing():
    stats = "size 4 100\nc_min 4 200\n"
    assert arc_reclaimable_bytes(machines.roots({"/proc/spl/kstat/zfs/arcstats": stats})) == 0


@pytest.mark.parametrize(
    ("name", "cores", "fast", "threads"),
    [
        ("laptop-hybrid", 14, 6, 14),
        ("container-limits", 32, None, 4),
        ("container-cgroup-v1", 16, None, 1),
        ("lxc-container", 4, None, 4),
        ("epyc-two-nodes", 32, None, 32),
        ("apple-m4-max", 16, 12, 12),
    ],
)
def test_threads_for_an_engine(name, cores, fast, threads):
    cpu = machines.machine(name).cpu
    assert (cpu.physical_cores, cpu.performance_cores, cpu.usable_threads) == (cores, fast, threads)


def test_mask_with_one_thread_of_a_core_counts_that_core_once():
    base = "/sys/devices/system/cpu"
    files = {f"{base}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}\n" for i in range(4)}
    files |= {f"{base}/online": "0-3\n", "/proc/self/status": "Cpus_allowed_list:\t0,2,3\n"}
    cpu = read_cpu(machines.roots(files))
    assert (cpu.physical_cores, cpu.logical_cpus) == (2, 3)


def test_dense_cores_are_told_by_their_top_clock():
    base = "/sys/devices/system/cpu"
    files = {f"{base}/cpu{i}/cpufreq/cpuinfo_max_freq": ("5100000" if i < 4 else "3300000") for i in range(12)}
    files |= {f"{base}/online": "0-11\n"}
    assert read_cpu(machines.roots(files)).performance_cores == 4
    ranked = {path: str(5000000 + 10000 * n) for n, path in enumerate(files)}
    assert read_cpu(machines.roots({**ranked, f"{base}/online": "0-11\n"})).performance_cores is None


@pytest.mark.parametrize(
    ("generation", "width", "gb_per_s"),
    [(1, 16, 4.0), (2, 8, 4.0), (3, 16, 15.754), (4, 16, 31.508), (5, 16, 63.015), (5, 4, 15.754)],
)
def test_pcie_rate(generation, width, gb_per_s):
    assert pcie_bytes_per_s(generation, width) == pytest.approx(gb_per_s * 1e9, rel=1e-3)


def test_pcie_rate_of_the_unknown_is_unknown():
    assert pcie_bytes_per_s(None, 16) is None
    assert pcie_bytes_per_s(4, None) is None
    assert pcie_bytes_per_s(4, 255) is None


def test_pcie_link_at_idle_is_rated_by_what_the_slot_reaches():
    folder = "/sys/bus/pci/devices/0000:01:00.0"
    files = {
        f"{folder}/current_link_speed": "2.5 GT/s PCIe\n",
        f"{folder}/max_link_speed": "16.0 GT/s PCIe\n",
        f"{folder}/current_link_width": "8\n",
        f"{folder}/max_link_width": "16\n",
    }
    link = read_pcie(machines.roots(files), "0000:01:00.0")
    assert link is not None
    assert (link.generation, link.max_generation, link.width) == (1, 4, 8)
    assert link.bytes_per_s == pytest.approx(15.754e9, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:c4:00.0", "0000:c4:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("10000:E1:1F.7", "10000:e1:1f.7"),
        ("0000:00:20.0", None),
        ("garbage", None),
        ("", None),
    ],
)
def test_pci_address(text, address):
    assert normal_address(text) == address


def test_bus_shows_display_devices_of_known_vendors_only():
    devices = read_pci(machines.recording("laptop-hybrid").roots)
    assert [(d.address, d.vendor, d.id, d.driver) for d in devices] == [
        ("0000:00:02.0", "intel", "8086:a7a0", "i915"),
        ("0000:01:00.0", "nvidia", "10de:2860", "nvidia"),
    ]


def test_names_from_pci_ids():
    names = "# c\n10de  NVIDIA\n\t2204  GA102 [GeForce RTX 3090]\n\t\t1043 87af  Strix\n1102  Other\n\t2205  No\n"
    roots = machines.roots({"/usr/share/misc/pci.ids": names})
    assert pci_name(roots, "10de:2204") == "GA102 [GeForce RTX 3090]"
    assert pci_name(roots, "10de:2205") is None
    assert pci_name(roots, "1002:2204") is None


def test_model_folders_follow_the_engines_variables():
    assert dict(model_folders({"HOME": "/home/a"})) == {
        "huggingface": "/home/a/.cache/huggingface",
        "ollama": "/home/a/.ollama/models",
        "llama.cpp": "/home/a/.cache/llama.cpp",
        "home": "/home/a",
    }
    moved = dict(model_folders({"HOME": "/h", "HF_HOME": "/data/hf", "OLLAMA_MODELS": "/o", "LLAMA_CACHE": "/l"}))
    assert moved == {"huggingface": "/data/hf", "ollama": "/o", "llama.cpp": "/l", "home": "/h"}
    assert model_folders({}) == ()
    assert model_folders({"HOME": "relative"}) == ()


def test_disks_of_a_machine_with_a_network_home():
    found = machines.recording("network-home")
    disks = {disk.purpose: disk for disk in read_disks(found.roots, found.environment)}
    assert (disks["home"].filesystem, disks["home"].network, disks["home"].rotational) == ("nfs4", True, None)
    assert (disks["huggingface"].filesystem, disks["huggingface"].rotational) == ("ext4", True)
    assert disks["huggingface"].free_bytes == 5000 * GIB


def test_virtual_disks_do_not_tell_whether_they_spin():
    files = {
        "/proc/self/mountinfo": "1 0 254:0 / / rw - ext4 /dev/vda rw\n",
        "/sys/dev/block/254:0/queue/rotational": "1\n",
    }
    environment = {"HOME": "/home/a"}
    assert read_disks(machines.roots(files), environment)[0].rotational is True
    target = {"/sys/dev/block/254:0": "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda"}
    assert read_disks(machines.roots(files, **target), environment)[0].rotational is None


@pytest.mark.parametrize(
    ("name", "cpu"),
    [
        ("gh200", "Arm Neoverse-V2"), ("arm-server", "Arm Neoverse-V1"), ("jetson-orin", "Arm Cortex-A78AE"),
        ("jetson-xavier-no-nvml", "NVIDIA Carmel"), ("desktop-cpu-only", "AMD Ryzen 9 7950X 16-Core Processor"),
    ],
)  # fmt: skip
def test_names_of_processors(name, cpu):
    assert machines.machine(name).cpu.name == cpu


@given(st.text(max_size=40))
def test_lists_and_integers_take_any_text(text):
    assert all(0 <= cpu < 2**16 for cpu in cpu_list(text))
    value = to_integer(text)
    assert value is None or abs(value) < 2**63
    assert clean(text).isprintable()


def test_kernel_list_format():
    assert cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cpu_list("") == frozenset()
    assert to_integer("0x10de") == 0x10DE
    assert to_integer("1_000") is None
    assert to_integer("\u0663") is None
