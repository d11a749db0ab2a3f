"""The KV cache of vLLM: pages, groups, blocks, tokens and how many requests fit. Exact.

Every layer gets pages of `block_tokens` tokens. All groups of layers draw their blocks from one pool, so a block has
the size of the largest group. Rules read in `vllm/v1/core/kv_cache_utils.py`, `kv_cache_planning.py` and
`kv_cache_interface.py` of the released wheels 0.10.0 to 0.33.0; checked on logged pools
(`tests/truth/vllm_memory.csv`).
"""

from __future__ import annotations

from math import lcm
from typing import Literal

from msgspec import Struct

from willitrun_catalog.model import Attention, Mixer, Mla, ModelSpec, Recurrent
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.versions import Rules

Kind = Literal["full", "window", "chunk", "state"]

BLOCK_TOKENS = 16
"""`CacheConfig.DEFAULT_BLOCK_SIZE`."""
MLA_STATE_ALIGNMENT = 128
"""Blocks of a model that mixes MLA with recurrent layers (`Platform._align_hybrid_block_size`)."""
FLOAT32_STATE = frozenset({"nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe", "kimi-linear", "kimi-k3"})
"""GGUF architectures whose recurrent state vLLM keeps in 32 bits: their `config.json` says so (`mamba_ssm_dtype`,
`mamba_ssm_cache_dtype`), or the mixer is KDA. All others keep it in the model's 16 bits."""
INDEXER_SCALE_BYTES = 4
"""A sparse indexer's key cache: one FP8 byte per element and a 32-bit scale per 128."""
DS_MLA_BYTES = 656
"""One token of the `fp8_ds_mla` layout of sparse MLA with an FP8 cache: 512 FP8, 16 scale and 128 rope bytes."""

_ELEMENT_BYTES = {"auto": 2, "float16": 2, "bfloat16": 2, "f16": 2, "bf16": 2, "float32": 4, "f32": 4}
_FP8 = ("fp8", "q8_0")


class Group(Struct, frozen=True, kw_only=True):
    """Layers that share block tables; `count` such groups exist."""

    kind: Kind
    count: int
    block_tokens: int
    window: int = 0
    """Sliding window or chunk in tokens; 0 for full attention and state."""


class CacheLayout(Struct, frozen=True, kw_only=True):
    """How one rank lays its cache out."""

    block_bytes: int
    """Of one block of the pool on this rank; 0 for a rank or model without a cache."""
    groups: tuple[Group, ...]
    attention_block_tokens: int
    """Tokens per block of the attention layers: 16, or what makes a page hold one recurrent state."""
    state_bytes: int = 0
    """Recurrent state of one sequence in one layer on this rank, before padding."""


class _Slot(Struct, frozen=True, kw_only=True):
    """What one layer asks of the cache."""

    layer: int
    kind: Kind
    token_bytes: int
    window: int = 0
    block_tokens: int = BLOCK_TOKENS
    latent: bool = False

    @property
    def page_bytes(self) -> int:
        return self.block_tokens * self.token_bytes


def element_bytes(kv_type: str) -> int:
    """Give the bytes per cached element of a KV type, in either engine's words; raises EstimatorError."""
    if kv_type.startswith(_FP8):
        return 1
    if kv_type not in _ELEMENT_BYTES:
        raise EstimatorError(
            f"vLLM has no KV cache type {kv_type!r}", "use f16 (the model's type) or fp8; q8_0 is taken as fp8"
        )
    return _ELEMENT_BYTES[kv_type]


def kv_heads_per_rank(kv_heads: int, tensor_parallel: int) -> int:
    """Give the KV heads a rank holds: split, and replicated beyond the number of heads."""
    return max(1, kv_heads // tensor_parallel)


def state_bytes(mixer: Recurrent, architecture: str, tensor_parallel: int, draft_tokens: int = 0) -> int:
    """Give the bytes of one sequence's state in one layer on one rank (`MambaStateShapeCalculator`)."""
    wide = architecture in FLOAT32_STATE or mixer.kind == "kda"
    kernel_rows = max(1, mixer.conv_kernel - 1)
    conv = mixer.conv_elements * (kernel_rows + draft_tokens) // kernel_rows
    return 2 * conv // tensor_parallel + (4 if wide else 2) * mixer.state_elements // tensor_parallel


def cache_layout(
    spec: ModelSpec,
    rules: Rules,
    *,
    tensor_parallel: int = 1,
    kv_type: str = "auto",
    draft_tokens: int = 0,
    block_tokens: int = BLOCK_TOKENS,
    stage: tuple[int, int] | None = None,
) -> CacheLayout:
    """Lay the cache of the layers `stage[0]..stage[1]` (all by default) out on one rank of `tensor_parallel`.

    Groups are made over the whole model, so that stages of a pipeline agree; the block of a stage then holds the
    layers of its largest group. `draft_tokens` widens the states of a speculating engine.
    """
    first, last = stage or (0, spec.block_count)
    slots: list[_Slot] = []
    states: dict[int, int] = {}
    for number, layer in enumerate(spec.layers):
        for mixer in layer.mixers:
            slots += _attention_slots(number, mixer, tensor_parallel, kv_type, block_tokens)
            if isinstance(mixer, Recurrent):
                states[number] = state_bytes(mixer, spec.architecture, tensor_parallel, draft_tokens)
    largest_state = max(states.values(), default=0)
    if states and slots:
        slots = _raise_blocks(slots, largest_state, rules)
    page = max((slot.page_bytes for slot in slots), default=largest_state)
    attention_tokens = slots[0].block_tokens if slots else 0
    slots += [_Slot(layer=number, kind="state", token_bytes=page, block_tokens=1) for number in sorted(states)]
    groups = _group(slots)
    sizes = [
        sum(slot.page_bytes for slot in group if first <= slot.layer < last)
        for _, members in groups
        for group in members
    ]
    return CacheLayout(
        block_bytes=max(sizes, default=0),
        groups=tuple(
            Group(kind=kind.kind, count=len(members), block_tokens=kind.block_tokens, window=kind.window)
            for kind, members in groups
        ),
        attention_block_tokens=attention_tokens,
        state_bytes=largest_state,
    )


def _attention_slots(number: int, mixer: Mixer, tensor_parallel: int, kv_type: str, block_tokens: int) -> list[_Slot]:
    """List the cache one attention mixer keeps; none for recurrent ones and for those that read another layer's."""
    width = element_bytes(kv_type)
    if isinstance(mixer, Mla):
        sparse = mixer.indexer_dim is not None
        token_bytes = DS_MLA_BYTES if sparse and width == 1 else (mixer.kv_rank + mixer.rope_dim) * width
        slots = [_Slot(layer=number, kind="full", token_bytes=token_bytes, block_tokens=block_tokens, latent=True)]
        if mixer.indexer_dim is not None and mixer.indexer_heads:
            index_bytes = mixer.indexer_dim + mixer.indexer_dim // 128 * INDEXER_SCALE_BYTES
            slots.append(
                _Slot(layer=number, kind="full", token_bytes=index_bytes, block_tokens=block_tokens, latent=True)
            )
        return slots
    if not isinstance(mixer, Attention) or mixer.shares_kv:
        return []
    heads = kv_heads_per_rank(mixer.kv_heads, tensor_parallel)
    kind: Kind = "full" if mixer.window is None else "chunk" if mixer.chunked else "window"
    return [
        _Slot(
            layer=number,
            kind=kind,
            token_bytes=heads * (mixer.key_dim + mixer.value_dim) * width,
            window=mixer.window or 0,
            block_tokens=block_tokens,
        )
    ]


def _raise_blocks(slots: list[_Slot], state: int, rules: Rules) -> list[_Slot]:
    """Enlarge the attention blocks until a page holds one recurrent state."""
    token_bytes = max(slot.token_bytes for slot in slots)
    alignment = slots[0].block_tokens
    if any(slot.latent for slot in slots) and rules.version >= (0, 20):
        alignment = lcm(alignment, MLA_STATE_ALIGNMENT)
    tokens = max(slots[0].block_tokens, alignment * -(-state // (alignment * token_bytes)))
    return [_with_block(slot, tokens) for slot in slots]


def _with_block(slot: _Slot, tokens: int) -> _Slot:
    return _Slot(
        layer=slot.layer,
        kind=slot.kind,
        token_bytes=slot.token_bytes,
        window=slot.window,
        block_tokens=tokens,
        latent=slot.latent,
    )


def _group(slots: list[_Slot]) -> list[tuple[_Slot, list[list[_Slot]]]]:
    """Split the layers into groups of equal length: (an example, the groups of its kind), for every kind.

    Layers of one kind and window share one group whatever their page sizes. Different kinds need pages of one size:
    smaller pages take more tokens where that divides evenly, and are padded otherwise; then the layers of each kind
    are dealt into groups of the length of the rarest kind (of the most frequent one where that is less than 1.5 times
    as long). A group that is not full is padded.
    """
    if not slots:
        return []
    kinds = {(slot.kind, slot.window) for slot in slots}
    if len(kinds) == 1:
        return [(slots[0], [slots])]
    page = max(slot.page_bytes for slot in slots)
    same: dict[tuple[Kind, int, int], list[_Slot]] = {}
    for slot in slots:
        tokens = slot.block_tokens
        if slot.kind != "state" and page % slot.page_bytes == 0:
            tokens = slot.block_tokens * (page // slot.page_bytes)
        padded = _Slot(
            layer=slot.layer,
            kind=slot.kind,
            token_bytes=page,
            window=slot.window,
            block_tokens=tokens,
            latent=slot.latent,
        )
        same.setdefault((slot.kind, slot.window, tokens), []).append(padded)
    counts = [len(members) for members in same.values()]
    length = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    result = []
    for members in same.values():
        count = -(-len(members) // length)
        one_page = [_Slot(layer=m.layer, kind=m.kind, token_bytes=page, block_tokens=1) for m in members]
        result.append((members[0], [one_page[i::count] for i in range(count)]))
    return result


def blocks_per_request(
    layout: CacheLayout, rules: Rules, *, context_tokens: int, max_num_batched_tokens: int, prefix_caching: bool
) -> int:
    """Count the blocks of the pool that one request of full length holds (`max_memory_usage_bytes` of every group)."""
    in_flight = rules.in_flight_batches * max_num_batched_tokens
    total = 0
    for group in layout.groups:
        if group.kind == "full":
            blocks = -(-context_tokens // group.block_tokens)
        elif group.kind == "window":
            blocks = -(-min(group.window - 1 + in_flight, context_tokens) // group.block_tokens) + 1
        elif group.kind == "chunk":
            blocks = -(-min(group.window + in_flight, context_tokens) // group.block_tokens)
        else:
            blocks = 2 if prefix_caching else 1
        total += blocks * group.count
    return total


def pool_blocks(layouts: tuple[CacheLayout, ...], pools_bytes: tuple[int, ...]) -> int:
    """Count the blocks of the smallest rank: every rank uses that many. 1 for a model that caches nothing."""
    counts = [
        max(0, pool) // layout.block_bytes
        for layout, pool in zip(layouts, pools_bytes, strict=True)
        if layout.block_bytes
    ]
    return min(counts, default=1)


def concurrency(blocks: int, per_request: int) -> float:
    """Count the requests of full length that the pool holds at once (vLLM's "Maximum concurrency")."""
    return blocks / per_request if per_request else float("inf")


def cache_tokens(layout: CacheLayout, rules: Rules, blocks: int, *, per_request: int, context_tokens: int) -> int:
    """Give what the log calls "GPU KV cache size", by the version's rule."""
    if rules.prints_capacity:
        return int(concurrency(blocks, per_request) * context_tokens)
    groups = sum(group.count for group in layout.groups)
    smallest = min((group.block_tokens for group in layout.groups if group.kind != "state"), default=context_tokens)
    return blocks // max(1, groups) * smallest


def has_state(layout: CacheLayout) -> bool:
    """Tell whether sequences hold recurrent state, one block each."""
    return any(group.kind == "state" for group in layout.groups)
