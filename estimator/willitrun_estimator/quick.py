"""A quick look at a placement: exact weights, caches and states, compute buffers by closed forms.

The search looks at thousands of placements and only the one it picks needs the allocator's exact answer
(`footprint.MemoryModel`). Here the compute buffer of a GPU is the largest of the phases that dominate it, as measured
with llama.cpp's planner: the logits, a block's feed-forward, its attention or its recurrent mixer, each in floats per
token of the micro-batch, plus masks, copied weights and dequantized caches.
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Attention, Dense, Layer, Mixer, Mla, Moe, Recurrent
from willitrun_estimator import cache, overhead
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.layout import largest
from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import DeviceUse

F32 = 4
PIPELINE_COPIES = 4
"""Copies of every input when llama.cpp pipelines over several GPUs (ggml-backend.cpp, GGML_SCHED_MAX_COPIES)."""
QUANTIZED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
ROUNDING = 1 << 20
"""Alignment and small inputs, per device."""


class Widths(Struct, frozen=True):
    """Floats per token that the widest phase of a model's blocks holds, and what depends on the context."""

    block: int
    attention: int
    """Of the attention phase beside its masks, where the cache is dequantized into the buffer."""
    scratch_elements: int
    """Elements of one token in one layer's K and V, dequantized to f16."""
    heads: int
    window: int | None


def widths(layers: tuple[Layer, ...], hidden: int) -> Widths:
    """Return the widest phases over the distinct layers of a model."""
    block = attention = scratch = heads = 0
    window: int | None = None
    for layer in dict.fromkeys(layers):
        inner = [mixer_width(mixer, hidden) for mixer in layer.mixers]
        block = max(block, ffn_width(layer, hidden), *(width + 2 * hidden for width in inner), 2 * hidden)
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                scratch = max(scratch, mixer.kv_heads * (mixer.key_dim + mixer.value_dim))
                heads = max(heads, mixer.heads)
                window = max(window or 0, mixer.window) if mixer.window is not None else window
            elif isinstance(mixer, Mla):
                scratch = max(scratch, mixer.kv_rank + mixer.rope_dim)
                heads = max(heads, mixer.heads)
        attention = max(attention, 4 * hidden)
    return Widths(block, attention, scratch, heads, window)


def ffn_width(layer: Layer, hidden: int) -> int:
    """Return floats per token of a feed-forward's widest moment, the query beside it."""
    query = max((mixer.heads * mixer.key_dim for mixer in layer.mixers if isinstance(mixer, Attention)), default=0)
    ffn = layer.ffn
    if isinstance(ffn, Dense):
        return (3 if ffn.gated else 2) * ffn.width + 2 * hidden + query
    if isinstance(ffn, Moe):
        parallel = 3 * ffn.experts_used * ffn.width + 2 * hidden + query
        joined = 2 * ffn.experts_used * hidden + ffn.experts_used * ffn.width + 2 * hidden
        return max(parallel, joined) + 3 * ffn.shared_width
    return 0


def mixer_width(mixer: Mixer, hidden: int) -> int:
    """Return floats per token of a mixer's widest moment."""
    if isinstance(mixer, Mla):
        row = mixer.kv_rank + mixer.rope_dim
        return mixer.heads * (row + mixer.kv_rank + mixer.nope_dim + mixer.rope_dim) + 2 * row
    if isinstance(mixer, Recurrent):
        inner = mixer.inner_dim or mixer.heads * mixer.head_dim or hidden
        return 6 * inner + 4 * mixer.groups * mixer.state_dim
    if isinstance(mixer, Attention):
        return 2 * mixer.heads * mixer.key_dim + 2 * mixer.kv_heads * mixer.key_dim
    return 0


class QuickMemory:
    """Bytes per device for any placement, in a few microseconds."""

    def __init__(self, model: MemoryModel) -> None:
        weights, settings = model.weights, model.settings
        spec = weights.spec
        self.model, self.weights, self.settings = model, weights, settings
        self.widths = widths(spec.layers, spec.hidden_size)
        self.vocab, self.hidden = spec.vocab_size, spec.hidden_size
        self.rows = settings.parallel if settings.logit_rows is None else settings.logit_rows
        self.quantized = settings.kv_type_k in QUANTIZED or settings.kv_type_v in QUANTIZED
        self.expert_tensor = max((layer.largest_expert_tensor_bytes for layer in weights.layers), default=0)
        self.block_tensor = max((layer.largest_tensor_bytes for layer in weights.layers), default=0)
        self.blocks = spec.block_count
        self.runtime = tuple(overhead.runtime_bytes(gpu, weights, settings) for gpu in model.devices.gpus)
        self.correction: tuple[int, ...] = (0,) * (len(model.devices.gpus) + 1)
        """Exact less quick on each device, once the exact answer of a placement is known."""
        self._context: dict[int, tuple[int, int]] = {}

    def least_compute(self, context_tokens: int, ubatch: int) -> tuple[int, int]:
        """Return the least compute buffer of a GPU with a block, and what copies add as soon as weights stay behind."""
        masks, attention = self.terms(context_tokens, ubatch)
        block = max(F32 * min(ubatch, context_tokens) * self.widths.block, attention) + masks
        tensors = [size for size in (self.block_tensor, self.expert_tensor) if size]
        return block, min(tensors, default=0) if self.settings.op_offload else 0

    def context_terms(self, context_tokens: int) -> tuple[int, int]:
        """Return `terms` at the settings' own micro-batch, worked out once a context."""
        known = self._context.get(context_tokens)
        if known is None:
            known = self._context[context_tokens] = self.terms(context_tokens, self.settings.ubatch)
        return known

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

    def compute_bytes(self, placement: Placement, context_tokens: int) -> list[int]:
        """Return the compute buffer of each GPU."""
        u = min(self.settings.ubatch, context_tokens)
        masks, attention = self.context_terms(context_tokens)
        whole = placement.gpu_layers > self.blocks and not placement.cpu_moe_layers and not placement.kv_on_host
        holders = sum(1 for units in placement.split if units) or 1
        copies = PIPELINE_COPIES if whole and holders > 1 else 1
        phase = max(F32 * u * self.widths.block, attention)
        copied = 0
        if self.settings.op_offload:
            if placement.cpu_moe_layers:
                copied = self.expert_tensor
            elif placement.gpu_layers <= self.blocks:
                copied = max(self.block_tensor, self.expert_tensor)
        logits = F32 * min(u, self.rows) * (self.vocab + self.hidden)
        # Every stage of a pipeline keeps its copies of the hidden state it is handed, later ones of what they hand on.
        handed = copies * F32 * u * self.hidden if copies > 1 else 0
        out = []
        last = max((i for i, units in enumerate(placement.split) if units), default=-1)
        copying = True
        for device, units in enumerate(placement.split or (placement.gpu_layers,)):
            if not units:
                out.append(0)
                continue
            need = max(phase + copies * masks + (copied if copying else 0), logits if device == last else 0)
            out.append(need + ROUNDING + (handed if copying else 2 * handed))
            copying = False
        return out

    def per_device_bytes(self, placement: Placement, context_tokens: int, /) -> tuple[int, ...]:
        """Return bytes per GPU, the runtime's own included, then the host's."""
        weights = self.model.weights_bytes(placement)
        caches = self.model.cache_bytes(placement, context_tokens)
        compute = self.compute_bytes(placement, context_tokens)
        gpus = [
            held + kv + state + buffer + (runtime if held else 0)
            for held, (kv, state), buffer, runtime in zip(weights, caches, compute, self.runtime, strict=False)
        ]
        host = weights[-1] + sum(caches[-1]) + self.host_compute(placement, context_tokens)
        return tuple(need + more for need, more in zip((*gpus, host), self.correction, strict=True))

    def forget(self) -> None:
        """Drop what exact answers taught."""
        self.correction = (0,) * len(self.correction)

    def correct(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Take the difference to the exact answer of one placement into all further ones; return that answer."""
        exact = self.model.per_device_bytes(placement, context_tokens)
        quick = self.per_device_bytes(placement, context_tokens)
        self.correction = tuple(
            known + true - guess for known, true, guess in zip(self.correction, exact, quick, strict=True)
        )
        return exact

    def safe_tokens(self, placement: Placement, limits: tuple[int, ...], most_tokens: int) -> int:
        """Return the largest context, in whole cells, that keeps every device within its limit; 0 when none does."""

        def fits(count: int) -> bool:
            used = self.per_device_bytes(placement, count * cache.CELL_PADDING)
            return all(use <= limit for use, limit in zip(used, limits, strict=True))

        count = largest(1, max(1, most_tokens // cache.CELL_PADDING), fits)
        return 0 if count is None else count * cache.CELL_PADDING

    def uses(self, placement: Placement, context_tokens: int) -> tuple[DeviceUse, ...]:
        """Return the same bytes as named parts: the GPUs in order, then the host."""
        weights = self.model.weights_bytes(placement)
        caches = self.model.cache_bytes(placement, context_tokens)
        totals = self.per_device_bytes(placement, context_tokens)
        devices, output = self.model.devices, F32 * self.rows * self.vocab
        names = [
            *((gpu.name, gpu.memory_free_bytes) for gpu in devices.gpus),
            ("host", devices.host.ram_available_bytes),
        ]
        out = []
        for index, (name, free) in enumerate(names):
            host = index == len(devices.gpus)
            held, (kv, state) = weights[index], caches[index]
            runtime = self.runtime[index] if not host and held else 0
            written = output if host else 0
            out.append(
                DeviceUse(
                    name=name,
                    kind="host" if host else "gpu",
                    weights_bytes=held,
                    kv_cache_bytes=kv,
                    recurrent_bytes=state,
                    compute_bytes=totals[index] - held - kv - state - runtime - written,
                    output_bytes=written,
                    runtime_bytes=runtime,
                    total_bytes=totals[index],
                    free_bytes=free,
                )
            )
        return tuple(out)

    def host_compute(self, placement: Placement, context_tokens: int) -> int:
        """Return the host's compute and output buffers: inputs and masks, or whole phases where it computes."""
        u = min(self.settings.ubatch, context_tokens)
        masks, attention = self.context_terms(context_tokens)
        output = F32 * self.rows * self.vocab
        if placement.gpu_layers > self.blocks and not placement.cpu_moe_layers:
            copies = PIPELINE_COPIES if sum(1 for units in placement.split if units) > 1 else 1
            return copies * (masks + F32 * u * self.hidden) + F32 * u * self.hidden + output
        return max(F32 * u * self.widths.block, attention) + masks + output
