"""Asks AMD SMI what sysfs does not tell. Runs in the AMD child, after the files have been read and sent.

Bindings and library of different releases corrupt memory silently (a struct grew from 288 to 584 bytes between
6.3 and 7.0), so nothing is asked before their versions are known to fit.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from willitrun_probe.gpus.spec import ABSENT, Answer, Value

Emit = Callable[[dict[str, Any]], None]

NOT_SUPPORTED = 2
GARBLED = -1
MOST_GPUS = 256
_ABSENT = 2**32 - 1
FITTING = {
    # bindings release: (lowest, highest) library version whose structs they lay out (AMD SMI changelogs by release,
    # https://rocm.docs.amd.com/projects/amdsmi/en/latest/reference/changelog.html)
    "6.4": ((25, 3), (25, 5)),
    "7.0": ((26, 0), (26, 0)),
    "7.1": ((26, 1), (26, 2)),
    "7.2": ((26, 2), (26, 2)),
}
_OWN_COPIES = (
    # where ROCm installs bindings that match its library (ROCm/rocm-systems #11452, TheRock #3054)
    "/opt/rocm/share/amd_smi",
    "/opt/rocm-*/share/amd_smi",
    "/opt/rocm/core-*/share/amd_smi",
)
FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    # function: (key of the bindings' answer, kind), in the order of the C struct
    "amdsmi_get_gpu_asic_info": (
        ("market_name", "text"), ("vendor_id", "number"), ("vendor_name", "text"), ("subvendor_id", "number"),
        ("device_id", "number"), ("rev_id", "number"), ("asic_serial", "text"), ("oam_id", "number"),
        ("num_compute_units", "number"), ("target_graphics_version", "number"),
    ),
    "amdsmi_get_gpu_vram_info": (
        ("vram_type", "number"), ("vram_vendor", "text"), ("vram_size", "number"), ("vram_bit_width", "number"),
        ("vram_max_bandwidth", "number"),
    ),
    "amdsmi_get_gpu_vram_usage": (("vram_total", "number"), ("vram_used", "number")),
    "amdsmi_get_power_cap_info": (
        ("power_cap", "number"), ("default_power_cap", "number"), ("dpm_cap", "number"), ("min_power_cap", "number"),
        ("max_power_cap", "number"),
    ),
    "amdsmi_get_gpu_total_ecc_count": (
        ("correctable_count", "number"), ("uncorrectable_count", "number"), ("deferred_count", "number"),
    ),
}  # fmt: skip
_ADDRESS, _PROCESSES = "amdsmi_get_gpu_device_bdf", "amdsmi_get_gpu_process_list"


def read(library: str | None, emit: Emit) -> None:
    """Emit one line with the state of the library and one per device; nothing more when the versions do not fit."""
    if library == ABSENT:
        emit({"kind": "smi", "state": "absent", "missing": True, "reason": "the library is not installed"})
        return
    if library is not None and library.endswith(".spec"):
        _replay(library, emit)
        return
    binding, origin = _load(library)
    if binding is None:
        emit({"kind": "smi", "state": "absent", **origin})
        return
    version = _version(binding)
    origin |= {"library": version, "bindings": str(getattr(binding, "__version__", ""))}
    if not fits(origin["bindings"], version) and not origin.get("own"):
        emit({"kind": "smi", "state": "incompatible", **origin})
        return
    try:
        binding.amdsmi_init()
        handles = binding.amdsmi_get_processor_handles()
    except Exception as error:  # noqa: BLE001 - a foreign package may fail in any way
        emit({"kind": "smi", "state": "failed", "code": _code(error), **origin})
        return
    emit({"kind": "smi", "state": "started", **origin})
    for index, handle in enumerate(handles[:MOST_GPUS]):
        answers: dict[str, Answer] = {name: _ask(binding, name, handle) for name in (_ADDRESS, *FIELDS, _PROCESSES)}
        emit({"kind": "smi-device", "index": index, "answers": answers})


def fits(bindings: str, library: list[int] | None) -> bool:
    """Say whether the bindings lay structs out as the library does."""
    allowed = FITTING.get(".".join(bindings.split(".")[:2]))
    return library is not None and allowed is not None and allowed[0] <= tuple(library[:2]) <= allowed[1]


def _replay(path: str, emit: Emit) -> None:
    from willitrun_probe.gpus.replay import Replay  # noqa: PLC0415 - only for recordings

    replay = Replay(path, missing=NOT_SUPPORTED)
    version = replay.answer("sys", "amdsmi_get_lib_version", [26, 0, 0])
    library = [value for value in version if isinstance(value, int)] if isinstance(version, list) else None
    bindings = replay.answer("sys", "bindings", ["7.0.2"])
    origin = {"library": library, "bindings": str(bindings[0]) if isinstance(bindings, list) and bindings else ""}
    if not fits(str(origin["bindings"]), library):
        emit({"kind": "smi", "state": "incompatible", **origin})
        return
    start = replay.answer("sys", "amdsmi_init", [])
    count = replay.answer("sys", "gpu_count", [0])
    if isinstance(start, int) or isinstance(count, int):
        code = start if isinstance(start, int) else count
        emit({"kind": "smi", "state": "failed", "code": code, **origin})
        return
    emit({"kind": "smi", "state": "started", **origin})
    number = count[0] if count and isinstance(count[0], int) else 0
    for index in range(min(max(0, number), MOST_GPUS)):
        names = (_ADDRESS, *FIELDS, _PROCESSES)
        emit({"kind": "smi-device", "index": index, "answers": {n: replay.answer(f"gpu{index}", n) for n in names}})


def _load(library: str | None) -> tuple[Any, dict[str, Any]]:
    """Import the bindings: those that ROCm installed beside its library first."""
    origin: dict[str, Any] = {}
    if library is not None:
        _inject(library)
        origin["path"] = library
    else:
        own = next((f for place in _OWN_COPIES for f in sorted(glob.glob(place), reverse=True)), None)  # noqa: PTH207
        if own is not None and Path(own, "amdsmi", "__init__.py").is_file():
            sys.path.insert(0, own)
            origin["own"] = True
    try:
        import amdsmi  # noqa: PLC0415, TID251 - this is the AMD child
    except Exception as error:  # noqa: BLE001 - without its library the import ends in a KeyError
        missing = isinstance(error, ImportError | KeyError)
        return None, {**origin, "bindings": "", "missing": missing, "reason": f"{type(error).__name__}: {error}"[:200]}
    return amdsmi, origin


def _inject(library: str) -> None:
    """Make the bindings find a given library: they look below ROCM_HOME, later releases at AMDSMI_LIB_OVERRIDE."""
    os.environ["AMDSMI_LIB_OVERRIDE"] = library
    path = Path(library).resolve()
    if path.parent.name != "lib" or path.name != "libamd_smi.so":
        import tempfile  # noqa: PLC0415 - only for a library in an unusual place

        home = Path(tempfile.mkdtemp(prefix="willitrun-amdsmi-"))
        (home / "lib").mkdir()
        (home / "lib" / "libamd_smi.so").symlink_to(path)
    else:
        home = path.parent.parent
    os.environ["ROCM_HOME"] = os.environ["ROCM_PATH"] = str(home)


def _version(binding: Any) -> list[int] | None:
    try:
        told = binding.amdsmi_get_lib_version()
        return [int(told[name]) for name in ("major", "minor", "release")]
    except Exception:  # noqa: BLE001 - whatever it is, the version is not known
        return None


def _ask(binding: Any, name: str, handle: Any) -> Answer:
    try:
        told = getattr(binding, name)(handle)
    except Exception as error:  # noqa: BLE001 - told as a code
        return _code(error)
    if name == _ADDRESS:
        return [str(told)]
    if name == _PROCESSES:
        return [value for process in told for value in _process(process)]
    return [_value(told.get(key), kind) for key, kind in FIELDS[name]]


def _process(process: Any) -> tuple[Value, ...]:
    usage = process.get("memory_usage", {})
    name = str(process.get("name", ""))
    return int(process.get("pid", 0)), name, int(usage.get("vram_mem", 0)), int(usage.get("gtt_mem", 0))


def _value(value: Any, kind: str) -> Value:
    """Bring a value of the bindings back to what the C struct held: they turn numbers into texts of several forms."""
    if kind == "text":
        return "" if value in (None, "N/A") else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).removeprefix("gfx").removeprefix("0x")
    try:
        return int(text, 16)
    except ValueError:
        return _ABSENT


def _code(error: Exception) -> int:
    code = getattr(error, "err_code", None)
    return code if isinstance(code, int) and code != 0 else GARBLED
