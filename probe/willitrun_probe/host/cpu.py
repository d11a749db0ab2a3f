"""The processor as this process may use it: affinity mask, CPU quota, physical cores, fast cores, flags."""

from __future__ import annotations

from willitrun_probe.host import darwin
from willitrun_probe.host.memory import control_group_folders, numa_nodes
from willitrun_probe.machine import Cpu
from willitrun_probe.roots import Roots, clean, cpu_list, to_integer

INFERENCE_FLAGS = (
    # x86, as /proc/cpuinfo spells them: the sets that ggml-cpu has kernels for (llama.cpp, ggml/src/ggml-cpu)
    "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512vbmi",
    "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    # ARM
    "asimd", "asimddp", "fphp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
    # POWER, RISC-V and s390 have one relevant set each
    "vsx", "rvv", "vx",
)  # fmt: skip
SLOW_CORE = 0.8
"""A core below this share of the fastest core's capacity or top clock is a slow one. Preferred cores of one
kind differ by a few percent, dense and efficiency cores by more than a quarter (kernel, amd-pstate.rst)."""

_BASE = "/sys/devices/system/cpu"
_ARM_MAKERS = {
    "0x41": "Arm", "0x48": "HiSilicon", "0x4e": "NVIDIA", "0x51": "Qualcomm", "0x61": "Apple", "0xc0": "Ampere",
}  # fmt: skip
_ARM_PARTS = {
    # Linux, arch/arm64/include/asm/cputype.h
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2", ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x41", "0xd84"): "Neoverse-V3", ("0x41", "0xd85"): "Cortex-X925", ("0x41", "0xd87"): "Cortex-A725",
    ("0x41", "0xd8e"): "Neoverse-N3", ("0x4e", "0x004"): "Carmel", ("0xc0", "0xac3"): "AmpereOne",
    ("0xc0", "0xac4"): "AmpereOne A",
}  # fmt: skip


def read_cpu(roots: Roots) -> Cpu:
    """Read the processor. Source: /proc/cpuinfo, /proc/self/status, /sys/devices/system/cpu, cpu control groups."""
    if roots.system == "Darwin":
        return darwin.read_cpu(roots)
    processors = _cpuinfo(roots)
    status = _field(roots.text("/proc/self/status"), "Cpus_allowed_list")
    online = cpu_list(roots.text(f"{_BASE}/online"))
    known = online or frozenset(processors)
    usable = (cpu_list(status) & known if status and known else known) or cpu_list(status)
    siblings = {cpu: _core(roots, cpu, processors) for cpu in sorted(usable)}
    cores = {core: cpu for cpu, core in sorted(siblings.items(), reverse=True)}
    quota = quota_cpus(roots)
    threads = None
    if cores:
        threads = max(1, min(len(cores), int(quota)) if quota is not None else len(cores))
    first = processors.get(min(processors)) if processors else None
    fast = _performance_cores(roots, frozenset(cores.values()))
    return Cpu(
        name=_name(roots, first or {}),
        architecture=roots.architecture or _architecture(first or {}),
        sockets=_sockets(roots, processors, known),
        physical_cores=len(cores) or None,
        logical_cpus=len(usable) or None,
        performance_cores=fast,
        quota_cpus=quota,
        usable_threads=threads,
        flags=_flags(first or {}),
        numa_nodes=numa_nodes(roots),
    )


def quota_cpus(roots: Roots) -> float | None:
    """Return the tightest CPU quota of this process's control groups in cores; None without one."""
    found: list[float] = []
    for version, folder in control_group_folders(roots, "cpu"):
        if version == 2:  # noqa: PLR2004 - cgroup version
            parts = (roots.line(f"{folder}/cpu.max") or "").split()
            quota = to_integer(parts[0]) if parts else None
            period = to_integer(parts[1]) if len(parts) > 1 else 100000
        else:
            quota = roots.integer(f"{folder}/cpu.cfs_quota_us")
            period = roots.integer(f"{folder}/cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def _cpuinfo(roots: Roots) -> dict[int, dict[str, str]]:
    """Return the fields of every processor; fields that stand apart at the end (ARM) go to all."""
    found: dict[int, dict[str, str]] = {}
    common: dict[str, str] = {}
    current: dict[str, str] = common
    for line in (roots.text("/proc/cpuinfo") or "").splitlines():
        key, mark, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not mark:
            current = common
        elif key == "processor" and (number := to_integer(value)) is not None and 0 <= number < 2**16:
            current = found.setdefault(number, {})
        else:
            current.setdefault(key, value)
    return {number: {**common, **fields} for number, fields in found.items()}


def _core(roots: Roots, cpu: int, processors: dict[int, dict[str, str]]) -> tuple[str, ...]:
    """Name the physical core a logical CPU belongs to."""
    topology = f"{_BASE}/cpu{cpu}/topology"
    shared = cpu_list(roots.text(f"{topology}/thread_siblings_list"))
    if cpu in shared:
        return (str(min(shared)),)
    fields = processors.get(cpu, {})
    if "core id" in fields:
        return fields.get("physical id", "0"), fields["core id"]
    return ("cpu", str(cpu))


def _sockets(roots: Roots, processors: dict[int, dict[str, str]], cpus: frozenset[int]) -> int | None:
    packages = {roots.integer(f"{_BASE}/cpu{cpu}/topology/physical_package_id") for cpu in cpus}
    real = {package for package in packages if package is not None and package >= 0}
    if not real:
        named = {fields["physical id"] for fields in processors.values() if "physical id" in fields}
        return len(named) or (1 if processors else None)
    return len(real)


def _performance_cores(roots: Roots, cores: frozenset[int]) -> int | None:
    """Count the fast cores among one logical CPU per core; None where all are alike or nothing tells."""
    fast = cpu_list(roots.text("/sys/devices/cpu_core/cpus"))
    slow = cpu_list(roots.text("/sys/devices/cpu_atom/cpus"))
    if fast and slow:
        return len(cores & fast) if cores & slow else None
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        values = {cpu: roots.integer(f"{_BASE}/cpu{cpu}/{name}") for cpu in cores}
        known = {cpu: value for cpu, value in values.items() if value is not None and value > 0}
        if known and len(known) == len(cores):
            quick = sum(value >= SLOW_CORE * max(known.values()) for value in known.values())
            return quick if quick < len(cores) else None
    return None


def _name(roots: Roots, fields: dict[str, str]) -> str | None:
    for key in ("model name", "Processor", "cpu model", "cpu", "Hardware"):
        if clean(fields.get(key)):
            return clean(fields[key])
    maker, part = fields.get("CPU implementer", ""), fields.get("CPU part", "")
    if maker in _ARM_MAKERS and part:
        return clean(f"{_ARM_MAKERS[maker]} {_ARM_PARTS.get((maker, part), f'CPU part {part}')}")
    return roots.line("/proc/device-tree/model")


def _architecture(fields: dict[str, str]) -> str | None:
    if "CPU implementer" in fields:
        return "aarch64"
    return "x86_64" if "lm" in fields.get("flags", "").split() else None


def _flags(fields: dict[str, str]) -> tuple[str, ...]:
    listed = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    return tuple(flag for flag in INFERENCE_FLAGS if flag in listed)


def _field(text: str | None, key: str) -> str | None:
    for line in (text or "").splitlines():
        name, mark, value = line.partition(":")
        if mark and name == key:
            return value.strip()
    return None
