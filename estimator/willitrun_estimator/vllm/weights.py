"""Bytes of the weights that one rank of a vLLM engine loads.

Attention, feed-forward, experts and the vocabulary tables are split over the tensor-parallel ranks; norms, routers and
the latent projections of MLA are whole on every rank; key and value projections are replicated beyond the number of
KV heads; tables are padded to 64 rows and a tied one is stored once. Rules read in
`vllm/model_executor/layers/linear.py`, `vocab_parallel_embedding.py` and `rotary_embedding/`; checked on logged starts
(`tests/truth/vllm_memory.csv`).
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Attention, Layer, Mla, ModelSpec, Moe
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.tensors import Part, blueprint
from willitrun_estimator.vllm.formats import (
    MXFP4_HIDDEN_MULTIPLE,
    PAD_VOCAB_ROWS,
    Format,
)

_LATENT = ("attn_q_a.", "attn_kv_a_mqa.", "indexer")
_LOOKUPS = frozenset({"per_layer_token_embd.weight"})
"""Tables beside the vocabulary of which a token reads one row (Gemma 3n and 4)."""
_ROPE_STRETCH = {"gemma3": 8}
"""Linear rope scaling multiplies the rows of the table of full-attention layers (`rope_scaling` in `config.json` of
google/gemma-3-4b-it and larger, which reach 128k tokens)."""
_STRETCHED_FROM_TOKENS = 131072
EXPERT_TILE = 128


class RankWeights(Struct, frozen=True, kw_only=True):
    """Weights of one rank of a pipeline stage, by what a token reads."""

    dense_bytes: int
    """Attention, dense and shared feed-forward, norms and routers: read by every step."""
    expert_bytes: int
    """All routed experts."""
    expert_active_bytes: int
    """Of the experts, what one token reads."""
    embedding_bytes: int
    """The token tables (first stage; the vocabulary on the last too where it is tied): one row a token is read."""
    output_bytes: int
    """The head (last stage). Where it is the tied table it is read here and stored in `embedding_bytes`."""
    tower_bytes: int
    """Vision and audio towers (first stage)."""
    buffer_bytes: int
    """Tables that are computed, not loaded (rotary embeddings); the log counts them as weights."""
    total_bytes: int

    @property
    def step_bytes(self) -> int:
        """Read by a step of one sequence."""
        return self.dense_bytes + self.expert_active_bytes + self.output_bytes


class StageWeights(Struct, frozen=True, kw_only=True):
    """One pipeline stage: its layers and the weights of each of its ranks."""

    first_layer: int
    last_layer: int
    rank: RankWeights


def pad(value: int, multiple: int) -> int:
    """Give the next multiple at or above a value."""
    return -(-value // multiple) * multiple


def stage_bounds(layers: int, stages: int) -> tuple[tuple[int, int], ...]:
    """Give first and one-past-last layer of every pipeline stage (`get_pp_indices`).

    What does not divide goes to the stages before the last, the later ones first, so that the stage with the head
    has no more layers than the others. Raises EstimatorError where a stage would be empty.
    """
    if stages > layers:
        raise EstimatorError(f"{layers} layers cannot be cut into {stages} pipeline stages", "use fewer stages")
    base, rest = divmod(layers, stages)
    sizes = [base] * stages
    for extra in range(2, rest + 2):
        sizes[-extra] += 1
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return tuple(bounds)


def stage_weights(
    spec: ModelSpec,
    checkpoint: Format,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    towers: bool = True,
    expert_tile: int = EXPERT_TILE,
) -> tuple[StageWeights, ...]:
    """Weigh one rank of every stage.

    `towers` False leaves vision and audio out (`--language-model-only`). Expert parallelism deals whole experts
    instead of slices and changes no bytes. `expert_tile` is what the kernel of MXFP4 experts rounds widths up to.
    Raises EstimatorError for more stages than layers, and
    `UnknownArchitecture`.
    """
    plan = blueprint(spec)
    bounds = stage_bounds(spec.block_count, pipeline_parallel)
    known: dict[tuple[int, Layer], tuple[float, float, float]] = {}
    layers: list[tuple[float, float, float]] = []
    for number, layer in enumerate(spec.layers):
        key = (plan.order[number], layer)
        if key not in known:
            known[key] = _layer_bytes(spec, layer, plan.kinds[key[0]], checkpoint, tensor_parallel, expert_tile)
        layers.append(known[key])
    vocab = pad(spec.vocab_size, PAD_VOCAB_ROWS) * spec.hidden_size * checkpoint.other_bytes // tensor_parallel
    beyond = sum(
        _part_bytes(part, spec.layers[0], checkpoint, tensor_parallel, checkpoint.linear_bits, expert_tile)
        for part in plan.outside
        if part.role not in {"embedding", "output"} and part.name not in _LOOKUPS
    )
    lookups = sum(
        round(_part_bytes(part, spec.layers[0], checkpoint, tensor_parallel, checkpoint.linear_bits, expert_tile))
        for part in plan.outside
        if part.name in _LOOKUPS
    )
    buffers = rope_cache_bytes(spec)
    stages = []
    for first, last in bounds:
        held = layers[first:last]
        dense = round(sum(layer[0] for layer in held) + (beyond if first == 0 else 0))
        expert = round(sum(layer[1] for layer in held))
        holds_head = last == spec.block_count
        embedding = vocab if first == 0 or (spec.tied_embeddings and holds_head) else 0
        embedding += lookups if first == 0 else 0
        tower = spec.non_text_params * checkpoint.other_bytes // tensor_parallel if towers and first == 0 else 0
        stored_output = vocab if holds_head and not spec.tied_embeddings else 0
        rank = RankWeights(
            dense_bytes=dense,
            expert_bytes=expert,
            expert_active_bytes=round(sum(layer[2] for layer in held)),
            embedding_bytes=embedding,
            output_bytes=vocab if holds_head else 0,
            tower_bytes=tower,
            buffer_bytes=buffers,
            total_bytes=dense + expert + embedding + stored_output + tower + buffers,
        )
        stages.append(StageWeights(first_layer=first, last_layer=last, rank=rank))
    return tuple(stages)


def layer_bytes(spec: ModelSpec, number: int, checkpoint: Format, *, tensor_parallel: int) -> int:
    """Weigh one layer on one rank, its experts included."""
    plan = blueprint(spec)
    parts = plan.kinds[plan.order[number]]
    dense, expert, _ = _layer_bytes(spec, spec.layers[number], parts, checkpoint, tensor_parallel, EXPERT_TILE)
    return round(dense + expert)


def _layer_bytes(
    spec: ModelSpec, layer: Layer, parts: tuple[Part, ...], checkpoint: Format, tensor_parallel: int, expert_tile: int
) -> tuple[float, float, float]:
    """Dense bytes, expert bytes and the expert bytes one token reads, of one layer on one rank."""
    routed = any(isinstance(other.ffn, Moe) for other in set(spec.layers))
    bits = checkpoint.linear_bits
    if routed and checkpoint.dense_with_experts_bits is not None:
        bits = checkpoint.dense_with_experts_bits
    dense = expert = 0.0
    for part in parts:
        size = _part_bytes(part, layer, checkpoint, tensor_parallel, bits, expert_tile)
        if part.role == "experts":
            expert += size
        else:
            dense += size
    share = layer.ffn.experts_used / layer.ffn.experts if isinstance(layer.ffn, Moe) else 1.0
    return dense, expert, expert * share


def _part_bytes(
    part: Part, layer: Layer, checkpoint: Format, tensor_parallel: int, bits: float, expert_tile: int
) -> float:
    """Bytes of one tensor on one rank, `bits` being those of a dense matrix."""
    elements = 1
    for size in part.shape:
        elements *= size
    if part.role in {"norm", "router"} or len(part.shape) < 2:  # noqa: PLR2004
        return float(elements * checkpoint.other_bytes)
    if part.role == "experts":
        if checkpoint.pads_experts:
            elements = _padded_experts(part, tensor_parallel, expert_tile)
        return elements * checkpoint.expert_bits / 8 / tensor_parallel
    if part.role == "extra":
        return elements * checkpoint.other_bytes / tensor_parallel
    if part.name.startswith(_LATENT):
        return elements * bits / 8
    if part.name.startswith(("attn_k.", "attn_v.")):
        heads = next((m.kv_heads for m in layer.mixers if isinstance(m, Attention)), tensor_parallel)
        return elements * bits / 8 / min(heads, tensor_parallel)
    return elements * bits / 8 / tensor_parallel


def _padded_experts(part: Part, tensor_parallel: int, expert_tile: int) -> int:
    """Elements of an expert tensor with its hidden and its width per rank rounded up to the kernel's tiles."""
    if not part.name.endswith("weight"):
        return part.shape[0] * part.shape[1]
    row, column, experts = part.shape
    hidden, width = (column, row) if "down" in part.name else (row, column)
    width_per_rank = pad(-(-width // tensor_parallel), expert_tile)
    return pad(hidden, MXFP4_HIDDEN_MULTIPLE) * width_per_rank * tensor_parallel * experts


def rope_cache_bytes(spec: ModelSpec) -> int:
    """Give the table of rotary sines and cosines, whole on every rank: 16 bits x rotary width x model length.

    `RotaryEmbedding.cos_sin_cache`; it is the 32 MiB that Llama 3.1 8B logs beyond its tensors and the 2.5 GiB of
    Llama 4 Scout. Architectures whose window layers rotate at another base (Gemma 3 and later) keep two.
    """
    widths: set[tuple[int, bool]] = set()
    for layer in set(spec.layers):
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                own_base = spec.architecture.startswith("gemma") and mixer.window is not None
                widths.add((mixer.key_dim, own_base))
            elif isinstance(mixer, Mla):
                widths.add((mixer.rope_dim, False))
    stretch = _ROPE_STRETCH.get(spec.architecture, 1) if spec.max_context_tokens >= _STRETCHED_FROM_TOKENS else 1
    rows = sum(width * (1 if own_base else stretch) for width, own_base in widths)
    return 2 * rows * spec.max_context_tokens


def is_latent(spec: ModelSpec) -> bool:
    """Tell whether the model caches latent rows (MLA), which tensor parallelism does not split."""
    return any(isinstance(mixer, Mla) for layer in set(spec.layers) for mixer in layer.mixers)
