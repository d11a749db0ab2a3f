"""A quick look at a placement: exact weights, caches and states, compute buffers by closed forms.

The search looks at many placements and only the one it picks needs the allocator's exact answer
(`footprint.MemoryModel`). Here the compute buffer of a GPU is the largest of the phases that dominate it, as measured
with llama.cpp's planner: the logits, a block's feed-forward, its attention or its recurrent mixer, each in floats per
token of the micro-batch, plus masks, copied weights and dequantized caches.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from willitrun_estimator import cache, overhead
from willitrun_estimator.device import Devices
from willitrun_estimator.expert_parts import Parts
from willitrun_estimator.monotone import largest
from willitrun_estimator.placement import Kind, Placement, Settings
from willitrun_estimator.plan import DeviceUse
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.stack import Stack

F32 = 4
PIPELINE_COPIES = 4
"""Copies of every input when llama.cpp pipelines over several GPUs (ggml-backend.cpp, GGML_SCHED_MAX_COPIES)."""
QUANTIZED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
LEAST_SHARE = 0.5
"""Of a closed form, what the allocator's exact answer falls below in one of a hundred layouts (700 of the catalog's
models, one and two GPUs)."""
SLACK_BYTES = (0, 48 << 20, 16 << 20, 4 << 20, 1 << 20)
"""What layouts of one kind may still differ by in a lenient look, after so many exact ones."""
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
        self.lenient = False
        """Whether nothing that may fit is passed over: what is found has to be looked at exactly."""
        self._looks: dict[Kind, int] = {}
        self._learned: dict[Kind, tuple[int, ...]] = {}
        """For kinds of layouts of which one was looked at exactly: the runtime of each device, and what was off."""
        self._stacks: dict[int, Stack] = {}
        self._buffers: dict[tuple[int, bool, bool, bool], Buffers] = {}
        self._least: dict[tuple[int, bool, bool, bool], Buffers] = {}

    def own(self, kind: Kind) -> tuple[int, ...]:
        """Return what each device that takes part has beside its span and its buffer; the host last."""
        known = self._learned.get(kind)
        if known is None:
            return (*self.runtime, 0)
        if self.lenient and self._looks[kind] < len(SLACK_BYTES):
            slack = SLACK_BYTES[self._looks[kind]]
            return (*[held - slack for held in known[:-1]], known[-1])
        return known

    @property
    def expert_parts(self) -> Sequence[Parts]:
        """The matrices of each block's routed experts, those that leave a GPU first at the front."""
        return self.prepared.expert_parts(self.quant)

    def stack(self, context_tokens: int) -> Stack:
        """Return the bytes of the blocks at a context."""
        known = self._stacks.get(context_tokens)
        if known is None:
            known = self._stacks[context_tokens] = self.prepared.stack(
                self.quant, self.settings, context_tokens, padded=self.padded
            )
        return known

    def buffers(self, context_tokens: int, units: int, moved: int, *, many: bool, scattered: bool = False) -> Buffers:
        """Return the compute buffers when so many units are on GPUs, several of which have some where `many`.

        A `lenient` look takes the least that the closed forms leave open, until a layout of the kind was looked at
        exactly.
        """
        key = context_tokens, units > self.blocks, moved > 0, many
        known = self._buffers.get(key)
        if known is None:
            known = self._buffers[key] = self._work_out(*key)
            self._least[key] = Buffers._make([*(round(LEAST_SHARE * size) for size in known[:-1]), known.host])
        kind: Kind = "scattered" if scattered else "front" if moved or units <= self.blocks else "whole"
        return self._least[key] if self.lenient and kind not in self._learned else known

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
        block = round(LEAST_SHARE * (max(F32 * min(ubatch, context_tokens) * self.widths.block, attention) + masks))
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
        on_host = placement.cpu_moe_layers or any(one.device is None for one in placement.overrides)
        # Tensor overrides switch pipelines off, and with them the copies of every input.
        many = len(taking) > 1 and not placement.overrides
        kind = placement.kind(self.blocks)
        buffers = self.buffers(context_tokens, units, int(on_host), many=many, scattered=kind == "scattered")
        own = self.own(kind)
        used = [0] * len(self.devices.gpus)
        first = self.blocks + 1 - units
        for device in taking:
            count = split[device]
            used[device] = stack.gpu_bytes(first, count, moved) + part(buffers, device, taking) + own[device]
            first += count
        host = stack.host_use(units, moved) + buffers.host + own[-1]
        if placement.overrides:
            return tuple(map(operator.add, (*used, host), placement.shifts(self.blocks, len(used))))
        return (*used, host)

    def correct(self, placement: Placement, context_tokens: int, exact: Sequence[int]) -> None:
        """Take the difference to the exact answer of one placement into all further ones of its kind."""
        kind = placement.kind(self.blocks)
        lenient, self.lenient = self.lenient, False
        own = self._learned.setdefault(kind, self.own(kind))
        quick = self.per_device_bytes(placement, context_tokens)
        split = placement.split or ((placement.gpu_layers,) if self.devices.gpus else ())
        self._learned[kind] = (
            *(
                held + (true - guess if units else 0)
                for held, true, guess, units in zip(own, exact, quick, split, strict=False)
            ),
            own[-1] + exact[-1] - quick[-1],
        )
        self._looks[kind] = self._looks.get(kind, 0) + 1
        self.lenient = lenient

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
        apart = placement.shifts(blocks, len(self.devices.gpus))
        for index, gpu in enumerate(self.devices.gpus):
            count = split[index]
            start, end = min(first, blocks), min(first + count, blocks)
            kv = sum((rows[end] - rows[start]) * cells for rows, cells in kinds)
            kv += paddings[end] - paddings[start] if paddings else 0
            state = states[end] - states[start]
            held = self.stack(context_tokens).gpu_bytes(first, count, moved) - kv - state + apart[index]
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
        held = self.stack(context_tokens).host_use(placement.gpu_layers, moved) - kv - state + apart[-1]
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
