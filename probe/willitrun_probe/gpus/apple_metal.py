"""Asks macOS about the GPU and its budget. Runs in the Apple child.

A recording holds Metal's budget as the file `/metal/recommendedMaxWorkingSetSize`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from willitrun_probe.host.darwin import number, text
from willitrun_probe.roots import Roots

Emit = Callable[[dict[str, Any]], None]

NAMES = ("machdep.cpu.brand_string", "hw.model", "kern.osproductversion")


def read(roots: Roots, emit: Emit) -> None:
    """Emit one line with everything."""
    values: dict[str, Any] = {name: text(roots, name) for name in NAMES}
    values |= {name: number(roots, name) for name in ("hw.memsize", "iogpu.wired_limit_mb")}
    values["budget"] = _metal_budget() if roots.live else roots.integer("/metal/recommendedMaxWorkingSetSize")
    emit({"kind": "device", "device": 0, **values})


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
