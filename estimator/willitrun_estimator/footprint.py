"""What llama.cpp allocates on every device for one model, one placement and one context.

`MemoryModel` is built once per model, quantization and settings. After that a placement costs a few table look-ups:
weights, cache and state are differences of cumulative sums over blocks, compute buffers are linear between
powers of two of the context. `footprint` is the same answer as named parts for showing.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from willitrun_estimator import cache, overhead
from willitrun_estimator.cache_sums import CacheSums
from willitrun_estimator.compute import ComputeModel
from willitrun_estimator.compute.build import CURRENT, Build
from willitrun_estimator.plan import DeviceUse

if TYPE_CHECKING:
    from willitrun_estimator.device import Devices
    from willitrun_estimator.placement import Placement, Settings
    from willitrun_estimator.weights import WeightProfile


LOADED_TWICE = frozenset({"gemma3n", "gemma4"})
"""Architectures that ask for the tied head before the table: a CPU loads both as well (src/models/gemma4.cpp)."""


Parts = tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]
"""Weights, cache and state, planned buffers and their growth, of the GPUs in order and the host last."""


class MemoryModel:
    """Bytes per device as a function of placement and context, for fixed weights, devices and settings.

    `settings.context_tokens` is only a default: every method takes the context. All tuples have one entry per GPU in
    device order and the host last. Not thread-safe (it keeps what it has computed). `sums` and `compute` are parts that
    models of other devices may share: caches depend on spec and settings alone, compute buffers on number and back end
    of the GPUs beside.
    """

    def __init__(
        self,
        weights: WeightProfile,
        devices: Devices,
        settings: Settings,
        build: Build = CURRENT,
        *,
        sums: CacheSums | None = None,
        compute: ComputeModel | None = None,
    ) -> None:
        self.weights = weights
        self.devices = devices
        self.settings = settings
        self.compute = ComputeModel(weights, devices, settings, build) if compute is None else compute
        self.sums = CacheSums(weights.spec, settings) if sums is None else sums
        self._resident = weights.cumulative_resident_bytes
        self._experts = weights.cumulative_expert_bytes
        self._notes = [overhead.runtime_notes(gpu, weights, settings) for gpu in devices.gpus]
        self._runtime = [sum([amount for _, amount, _ in notes]) for notes in self._notes]
        self._output = cache.output_bytes(weights.spec, settings)
        self._beside = (*self._runtime, self._output)
        self._still = (0,) * (len(devices.gpus) + 1)
        self._host_weights = weights.embedding_bytes + weights.host_extra_bytes
        self._padded = any(gpu.backend in {"cuda", "rocm"} for gpu in devices.gpus)
        self._latest: tuple[Placement, int, Parts] | None = None

    def spans(self, placement: Placement) -> tuple[tuple[int, int], ...]:
        """Give the first and last-plus-one unit of each GPU; unit `block_count` is the output head."""
        units = len(self._resident)
        first = units - placement.gpu_layers
        split = placement.split or ((placement.gpu_layers,) if self.devices.gpus else ())
        spans = []
        for count in split:
            spans.append((first, first + count))
            first += count
        spans.extend((units, units) for _ in range(len(self.devices.gpus) - len(split)))
        return tuple(spans)

    def weights_bytes(self, placement: Placement) -> tuple[int, ...]:
        """Sum the weights on each GPU and on the host."""
        blocks = len(self._resident) - 1
        resident, experts = self._resident, self._experts
        moved = min(placement.cpu_moe_layers, blocks)
        out = []
        for first, last in self.spans(placement):
            end = min(last, blocks)
            start = min(first, blocks)
            held = resident[end] - resident[start] + experts[max(end, moved)] - experts[max(start, moved)]
            if first <= blocks < last:
                held += self.weights.output_bytes
            out.append(held)
        first = min(blocks + 1 - placement.gpu_layers, blocks)
        host = self._host_weights + resident[first] + experts[max(first, moved)]
        if not placement.gpu_layers:
            spec = self.weights.spec
            once = spec.tied_embeddings and spec.architecture not in LOADED_TWICE
            shared = self.weights.embedding_bytes if once else 0
            host += self.weights.output_bytes - shared
        if placement.overrides:
            return tuple(map(operator.add, (*out, host), placement.shifts(blocks, len(out))))
        return (*out, host)

    def cache_bytes(self, placement: Placement, context_tokens: int) -> tuple[tuple[int, int], ...]:
        """Give KV cache and recurrent state on each GPU and on the host."""
        blocks = len(self._resident) - 1
        kinds = self.sums.kinds(context_tokens)
        padding = self.sums.paddings(context_tokens) if self._padded else ()
        states = self.sums.states
        out = []
        kv_left = sum(rows[blocks] * cells for rows, cells in kinds)
        state_left = states[blocks]
        for first, last in self.spans(placement):
            if placement.kv_on_host:
                out.append((0, 0))
                continue
            start, end = min(first, blocks), min(last, blocks)
            kv = sum((rows[end] - rows[start]) * cells for rows, cells in kinds)
            state = states[end] - states[start]
            kv_left -= kv
            state_left -= state
            out.append((kv + padding[end] - padding[start] if padding else kv, state))
        return (*out, (kv_left, state_left))

    def _parts(self, placement: Placement, context_tokens: int) -> Parts:
        """Give weights, caches, planned buffers and what those grow by; kept for the latest placement, shown next."""
        latest = self._latest
        if latest is None or latest[0] is not placement or latest[1] != context_tokens:
            compute = self.compute.bytes(placement, context_tokens)
            growth = self.compute.growth(placement, context_tokens) if self.compute.grows else self._still
            parts = self.weights_bytes(placement), self.cache_bytes(placement, context_tokens), compute, growth
            latest = self._latest = placement, context_tokens, parts
        return latest[2]

    def per_device_bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Sum everything each device holds, context and workspaces of the GPU runtime included."""
        weights, caches, compute, growth = self._parts(placement, context_tokens)
        total = [
            held + kv + state + planned + beside
            for held, (kv, state), planned, beside in zip(weights, caches, compute, self._beside, strict=False)
        ]
        return tuple(total if growth is self._still else map(operator.add, total, growth))

    def safe_tokens(self, placement: Placement, limits: tuple[int, ...], max_tokens: int | None = None) -> int:
        """Find the largest context that keeps every device within its limit in bytes; 0 when none does.

        Limits are free memory minus the margin, GPUs in order and the host last. The answer is a multiple of the
        engine's cell padding, at most `max_tokens` (the model's maximum by default).
        """
        step = cache.CELL_PADDING
        top = max(1, (self.weights.spec.max_context_tokens if max_tokens is None else max_tokens) // step)

        def fits(count: int) -> bool:
            used = self.per_device_bytes(placement, count * step)
            return all(bytes_ <= limit for bytes_, limit in zip(used, limits, strict=True))

        if fits(top):
            return top * step
        low, high = 0, top
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * step

    def uses(self, placement: Placement, context_tokens: int) -> tuple[DeviceUse, ...]:
        """Give the same bytes as named parts: one `DeviceUse` per GPU, then the host."""
        weights, caches, compute, growth = self._parts(placement, context_tokens)
        uses = []
        for index, gpu in enumerate(self.devices.gpus):
            kv, state = caches[index]
            runtime = self._runtime[index] + growth[index]
            uses.append(
                DeviceUse(
                    name=gpu.name,
                    kind="gpu",
                    weights_bytes=weights[index],
                    kv_cache_bytes=kv,
                    recurrent_bytes=state,
                    compute_bytes=compute[index],
                    output_bytes=0,
                    runtime_bytes=runtime,
                    total_bytes=weights[index] + kv + state + compute[index] + runtime,
                    free_bytes=gpu.memory_free_bytes,
                    notes=(*self._notes[index], *grown(growth[index])),
                )
            )
        kv, state = caches[-1]
        uses.append(
            DeviceUse(
                name="host",
                kind="host",
                weights_bytes=weights[-1],
                kv_cache_bytes=kv,
                recurrent_bytes=state,
                compute_bytes=compute[-1],
                output_bytes=self._output,
                runtime_bytes=growth[-1],
                total_bytes=weights[-1] + kv + state + compute[-1] + self._output + growth[-1],
                free_bytes=self.devices.host.ram_available_bytes,
                notes=(
                    *overhead.host_notes(
                        self.settings,
                        checkpoint_bytes=self.sums.checkpoint_bytes,
                        repacked_bytes=overhead.repacked_bytes(self.weights, len(self.devices.gpus), self.settings),
                    ),
                    *grown(growth[-1]),
                ),
            )
        )
        return tuple(uses)


def grown(amount: int) -> tuple[overhead.Line, ...]:
    """Name what a compute buffer holds beyond what llama.cpp's planner says."""
    basis = "llama.cpp plans for an empty cache and full slots; it allocates anew when a batch needs more"
    return (("compute buffer, beyond its plan", amount, basis),) if amount else ()


def footprint(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    build: Build = CURRENT,
) -> tuple[DeviceUse, ...]:
    """Give what every device holds: the GPUs in order, then the host (see `MemoryModel` for many placements).

    `build` are the rules of the llama.cpp build (`compute.build.build_of`); the default is a current one.
    """
    return MemoryModel(weights, devices, settings, build).uses(placement, settings.context_tokens)
