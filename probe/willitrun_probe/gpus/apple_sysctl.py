"""Asks macOS about processor, memory and the GPU's budget. Runs in the Apple child.

A recording holds each sysctl as a file `/sysctl/NAME`, and Metal's budget as `/metal/recommendedMaxWorkingSetSize`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from willitrun_probe.roots import Roots

Emit = Callable[[dict[str, Any]], None]

NUMBERS = ("hw.memsize", "iogpu.wired_limit_mb", "hw.physicalcpu", "hw.logicalcpu", "hw.perflevel0.physicalcpu",
           "vm.page_free_count", "vm.page_speculative_count", "vm.page_purgeable_count", "hw.pagesize")  # fmt: skip
TEXTS = ("machdep.cpu.brand_string", "hw.model", "kern.osproductversion")


def read(roots: Roots, emit: Emit) -> None:
    """Emit one line with everything."""
    if roots.live:
        values: dict[str, Any] = _ask_system()
    else:
        values = {name: roots.integer(f"/sysctl/{name}") for name in NUMBERS}
        values |= {name: roots.line(f"/sysctl/{name}") for name in TEXTS}
        values["budget"] = roots.integer("/metal/recommendedMaxWorkingSetSize")
    emit({"kind": "device", "device": 0, **values})


def _ask_system() -> dict[str, Any]:
    import ctypes  # noqa: PLC0415 - only on macOS

    system = ctypes.CDLL(None)
    values: dict[str, Any] = {}
    for name in (*NUMBERS, *TEXTS):
        buffer = ctypes.create_string_buffer(256)
        size = ctypes.c_size_t(len(buffer))
        failed = system.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
        if failed:
            values[name] = None
        elif name in NUMBERS:
            values[name] = int.from_bytes(buffer.raw[: size.value], "little")
        else:
            values[name] = buffer.value.decode("utf-8", "replace")
    values["budget"] = _metal_budget()
    return values


def _metal_budget() -> int | None:
    """Return Metal's recommendedMaxWorkingSetSize of the default device (developer.apple.com, MTLDevice)."""
    import ctypes  # noqa: PLC0415 - only on macOS

    try:
        metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
        objc = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
        device = metal.MTLCreateSystemDefaultDevice()
        objc.sel_registerName.restype = ctypes.c_void_p
        selector = objc.sel_registerName(b"recommendedMaxWorkingSetSize")
        send = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p)(("objc_msgSend", objc))
        return int(send(device, selector)) if device else None
    except (OSError, AttributeError):
        return None
