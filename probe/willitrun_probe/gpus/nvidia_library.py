"""How the question to NVML itself ended, and GPUs that exist without it (early Jetson systems)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from willitrun_probe.findings import finding
from willitrun_probe.gpus.nvml import BINDINGS_MISSING, LIBRARY_MISSING
from willitrun_probe.gpus.processes import in_container
from willitrun_probe.interpretation import Host
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Gpu, Outcome, Source
from willitrun_probe.roots import Roots

NO_PERMISSION, NOT_LOADED, MISMATCH, UNKNOWN = 4, 9, 18, 999
_START_CODES = {
    NO_PERMISSION: "driver-no-permission",
    NOT_LOADED: "driver-not-loaded",
    MISMATCH: "driver-mismatch",
    UNKNOWN: "driver-unknown-error",
    LIBRARY_MISSING: "library-missing",
    BINDINGS_MISSING: "bindings-missing",
}
_TEGRA = {
    # device tree `compatible` to GPU and compute capability (NVIDIA Jetson module data sheets; CUDA GPU list)
    "nvidia,tegra210": ("Tegra X1", "5.3"),
    "nvidia,tegra186": ("Tegra X2", "6.2"),
    "nvidia,tegra194": ("Xavier", "7.2"),
    "nvidia,tegra234": ("Orin", "8.7"),
    "nvidia,tegra264": ("Thor", "11.0"),
}


def library_state(library: Mapping[str, Any], reply: Reply, host: Host) -> tuple[Source, list[Finding], list[Gpu]]:
    """Return the source's record, findings about the library, and GPUs known without it."""
    bound = {device.driver for device in host.devices if device.vendor == "nvidia"}
    found: list[Finding] = []
    outcome: Outcome = "answered"
    reason = ""
    start = library.get("start", None)
    if not library:
        outcome, reason = "failed", f"NVML {reply.reason or 'did not answer'}"
        if reply.ending != "unstartable":
            code = "driver-hangs" if reply.ending == "timeout" else "driver-crashes"
            found.append(finding(code, "nvidia", reason))
    elif start != 0:
        outcome, reason, told = _start_failure(start, library, host, bound=bound)
        found += told
    elif isinstance(library.get("count"), int):
        outcome, reason = "failed", f"NVML does not tell the number of GPUs ({library['count']})"
        found.append(finding("driver-failed", "nvidia", reason))
    elif reply.ending != "complete" and not reply.lost:
        outcome, reason = "failed", f"NVML {reply.reason} after it had started"
        code = "driver-hangs" if reply.ending == "timeout" else "driver-crashes"
        found.append(finding(code, "nvidia", reason))
    elif library.get("bindings") == "shadowed":
        reason = "an old `pynvml` distribution shadows nvidia-ml-py"
        found.append(finding("library-incompatible", "pynvml", reason, "Run `pip uninstall pynvml`."))
    if reply.chatter:
        found.append(finding("library-chatter", "nvml", reply.chatter[-200:]))
    source = Source(name="nvml", outcome=outcome, seconds=reply.seconds, reason=reason)
    stand_in = _tegra(host) if outcome != "answered" else None
    if stand_in is not None:
        told = [f for f in found if f.code != "library-missing"]
        note = finding("memory-unified", stand_in.name, "this system has no NVML; the device tree names the GPU")
        return source, [*told, note], [stand_in]
    return source, found, []


def _start_failure(
    start: Any, library: Mapping[str, Any], host: Host, *, bound: set[str | None]
) -> tuple[Outcome, str, list[Finding]]:
    code = _START_CODES.get(start, "driver-failed")
    if code == "bindings-missing":
        reason = f"nvidia-ml-py cannot be imported: {library.get('bindings', '')}"
        return "failed", reason, [finding(code, "nvidia", reason, "Run `pip install nvidia-ml-py`.")]
    if code == "library-missing":
        reason = f"the NVML library was not found: {library.get('load_error') or 'libnvidia-ml.so.1'}"
    else:
        reason = f"NVML cannot start ({start})"
    if code == "driver-mismatch":
        reason += _module_version(host.roots)
    if (code == "driver-not-loaded" and not bound) or (code == "library-missing" and "nvidia" not in bound):
        return "absent", reason, []
    if code == "library-missing" and in_container(host.roots) and not host.roots.exists("/dev/nvidiactl"):
        return "absent", f"{reason}; this container was started without GPUs", []
    return "failed", reason, [finding(code, "nvidia", reason)]


def _module_version(roots: Roots) -> str:
    for word in (roots.line("/proc/driver/nvidia/version") or "").split():
        if word[:1].isdigit() and "." in word:
            return f"; the loaded kernel module is {word}"
    return ""


def _tegra(host: Host) -> Gpu | None:
    """Describe the GPU of a Jetson whose system has no NVML (before JetPack 6) from the device tree."""
    for name in (host.roots.text("/proc/device-tree/compatible") or "").split():
        if name in _TEGRA:
            part, capability = _TEGRA[name]
            return Gpu(
                vendor="nvidia",
                name=f"{host.roots.line('/proc/device-tree/model') or 'NVIDIA Jetson'} ({part})",
                kind="integrated",
                unified=True,
                compute_capability=capability,
                memory_total_bytes=host.memory.total_bytes,
                memory_free_bytes=host.memory.available_bytes,
                sources={"name": "procfs", "memory_total_bytes": "procfs", "memory_free_bytes": "procfs"},
            )
    return None
