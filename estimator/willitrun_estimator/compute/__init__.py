"""Compute buffers of llama.cpp: what its graph allocator reserves on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Dense, Mla, Moe
from willitrun_estimator import cache

if TYPE_CHECKING:
    from willitrun_estimator.device import Devices
    from willitrun_estimator.placement import Placement, Settings
    from willitrun_estimator.weights import WeightProfile


class ComputeModel:
    """Compute buffer of every device for a placement and a context."""

    def __init__(self, weights: WeightProfile, devices: Devices, settings: Settings) -> None:
        spec = weights.spec
        self.devices = devices
        self.settings = settings
        hidden = spec.hidden_size
        rows = settings.parallel if settings.logit_rows is None else settings.logit_rows
        self.logits = 4 * rows * (spec.vocab_size + hidden)
        floats = 0
        heads = scratch = 0
        for layer in spec.layers:
            attention = 0
            for mixer in layer.mixers:
                if isinstance(mixer, Attention):
                    heads = max(heads, mixer.heads)
                    attention = mixer.heads * mixer.key_dim
                    row = (mixer.key_dim + mixer.value_dim) * mixer.kv_heads * 2
                    scratch = max(scratch, row if cache.is_quantized(settings.kv_type_k) else 0)
                elif isinstance(mixer, Mla):
                    heads = max(heads, mixer.heads)
                    attention = mixer.heads * (mixer.kv_rank + mixer.rope_dim) * 2
                    row = (mixer.kv_rank + mixer.rope_dim) * 2
                    scratch = max(scratch, row if cache.is_quantized(settings.kv_type_k) else 0)
            if isinstance(layer.ffn, Dense):
                floats = max(floats, 3 * layer.ffn.width + 2 * hidden + attention)
            elif isinstance(layer.ffn, Moe):
                used = layer.ffn.experts_used
                floats = max(floats, 3 * used * layer.ffn.width + 2 * hidden + attention, 2 * used * hidden)
            else:
                floats = max(floats, 2 * hidden + attention)
        self.floats = floats
        self.heads = heads
        self.scratch = scratch
        self.hidden = hidden
        self.largest = max((w.largest_tensor_bytes for w in weights.layers), default=0)
        self.largest_expert = max((w.largest_expert_tensor_bytes for w in weights.layers), default=0)

    def bytes(self, placement: Placement, context_tokens: int) -> tuple[int, ...]:
        """Compute buffer bytes on each GPU and on the host."""
        cells, streams = cache.stream_cells(self.settings, context_tokens)
        cells *= streams
        u = min(self.settings.ubatch, cells)
        mask = 2 * u * cells
        layer = 4 * u * self.floats
        if self.settings.flash_attention:
            attention = cells * self.scratch + 16 * u * self.hidden
        else:
            attention = 4 * u * cells * (self.heads + 1)
        work = max(self.logits, mask + max(layer, attention))
        copied = 0
        if self.settings.op_offload:
            if placement.gpu_layers <= len(placement.split or (0,)):
                copied = self.largest
            if placement.cpu_moe_layers:
                copied = max(copied, self.largest_expert)
        used = len(placement.split) or 1
        masks = mask * 3 if used > 1 and not copied else 0
        gpus = [work + masks + (copied if i == 0 else 0) for i in range(used)] if placement.gpu_layers else []
        gpus += [0] * (len(self.devices.gpus) - len(gpus))
        host = 8 * self.hidden * u + mask if placement.gpu_layers else work
        return (*gpus, host)
