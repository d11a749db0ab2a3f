"""What AMD SMI's answers are worth: used only where its versions fit and its memory agrees with the kernel's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from willitrun_probe.findings import finding
from willitrun_probe.gpus.answers import Answers
from willitrun_probe.host.pci import normal_address
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Finding, Outcome, Source

MIB = 1024**2
AGREEMENT = 0.01
_NOT_LOADED = 34
_FASTEST_GB_PER_S = 100_000


class Enrichment(NamedTuple):
    """What AMD SMI adds to the files; empty when it cannot be trusted."""

    name: str | None = None
    name_source: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    gfx_target: str | None = None
    compute_units: int | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    uncorrectable: int = 0
    holders: tuple[tuple[int, int | None], ...] | None = None


def smi_state(reply: Reply) -> tuple[dict[str, Enrichment], Source, list[Finding]]:
    """Return the answers by PCI address, the source's record and what is wrong with the library."""
    state: Mapping[str, Any] = next((line for line in reply.lines if line.get("kind") == "smi"), {})
    outcome, reason, found = _outcome(state, reply)
    source = Source(name="amdsmi", outcome=outcome, seconds=reply.seconds if state else 0.0, reason=reason)
    answers: dict[str, Enrichment] = {}
    for line in reply.lines:
        if line.get("kind") == "smi-device":
            told = Answers(line.get("answers"))
            address = normal_address(told.text("amdsmi_get_gpu_device_bdf"))
            if address is not None:
                answers.setdefault(address, _enrichment(told))
    return answers, source, found


def _outcome(state: Mapping[str, Any], reply: Reply) -> tuple[Outcome, str, list[Finding]]:
    kind = state.get("state")
    unfinished = "smi-hangs" if reply.ending == "timeout" else "smi-crashes"
    if kind is None:
        reason = f"AMD SMI {reply.reason or 'did not answer'}"
        asked = reply.ending != "complete" and any(line.get("kind") == "kfd" for line in reply.lines)
        return "failed", reason, [finding(unfinished, "amdsmi", reason)] if asked else []
    if kind == "absent":
        reason = str(state.get("reason", ""))
        known = state.get("missing")
        return "absent", reason, [] if known else [finding("library-incompatible", "amdsmi", reason)]
    if kind == "incompatible":
        version = ".".join(str(part) for part in state.get("library") or ()) or "unknown"
        reason = f"bindings {state.get('bindings') or 'unknown'} and library {version} do not fit"
        advice = 'Install bindings of your ROCm release: `pip install "amdsmi==MAJOR.MINOR.*"`.'
        return "failed", reason, [finding("library-incompatible", "amdsmi", reason, advice)]
    if kind == "failed":
        reason = f"AMD SMI cannot start ({state.get('code')})"
        code = "driver-not-loaded" if state.get("code") == _NOT_LOADED else "smi-failed"
        return "failed", reason, [finding(code, "amdsmi", reason)]
    if reply.ending != "complete":
        reason = f"AMD SMI {reply.reason} while it was asked"
        return "failed", reason, [finding(unfinished, "amdsmi", reason)]
    return "answered", "", []


def enrich(line: Mapping[str, Any], told: Enrichment | None, found: list[Finding]) -> Enrichment:
    """Return AMD SMI's answers about a device unless its memory contradicts the kernel's by more than 1 %."""
    if told is None:
        return Enrichment()
    kernel = line.get("mem_info_vram_total")
    if not isinstance(kernel, int) or kernel <= 0 or told.total_bytes is None:
        return told
    if abs(told.total_bytes - kernel) > max(AGREEMENT * kernel, MIB):
        reason = f"AMD SMI says {told.total_bytes} bytes of memory, the kernel {kernel}; AMD SMI is not used"
        found.append(finding("sources-disagree", str(line.get("address")), reason))
        return Enrichment()
    return told


def _enrichment(told: Answers) -> Enrichment:
    asic, vram = told.values("amdsmi_get_gpu_asic_info"), told.values("amdsmi_get_gpu_vram_info")
    usage = told.integers("amdsmi_get_gpu_vram_usage")
    power = told.integers("amdsmi_get_power_cap_info")
    errors = told.integers("amdsmi_get_gpu_total_ecc_count")
    name = told.text("amdsmi_get_gpu_asic_info")
    total = _number(vram, 2, 2**30) or (usage[0] if usage and 0 < usage[0] < 2**30 else None)
    used = usage[1] if len(usage) > 1 and 0 <= usage[1] < 2**30 else None
    free = None
    if total is not None and used is not None and used <= total:
        free = (total - used) * MIB
    bandwidth = _number(vram, 4, _FASTEST_GB_PER_S)
    graphics = _number(asic, 9, 2**16)
    return Enrichment(
        name=name,
        name_source="amdsmi" if name else None,
        total_bytes=total * MIB if total else None,
        free_bytes=free,
        bandwidth_bytes_per_s=bandwidth * 1e9 if bandwidth else None,
        gfx_target=f"gfx{graphics:x}" if graphics else None,
        compute_units=_number(asic, 8, 2**16),
        power_limit_w=_watts(power, 0),
        power_default_w=_watts(power, 1),
        uncorrectable=errors[1] if len(errors) > 1 and 0 < errors[1] < 2**31 else 0,
        holders=_processes(told),
    )


def _number(values: list[Any], place: int, below: int) -> int | None:
    value = values[place] if len(values) > place else None
    return value if isinstance(value, int) and 0 < value < below else None


def _watts(values: list[int], place: int) -> float | None:
    value = _number(values, place, 10**10)
    return value / 1e6 if value else None


def _processes(told: Answers) -> tuple[tuple[int, int | None], ...] | None:
    """Return (pid, bytes) of every process, largest first; None when there is no list."""
    values = told.values("amdsmi_get_gpu_process_list")
    if told.code("amdsmi_get_gpu_process_list") is not None or "amdsmi_get_gpu_process_list" not in told:
        return None
    found: list[tuple[int, int | None]] = []
    for start in range(0, len(values) - 3, 4):
        pid, size = values[start], values[start + 2]
        if isinstance(pid, int) and 0 < pid < 2**22:
            found.append((pid, size if isinstance(size, int) and 0 <= size < 2**50 else None))
    return tuple(sorted(found, key=lambda item: (-(item[1] or 0), item[0])))
