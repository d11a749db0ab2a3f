"""What fills each device, as the segments of a stacked bar."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from willitrun_estimator.plan import Answer, DeviceUse, GpuFacts


class Segment(Struct, frozen=True, kw_only=True):
    """One part of a bar. `key` is stable: it picks the colour."""

    key: str
    label: str
    bytes: int


class Bar(Struct, frozen=True, kw_only=True):
    """One device: its segments, and where its memory ends."""

    name: str
    kind: str
    segments: tuple[Segment, ...]
    needed_bytes: int
    free_bytes: int
    """Free before loading."""
    taken_bytes: int
    """Held by others: total less free; 0 where the total is unknown (host memory)."""

    @property
    def capacity_bytes(self) -> int:
        """What the device has for everyone."""
        return self.free_bytes + self.taken_bytes

    @property
    def extent_bytes(self) -> int:
        """Length of the bar: the capacity, or more when the plan overflows it."""
        return max(self.capacity_bytes, self.taken_bytes + self.needed_bytes)


PARTS = (
    ("weights", "Weights"),
    ("kv_cache", "KV cache"),
    ("recurrent", "Recurrent state"),
    ("compute", "Compute buffers"),
    ("output", "Output buffer"),
    ("runtime", "Runtime"),
)


def bars(answer: Answer) -> tuple[Bar, ...]:
    """Return a bar per device the plan uses, empty when there is no plan."""
    return device_bars(answer.plan.devices, answer.machine.gpus) if answer.plan is not None else ()


def device_bars(devices: Sequence[DeviceUse], gpus: Sequence[GpuFacts]) -> tuple[Bar, ...]:
    """Return a bar per device in use, with what others hold where the machine's facts tell."""
    unmatched = list(gpus)
    found = []
    several = sum(use.kind == "gpu" for use in devices) > 1
    for use, short in zip(devices, device_names(devices), strict=True):
        if use.kind == "host" and use.total_bytes == 0:
            continue
        total = use.free_bytes
        if use.kind == "gpu":
            facts = next((gpu for gpu in unmatched if gpu.name == use.name), None)
            if facts is not None:
                unmatched.remove(facts)
                total = max(total, facts.memory_total_bytes)
        name = "Host memory" if use.kind == "host" else f"{short}: {use.name}" if several else use.name
        found.append(_bar(use, name=name, taken=total - use.free_bytes))
    return tuple(found)


def device_names(devices: Sequence[DeviceUse]) -> tuple[str, ...]:
    """Return short names in order: `GPU` or `GPU 0`, `GPU 1` …, `Host`."""
    several = sum(use.kind == "gpu" for use in devices) > 1
    names, index = [], 0
    for use in devices:
        if use.kind == "host":
            names.append("Host")
            continue
        names.append(f"GPU {index}" if several else "GPU")
        index += 1
    return tuple(names)


def _bar(use: DeviceUse, *, name: str, taken: int) -> Bar:
    segments = [Segment(key="taken", label="Taken by others", bytes=taken)]
    segments += [Segment(key=key, label=label, bytes=getattr(use, f"{key}_bytes")) for key, label in PARTS]
    segments.append(Segment(key="headroom", label="Free", bytes=max(0, use.free_bytes - use.total_bytes)))
    return Bar(
        name=name,
        kind=use.kind,
        segments=tuple(segment for segment in segments if segment.bytes > 0),
        needed_bytes=use.total_bytes,
        free_bytes=use.free_bytes,
        taken_bytes=taken,
    )
