"""What one token and one micro-batch ask of a span of blocks: bytes, multiply-adds, kernels. Sums over blocks.

Nothing here knows a device. Every figure is a cumulative sum, so that a placement costs differences alone.
"""

from __future__ import annotations

from itertools import accumulate

from willitrun_catalog.model import Attention, Layer, Mla, ModelSpec, Moe, Recurrent
from willitrun_estimator.cache import effective_window, mixer_row_bytes
from willitrun_estimator.placement import Settings
from willitrun_estimator.weights import WeightProfile

STATE_BYTES = 8
"""A recurrent state is read and written in F32 for every token."""


def cumulative(values: list[float]) -> list[float]:
    """Return the sums of the first 0, 1, … n values."""
    return list(accumulate(values, initial=0.0))


def multiplied_bytes(weights: WeightProfile) -> int:
    """Return the bytes that one token multiplies: everything resident, the chosen experts, the head."""
    return weights.cumulative_resident_bytes[-1] + weights.cumulative_expert_active_bytes[-1] + weights.output_bytes


def multiplied_elements(weights: WeightProfile) -> float:
    """Return the weights that one token multiplies, the same in every quantization: lookup tables are not multiplied.

    Per-layer tables are taken to be stored like the token table.
    """
    table = float(weights.spec.vocab_size * weights.spec.hidden_size)
    looked_up = weights.host_extra_bytes / max(1, weights.embedding_bytes) * table
    if not weights.spec.tied_embeddings:
        looked_up += table
    return max(0.0, weights.active_params - looked_up)


class BlockWork:
    """Cumulative work over the blocks of a model apart from their weights: the same in every quantization."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        blocks = spec.block_count
        memo: dict[int, tuple[float, ...]] = {}
        windows: dict[int, list[tuple[float, float]]] = {}
        full: list[tuple[float, float]] = []
        attention, recurrent, moe, state = [], [], [], []
        for index, layer in enumerate(spec.layers):
            key = id(layer)
            if key not in memo:
                memo[key] = layer_work(spec, layer, settings)
            mixers, states, recurrents, routed, row, operations, window = memo[key]
            attention.append(mixers)
            recurrent.append(recurrents)
            moe.append(routed)
            state.append(states)
            if window:
                rows = windows.setdefault(int(window), [(0.0, 0.0)] * blocks)
                rows[index] = (row, operations)
                full.append((0.0, 0.0))
            else:
                full.append((row, operations))
        self.attention_mixers = cumulative(attention)
        self.recurrent_mixers = cumulative(recurrent)
        self.recurrent_kind = next(
            (mixer.kind for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Recurrent)), ""
        )
        """What the recurrent mixers are: no model has two kinds."""
        self.moe_blocks = cumulative(moe)
        self.state_bytes = cumulative(state)
        self.row_bytes = cumulative([row for row, _ in full])
        self.row_operations = cumulative([operations for _, operations in full])
        self.windows = tuple(
            (window, cumulative([row for row, _ in rows]), cumulative([operations for _, operations in rows]))
            for window, rows in windows.items()
        )
        self.moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, Moe)), None)
        """The first routed part; no model has two kinds."""


def layer_work(spec: ModelSpec, layer: Layer, settings: Settings) -> tuple[float, ...]:
    """Count one block: mixers, state bytes, recurrent mixers, routed, cache row, operations, window."""
    mixers = recurrents = states = row = operations = window = 0.0
    for mixer in layer.mixers:
        if isinstance(mixer, Recurrent):
            recurrents += 1
            states += STATE_BYTES * mixer.state_elements
        elif isinstance(mixer, Attention):
            mixers += 1
            # A layer without a cache of its own still reads the one it shares.
            own = mixer_row_bytes(spec, mixer, settings)
            row += own or 2.0 * mixer.kv_heads * (mixer.key_dim + mixer.value_dim)
            operations += 2.0 * mixer.heads * (mixer.key_dim + mixer.value_dim)
            window = effective_window(spec, mixer) or 0
        elif isinstance(mixer, Mla):
            mixers += 1
            row += mixer_row_bytes(spec, mixer, settings)
            operations += 2.0 * mixer.heads * (2 * mixer.kv_rank + mixer.rope_dim)
    return mixers, states, recurrents, float(isinstance(layer.ffn, Moe)), row, operations, window


class Work:
    """Cumulative work over the blocks of a model with given cache types. `x[b] - x[a]` is blocks a..b-1.

    `beside` is `BlockWork(weights.spec, settings)` where it is at hand.
    """

    def __init__(self, weights: WeightProfile, settings: Settings, beside: BlockWork | None = None) -> None:
        spec = weights.spec
        beside = BlockWork(spec, settings) if beside is None else beside
        self.weights = weights
        self.blocks = spec.block_count
        self.resident_bytes = weights.cumulative_resident_bytes
        self.expert_bytes = weights.cumulative_expert_bytes
        self.active_bytes = weights.cumulative_expert_active_bytes
        self.elements_per_byte = multiplied_elements(weights) / max(1, multiplied_bytes(weights))
        self.attention_mixers = beside.attention_mixers
        self.recurrent_mixers = beside.recurrent_mixers
        self.recurrent_kind = beside.recurrent_kind
        self.moe_blocks = beside.moe_blocks
        self.state_bytes = beside.state_bytes
        self.row_bytes = beside.row_bytes
        self.row_operations = beside.row_operations
        self.windows = beside.windows
        self.moe = moe = beside.moe
        self.unused_share = 1.0 - moe.experts_used / moe.experts if moe else 0.0
        """Chance that one token leaves a given expert alone."""

    def touched_share(self, tokens: int) -> float:
        """Return the expected share of all experts that at least one of so many tokens uses."""
        return 1.0 - self.unused_share**tokens

    def context_bytes(self, first: int, last: int, depth_tokens: float) -> float:
        """Return cache bytes read for one token at a depth: windows stop growing at their width."""
        total = (self.row_bytes[last] - self.row_bytes[first]) * depth_tokens
        for window, rows, _ in self.windows:
            total += (rows[last] - rows[first]) * min(depth_tokens, window)
        return total

    def context_operations(self, first: int, last: int, depth_tokens: float) -> float:
        """Return operations of attention for one token at a depth."""
        total = (self.row_operations[last] - self.row_operations[first]) * depth_tokens
        for window, _, operations in self.windows:
            total += (operations[last] - operations[first]) * min(depth_tokens, window)
        return total
