"""How many query heads share a key head, as llama.cpp sees it."""

from __future__ import annotations

from willitrun_catalog.model import Attention, Mla, ModelSpec, Recurrent

_ONE_COUNT_FOR_ALL = frozenset({"gated-delta-net"})
"""Recurrent kinds whose GGUF files give one head count for all blocks (Qwen3-Next, Qwen3.5); others give a list."""


def grouping(spec: ModelSpec) -> int:
    """Query heads per key head in block 0 (`n_gqa()` in `src/llama-hparams.cpp`), 0 where block 0 has no cache.

    Latent attention counts as one key head. Where a file gives one count for all blocks, block 0 has it too, even if
    it is recurrent.
    """
    first = spec.layers[0] if spec.layers else None
    if first is None:
        return 0
    scalar = any(isinstance(mixer, Recurrent) and mixer.kind in _ONE_COUNT_FOR_ALL for mixer in first.mixers)
    for layer in spec.layers if scalar else (first,):
        for mixer in layer.mixers:
            if isinstance(mixer, Attention) and mixer.kv_heads:
                return mixer.heads // mixer.kv_heads
            if isinstance(mixer, Mla):
                return mixer.heads
    return 0
