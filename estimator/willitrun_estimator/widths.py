"""How wide a model's blocks are while they compute: floats per token of the phases that decide a compute buffer."""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Attention, Dense, Layer, Mixer, Mla, Moe, Recurrent


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
