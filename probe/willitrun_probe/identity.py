"""Who a machine is: a name for people, and a hash of the facts that change a plan."""

from __future__ import annotations

from collections.abc import Mapping

from willitrun_probe.machine import Engine, Gpu, Machine
from willitrun_probe.roots import Roots

_ROUNDING_BYTES = 256 * 1024**2
"""Kernel and firmware updates move MemTotal by some MiB; plans do not change for that."""


def machine_name(roots: Roots, environment: Mapping[str, str]) -> str:
    """Return the host name, or `unnamed` when the system does not tell one."""
    return roots.line("/proc/sys/kernel/hostname") or environment.get("HOSTNAME", "").strip() or "unnamed"


def shape_hash(machine: Machine) -> str:
    """Return 16 hexadecimal digits over the facts that change a plan, and nothing that varies from run to run.

    Counted: GPUs (vendor, PCI id, kind, total memory, capability, rates, links, visibility, usability, power
    limit), CPU (name, cores, threads, flags), memory (total, limit) and the engines. Left out: names, ids, what
    is free, who holds it, clocks of the moment, versions of drivers, findings and timings.
    """
    import json  # noqa: PLC0415

    cpu, memory = machine.cpu, machine.memory
    facts = {
        "gpus": sorted(json.dumps(_gpu_facts(gpu), sort_keys=True) for gpu in machine.gpus),
        "cpu": [cpu.name, cpu.architecture, cpu.physical_cores, cpu.usable_threads, cpu.performance_cores, cpu.flags],
        "memory": [_rounded(memory.total_bytes), _rounded(memory.limit_bytes), memory.bandwidth_bytes_per_s],
        "engines": sorted([engine.name, _plan_version(engine)] for engine in machine.engines),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return sha256_hex(text.encode())[:16]


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits.

    By the interpreter's own module where it has one, as the standard library's `random` does: `hashlib` loads OpenSSL,
    which takes longer than all reading of /proc and /sys.
    """
    import importlib  # noqa: PLC0415 - keeps the package's import cheap

    for name in ("_sha2", "_sha256"):
        try:
            digest: str = importlib.import_module(name).sha256(data).hexdigest()
        except (ImportError, AttributeError):
            continue
        return digest
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(data).hexdigest()


def _plan_version(engine: Engine) -> str:
    """Return the version where plans depend on it: Docker only starts what the others are."""
    return "" if engine.name == "docker" else engine.version or ""


def _gpu_facts(gpu: Gpu) -> list[object]:
    return [
        gpu.vendor,
        gpu.pci_id or gpu.name,
        gpu.kind,
        _rounded(gpu.memory_total_bytes),
        gpu.memory_bandwidth_bytes_per_s,
        gpu.compute_capability or gpu.gfx_target,
        gpu.multiprocessors,
        gpu.unified,
        gpu.visible,
        gpu.usable,
        gpu.power_limit_w,
        [gpu.pcie.max_generation, gpu.pcie.max_width] if gpu.pcie else None,
        sorted([link.kind, str(link.bytes_per_s)] for link in gpu.links),
    ]


def _rounded(value: int | None) -> int | None:
    return None if value is None else round(value / _ROUNDING_BYTES)
