"""A quick look at a placement: exact weights, caches and states, compute buffers by closed forms.

The search looks at many placements and only the one it picks needs the allocator's exact answer
(`footprint.MemoryModel`). Here the compute buffer of a GPU is the largest of the phases that dominate it, as measured
with llama.cpp's planner: the logits, a block's feed-forward, its attention or its recurrent mixer, each in floats per
token of the micro-batch, plus masks, copied weights and dequantized caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from willitrun_estimator import cache, overhead
from willitrun_estimator.device import Devices
from willitrun_estimator.layout import largest
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.plan import DeviceUse
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.stack import Stack

F32 = 4
PIPELINE_COPIES = 4
"""Copies of every input when llama.cpp pipelines over several GPUs (ggml-backend.cpp, GGML_SCHED_MAX_COPIES)."""
QUANTIZED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
ROUNDING = 1 << 20
"""Alignment and small inputs, per device."""


class Buffers(NamedTuple):
    """Compute buffers by the part a GPU has in a layout: the only one, the first, one between, the last; the host's."""

    only: int
    first: int
    between: int
    last: int
    host: int


class QuickMemory:
    """Bytes per device for any placement, in a few microseconds; the GPUs in order, then the host."""

    def __init__(self, prepared: Prepared, quant: str, devices: Devices, settings: Settings) -> None:
        spec = prepared.spec
        weights = prepared.weights(quant)
        self.prepared, self.weights, self.devices, self.settings = prepared, weights, devices, settings
        self.quant = quant
        self.widths = prepared.widths
        self.vocab, self.hidden = spec.vocab_size, spec.hidden_size
        self.rows = settings.parallel if settings.logit_rows is None else settings.logit_rows
        self.quantized = settings.kv_type_k in QUANTIZED or settings.kv_type_v in QUANTIZED
        self.padded = any(gpu.backend in {"cuda", "rocm"} for gpu in devices.gpus)
        self.block_tensor, self.expert_tensor = prepared.largest_tensors(quant)
        self.blocks = spec.block_count
        alike = {(gpu.backend, gpu.multiprocessors): gpu for gpu in devices.gpus}
        held = {key: overhead.runtime_bytes(gpu, weights, settings) for key, gpu in alike.items()}
        self.runtime = tuple([held[gpu.backend, gpu.multiprocessors] for gpu in devices.gpus])
        self.own: tuple[int, ...] = (*self.runtime, 0)
        """What each device that takes part has beside its span and its buffer: the runtime, and what was learned."""
        self._stacks: dict[int, Stack] = {}
        self._buffers: dict[tuple[int, bool, bool, bool], Buffers] = {}

    def stack(self, context_tokens: int) -> Stack:
        """Return the bytes of the blocks at a context."""
        known = self._stacks.get(context_tokens)
        if known is None:
            known = self._stacks[context_tokens] = self.prepared.stack(
                self.quant, self.settings, context_tokens, padded=self.padded
            )
        return known

    def buffers(self, context_tokens: int, units: int, moved: int, *, many: bool) -> Buffers:
        """Return the compute buffers when so many units are on GPUs, several of which have some where `many`."""
        key = context_tokens, units > self.blocks, moved > 0, many
        known = self._buffers.get(key)
        if known is None:
            known = self._buffers[key] = self._work_out(*key)
        return known

    def _work_out(self, context_tokens: int, all_units: bool, moved: bool, many: bool) -> Buffers:
        tokens = min(self.settings.ubatch, context_tokens)
        masks, attention = self.terms(context_tokens, self.settings.ubatch)
        whole = all_units and not moved
        copies = PIPELINE_COPIES if whole and many else 1
        phase = max(F32 * tokens * self.widths.block, attention)
        copied = 0
        if self.settings.op_offload and not whole:
            copied = self.expert_tensor if moved else max(self.block_tensor, self.expert_tensor)
        logits = F32 * min(tokens, self.rows) * (self.vocab + self.hidden)
        # Every stage of a pipeline keeps its copies of the hidden state it is handed, later ones of what they hand on.
        handed = copies * F32 * tokens * self.hidden if copies > 1 else 0
        held = phase + copies * masks
        output = F32 * self.rows * self.vocab
        if whole:
            host = copies * (masks + F32 * tokens * self.hidden) + F32 * tokens * self.hidden + output
        else:
            host = phase + masks + output
        return Buffers(
            only=max(held + copied, logits) + ROUNDING + handed,
            first=held + copied + ROUNDING + handed,
            between=held + ROUNDING + 2 * handed,
            last=max(held, logits) + ROUNDING + 2 * handed,
            host=host,
        )

    def least_compute(self, context_tokens: int, ubatch: int) -> tuple[int, int]:
        """Return the least compute buffer of a GPU with a block, and what copies add as soon as weights stay behind."""
        masks, attention = self.terms(context_tokens, ubatch)
        block = max(F32 * min(ubatch, context_tokens) * self.widths.block, attention) + masks
        tensors = [size for size in (self.block_tensor, self.expert_tensor) if size]
        return block, min(tensors, default=0) if self.settings.op_offload else 0

    def terms(self, context_tokens: int, ubatch: int) -> tuple[int, int]:
        """Return the bytes of one set of masks, and of what attention needs beside them."""
        full, _ = cache.stream_cells(self.settings, context_tokens)
        u = min(ubatch, context_tokens)
        cell = 2 if self.settings.flash_attention else 4
        masks = cell * u * full
        if self.widths.window is not None:
            masks += cell * u * cache.window_cells(self.widths.window, self.settings, full)
        attention = 0
        if not self.settings.flash_attention:
            attention = F32 * u * full * self.widths.heads
        elif self.quantized:
            attention = 2 * full * self.widths.scratch_elements + F32 * u * self.widths.attention
        return masks, attention

    def per_device_bytes(self, placement: Placement, context_tokens: int, /) -> tuple[int, ...]:
        """Return bytes per GPU, the runtime's own included, then the host's."""
        stack = self.stack(context_tokens)
        units, moved = placement.gpu_layers, min(placement.cpu_moe_layers, self.blocks)
        split = placement.split or ((units,) if self.devices.gpus else ())
        taking = [device for device, count in enumerate(split) if count]
        buffers = self.buffers(context_tokens, units, placement.cpu_moe_layers, many=len(taking) > 1)
        used = [0] * len(self.devices.gpus)
        first = self.blocks + 1 - units
        for device in taking:
            count = split[device]
            used[device] = stack.gpu_bytes(first, count, moved) + part(buffers, device, taking) + self.own[device]
            first += count
        return (*used, stack.host_use(units, moved) + buffers.host + self.own[-1])

    def correct(self, placement: Placement, context_tokens: int, exact: Sequence[int]) -> None:
        """Take the difference to the exact answer of one placement into all further ones."""
        quick = self.per_device_bytes(placement, context_tokens)
        split = placement.split or ((placement.gpu_layers,) if self.devices.gpus else ())
        self.own = (
            *(
                own + (true - guess if units else 0)
                for own, true, guess, units in zip(self.own, exact, quick, split, strict=False)
            ),
            self.own[-1] + exact[-1] - quick[-1],
        )

    def safe_tokens(self, placement: Placement, limits: tuple[int, ...], most_tokens: int) -> int:
        """Return the largest context, in whole cells, that keeps every device within its limit; 0 when none does."""

        def fits(count: int) -> bool:
            used = self.per_device_bytes(placement, count * cache.CELL_PADDING)
            return all(use <= limit for use, limit in zip(used, limits, strict=True))

        count = largest(1, max(1, most_tokens // cache.CELL_PADDING), fits)
        return 0 if count is None else count * cache.CELL_PADDING

    def uses(self, placement: Placement, context_tokens: int) -> tuple[DeviceUse, ...]:
        """Return the same bytes as named parts: the GPUs in order, then the host."""
        totals = self.per_device_bytes(placement, context_tokens)
        sums, weights = self.prepared.sums(self.settings), self.weights
        kinds, states = sums.kinds(context_tokens), sums.states
        paddings = sums.paddings(context_tokens) if self.padded else ()
        blocks, moved = self.blocks, min(placement.cpu_moe_layers, self.blocks)
        out = []
        first = blocks + 1 - placement.gpu_layers
        split = placement.split or ((placement.gpu_layers,) if self.devices.gpus else ())
        for index, gpu in enumerate(self.devices.gpus):
            count = split[index]
            start, end = min(first, blocks), min(first + count, blocks)
            kv = sum((rows[end] - rows[start]) * cells for rows, cells in kinds)
            kv += paddings[end] - paddings[start] if paddings else 0
            state = states[end] - states[start]
            held = self.stack(context_tokens).gpu_bytes(first, count, moved) - kv - state
            runtime = self.runtime[index] if count else 0
            out.append(
                DeviceUse(
                    name=gpu.name, kind="gpu", weights_bytes=held, kv_cache_bytes=kv, recurrent_bytes=state,
                    compute_bytes=totals[index] - held - kv - state - runtime, output_bytes=0, runtime_bytes=runtime,
                    total_bytes=totals[index], free_bytes=gpu.memory_free_bytes,
                )
            )  # fmt: skip
            first += count
        front = min(blocks + 1 - placement.gpu_layers, blocks)
        kv, state = sum(rows[front] * cells for rows, cells in kinds), states[front]
        held = self.stack(context_tokens).host_use(placement.gpu_layers, moved) - kv - state
        output = cache.output_bytes(weights.spec, self.settings)
        out.append(
            DeviceUse(
                name="host", kind="host", weights_bytes=held, kv_cache_bytes=kv, recurrent_bytes=state,
                compute_bytes=totals[-1] - held - kv - state - output, output_bytes=output, runtime_bytes=0,
                total_bytes=totals[-1], free_bytes=self.devices.host.ram_available_bytes,
            )
        )  # fmt: skip
        return tuple(out)


def part(buffers: Buffers, device: int, taking: Sequence[int]) -> int:
    """Return the compute buffer of a GPU among those that take part."""
    if device != taking[0]:
        return buffers.last if device == taking[-1] else buffers.between
    return buffers.only if len(taking) == 1 else buffers.first
