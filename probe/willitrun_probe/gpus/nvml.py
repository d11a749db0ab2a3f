"""Asks NVML everything the probe wants to know. Runs in the NVIDIA child; getters only, no GPU context.

Every answer is keyed by the C function (see `spec`): a list of values, or the return code. Interpreting them is
`nvidia`'s work. Function semantics: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from willitrun_probe.gpus.spec import ABSENT, Answer, Value

Emit = Callable[[dict[str, Any]], None]

NOT_SUPPORTED, NOT_FOUND, SIZE, LIBRARY_MISSING, FUNCTION_MISSING = 3, 6, 7, 12, 13
GARBLED = -1
"""The binding could not decode what the library wrote (an invalid string, say)."""
BINDINGS_MISSING = -2
MOST_GPUS = 256
MOST_LINKS = 18
"""NVLinks per GPU up to Blackwell (nvml.h, NVML_NVLINK_MAX_LINKS of the drivers that have them)."""

_PLACES = (
    # where the library lies outside the loader's path: WSL (rust-nvml #51), NixOS, RPM driver packages, GKE, Jetson
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/usr/lib/wsl/drivers/*/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
    "/usr/lib64/nvidia/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/nvidia/libnvidia-ml.so.1",
)
_SYSTEM = ("nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlSystemGetCudaDriverVersion_v2",
           "nvmlSystemGetConfComputeState")  # fmt: skip
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses",
              "nvmlDeviceGetMPSComputeRunningProcesses")  # fmt: skip
_IDENTITY = ("nvmlDeviceGetName", "nvmlDeviceGetUUID")
_MEMORY = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo")
_GPU = (
    "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetMigMode", "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetMaxClockInfo:2", "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetAddressingMode", "nvmlDeviceGetNumaNodeId", "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkGeneration", "nvmlDeviceGetGpuMaxPcieLinkGeneration", "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkWidth", "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetPowerManagementDefaultLimit", "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTotalEccErrors:1:0", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetComputeMode", "nvmlDeviceGetDisplayActive", "nvmlDeviceGetVirtualizationMode",
)  # fmt: skip
_SLICE = ("nvmlDeviceGetAttributes_v2", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId")
_OLD_NAMES = {
    "nvmlDeviceGetPciInfo_v3": "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetAttributes_v2": "nvmlDeviceGetAttributes",
}
_LONG_PROCESS_RECORD = ((535, 43), (535, 86))
"""Drivers 535.43 to 535.86 fill a 32-byte record in the `_v3` process call; 535.98 and later the 24-byte one again
(nvitop #79, #88; gpustat #161)."""


class Library(Protocol):
    """NVML, real or replayed."""

    def start(self) -> int:
        """Initialise and return the code."""

    def system(self, key: str) -> Answer:
        """Answer a question about the system."""

    def count(self) -> Answer:
        """Return the number of devices."""

    def open(self, index: int) -> int:
        """Get a device's handle and return the code."""

    def ask(self, target: str, key: str) -> Answer:
        """Answer a question about `gpuN` or `gpuN/migM`."""

    def open_slice(self, index: int, slot: int) -> int:
        """Get a MIG instance's handle and return the code."""


def read(
    library: str | None,
    emit: Emit,
    *,
    done: frozenset[int] = frozenset(),
    avoid: frozenset[int] = frozenset(),
) -> None:
    """Ask for everything and emit one line for the library, one per device and one for the pairs.

    Devices in `done` are only opened again (for the pairs), those in `avoid` are not touched.
    """
    if library == ABSENT:
        emit({"kind": "library", "start": LIBRARY_MISSING, "count": LIBRARY_MISSING, "answers": {}})
        return
    nvml: Library
    if library is not None and library.endswith(".spec"):
        nvml = _Replayed(library)
        origin = {"path": library, "bindings": "replay"}
    else:
        bound = _Bound(library)
        nvml, origin = bound, bound.origin
    code = nvml.start()
    system = {} if code else {key: nvml.system(key) for key in _SYSTEM}
    count = code or nvml.count()
    emit({"kind": "library", "start": code, "count": count, "answers": system, **origin})
    if isinstance(count, int):
        return
    number = min(max(0, count[0]), MOST_GPUS) if count and isinstance(count[0], int) else 0
    opened = [
        index
        for index in range(number)
        if index not in avoid and (nvml.open(index) == 0 if index in done else _device(nvml, index, emit))
    ]
    emit({"kind": "pairs", "answers": {f"gpu{i}": dict(_pairs(nvml, i, opened)) for i in opened}})


def _device(nvml: Library, index: int, emit: Emit) -> bool:
    """Emit one device with its MIG instances; False when it has no handle."""
    emit({"kind": "at", "device": index})
    code = nvml.open(index)
    answers: dict[str, Answer] = {}
    slices: list[dict[str, Any]] = []
    if code == 0:
        target = f"gpu{index}"
        for key in (*_IDENTITY, *_MEMORY, *_GPU):
            answers[key] = nvml.ask(target, key)
        answers |= _processes(nvml, target)
        answers |= dict(_links(nvml, target))
        mode = answers["nvmlDeviceGetMigMode"]
        if isinstance(mode, list) and mode[:1] == [1]:
            answers["nvmlDeviceGetMaxMigDeviceCount"] = most = nvml.ask(target, "nvmlDeviceGetMaxMigDeviceCount")
            slots = most[0] if isinstance(most, list) and most and isinstance(most[0], int) else 0
            slices = [
                {"slot": slot, "answers": _slice(nvml, f"{target}/mig{slot}")}
                for slot in range(min(max(0, slots), 16))
                if nvml.open_slice(index, slot) == 0
            ]
    emit({"kind": "device", "device": index, "open": code, "answers": answers, "slices": slices})
    return code == 0


def _slice(nvml: Library, target: str) -> dict[str, Answer]:
    answers = {key: nvml.ask(target, key) for key in (*_IDENTITY, *_MEMORY, *_SLICE)}
    return answers | _processes(nvml, target)


def _processes(nvml: Library, target: str) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for name in _PROCESSES:
        found[f"{name}_v3"] = answer = nvml.ask(target, f"{name}_v3")
        if answer == FUNCTION_MISSING:
            found[f"{name}_v2"] = nvml.ask(target, f"{name}_v2")
    return found


def _links(nvml: Library, target: str) -> Iterable[tuple[str, Answer]]:
    for link in range(MOST_LINKS):
        state = nvml.ask(target, f"nvmlDeviceGetNvLinkState:{link}")
        yield f"nvmlDeviceGetNvLinkState:{link}", state
        if not isinstance(state, list):
            return
        if state[:1] == [1]:
            for name in ("Version", "RemoteDeviceType"):
                yield f"nvmlDeviceGetNvLink{name}:{link}", nvml.ask(target, f"nvmlDeviceGetNvLink{name}:{link}")
            key = f"nvmlDeviceGetNvLinkRemotePciInfo_v2:{link}"
            yield key, nvml.ask(target, key)


def _pairs(nvml: Library, index: int, opened: list[int]) -> Iterable[tuple[str, Answer]]:
    for other in opened:
        if other > index:
            for key in (
                f"nvmlDeviceGetTopologyCommonAncestor:gpu{other}",
                f"nvmlDeviceGetP2PStatus:gpu{other}:0",
            ):
                yield key, nvml.ask(f"gpu{index}", key)


class _Replayed:
    """NVML from a spec file."""

    def __init__(self, path: str) -> None:
        from willitrun_probe.gpus.replay import Replay  # noqa: PLC0415 - only for recordings

        self._replay = Replay(path, missing=NOT_SUPPORTED)

    def start(self) -> int:
        return _code(self._replay.answer("sys", "nvmlInitWithFlags", []))

    def system(self, key: str) -> Answer:
        return self._replay.answer("sys", key)

    def count(self) -> Answer:
        return self._replay.answer("sys", "nvmlDeviceGetCount_v2")

    def open(self, index: int) -> int:
        return _code(self._replay.answer(f"gpu{index}", "nvmlDeviceGetHandleByIndex_v2", []))

    def ask(self, target: str, key: str) -> Answer:
        return self._replay.answer(target, key)

    def open_slice(self, index: int, slot: int) -> int:
        target = f"gpu{index}/mig{slot}"
        if not self._replay.has(target, "nvmlDeviceGetUUID"):
            return NOT_FOUND
        return _code(self._replay.answer(target, "nvmlDeviceGetMigDeviceHandleByIndex", []))


class _Bound:
    """NVML through the unmodified bindings of nvidia-ml-py."""

    def __init__(self, path: str | None) -> None:
        self._handles: dict[str, Any] = {}
        self._long_records = False
        self.origin: dict[str, str] = {"path": path or "", "bindings": "nvidia-ml-py"}
        try:
            import pynvml  # noqa: PLC0415, TID251 - this is the NVIDIA child
        except Exception as error:  # noqa: BLE001 - a foreign package may fail in any way
            self._failed = BINDINGS_MISSING
            self.origin["bindings"] = f"{type(error).__name__}: {error}"[:200]
            return
        self._nvml = pynvml
        self._failed = 0
        if str(pynvml.__file__).endswith("__init__.py"):
            self.origin["bindings"] = "shadowed"
        self._load(path)

    def _load(self, path: str | None) -> None:
        import ctypes  # noqa: PLC0415 - the bindings have it loaded

        candidates = [path] if path is not None else ["libnvidia-ml.so.1"]
        if path is None:
            candidates += [found for place in _PLACES for found in sorted(glob.glob(place))]  # noqa: PTH207
        for candidate in candidates:
            try:
                self._nvml.nvmlLib = ctypes.CDLL(candidate)
            except OSError as error:
                self.origin["load_error"] = str(error)[:200]
                continue
            self.origin["path"] = candidate
            self.origin.pop("load_error", None)
            return
        self._failed = LIBRARY_MISSING

    def start(self) -> int:
        if self._failed:
            return self._failed
        code = _code(self._call(lambda: self._nvml.nvmlInitWithFlags(0)))
        if code == 0:
            version = self.system("nvmlSystemGetDriverVersion")
            self._long_records = isinstance(version, list) and _long_records(str(version[0]))
        return code

    def system(self, key: str) -> Answer:
        return self._call(getattr(self._nvml, key, _missing))

    def count(self) -> Answer:
        return self._call(self._nvml.nvmlDeviceGetCount)

    def open(self, index: int) -> int:
        def take() -> list[Value]:
            self._handles[f"gpu{index}"] = self._nvml.nvmlDeviceGetHandleByIndex(index)
            return []

        return _code(self._call(take))

    def open_slice(self, index: int, slot: int) -> int:
        def take() -> list[Value]:
            handle = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handles[f"gpu{index}"], slot)
            self._handles[f"gpu{index}/mig{slot}"] = handle
            return []

        return _code(self._call(take))

    def ask(self, target: str, key: str) -> Answer:
        name, *arguments = key.split(":")
        handle = self._handles[target]
        if name == "nvmlDeviceGetMemoryInfo_v2":
            return self._call(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2))
        if name.endswith("Processes_v3") and self._long_records:
            return self._long_processes(handle, name)
        bare = _OLD_NAMES.get(name, name.removesuffix("_v2") if "RemotePciInfo" in name else name)
        given = [self._handles[text] if text.startswith("gpu") else int(text) for text in arguments]
        return self._call(lambda: getattr(self._nvml, bare)(handle, *given))

    def _long_processes(self, handle: Any, name: str) -> Answer:
        """Read the 32-byte process records of the early 535 drivers."""
        import ctypes  # noqa: PLC0415 - only with those drivers

        class Record(ctypes.Structure):
            _fields_ = (
                ("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("instance", ctypes.c_uint),
                ("slice", ctypes.c_uint), ("protected", ctypes.c_ulonglong),
            )  # fmt: skip

        def take() -> list[Value]:
            function = getattr(self._nvml.nvmlLib, name)
            count = ctypes.c_uint(256)
            records = (Record * count.value)()
            code = function(handle, ctypes.byref(count), records)
            if code:
                raise self._nvml.NVMLError(code)
            return [value for r in records[: count.value] for value in (r.pid, r.used, r.instance, r.slice)]

        return self._call(take)

    def _call(self, call: Callable[[], Any]) -> Answer:
        try:
            return _flat(call())
        except self._nvml.NVMLError as error:
            code = error.value
            return code if isinstance(code, int) and code != 0 else GARBLED
        except AttributeError:
            return FUNCTION_MISSING
        except Exception:  # noqa: BLE001 - a string that does not decode, a struct of another shape
            return GARBLED


def _missing() -> None:
    raise AttributeError


def _code(answer: Answer) -> int:
    return answer if isinstance(answer, int) else 0


def _long_records(version: str) -> bool:
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):  # noqa: PLR2004 - branch and release
        return False
    low, high = _LONG_PROCESS_RECORD
    return low <= (int(parts[0]), int(parts[1])) <= high


def _flat(value: Any) -> list[Value]:
    """Lay an answer of the bindings out as values in the order of the C declaration."""
    if value is None:
        return []
    if isinstance(value, bytes | str | int):
        return [value.decode() if isinstance(value, bytes) else value]
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    if hasattr(value, "busId"):
        return [*_flat(value.busId), value.pciDeviceId, value.pciSubSystemId]
    if hasattr(value, "usedGpuMemory"):
        used = 2**64 - 1 if value.usedGpuMemory is None else value.usedGpuMemory
        return [
            value.pid,
            used,
            getattr(value, "gpuInstanceId", 2**32 - 1),
            getattr(value, "computeInstanceId", 2**32 - 1),
        ]
    return [item for name, *_ in value._fields_ if name != "version" for item in _flat(getattr(value, name))]
