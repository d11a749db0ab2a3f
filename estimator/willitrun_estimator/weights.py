"""Weights of one model in one quantization, summed per block once, so that a placement costs a few additions.

A mix of llama-quantize gives types tensor by tensor (`willitrun_catalog.mixes`); a file brings its own types; a
checkpoint format is bits per weight by role (`willitrun_catalog.formats`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from itertools import accumulate, repeat

from msgspec import Struct, structs

from willitrun_catalog.block_types import row_bytes
from willitrun_catalog.formats import FORMATS, CheckpointFormat
from willitrun_catalog.mixes import NOWHERE, MixFacts, Position, chosen_type
from willitrun_catalog.model import ModelSpec, Moe
from willitrun_catalog.quant import quant_name
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.weight_groups import FIRST_BLOCK_PREFIXES, HOST_NAMES, Grouped, Piece, grouped


class LayerWeights(Struct, frozen=True, kw_only=True):
    """One block's weights, split by where llama.cpp can put them and by what a token touches."""

    resident_bytes: int
    """Everything but routed experts: attention, norms, router, dense and shared feed-forward."""
    expert_bytes: int
    """All routed experts of the block; 0 in a dense block."""
    expert_active_bytes: int
    """The share of `expert_bytes` that one token reads (`experts_used` of `experts`)."""
    largest_tensor_bytes: int
    """Largest single resident matrix (what op offload copies when the block stays on the host)."""
    largest_expert_tensor_bytes: int
    """Largest of the three expert tensors, all experts together."""


class WeightProfile(Struct, frozen=True, kw_only=True):
    """Byte sums of a model in a quantization. `cumulative_*[i]` is the sum over blocks 0..i-1."""

    spec: ModelSpec
    quant: str
    layers: tuple[LayerWeights, ...]
    cumulative_resident_bytes: tuple[int, ...]
    cumulative_expert_bytes: tuple[int, ...]
    cumulative_expert_active_bytes: tuple[int, ...]
    embedding_bytes: int
    """The token table: host memory, always; one row of it is read per token."""
    output_bytes: int
    """The head as loaded beside the last blocks; the table's second copy where embeddings are tied."""
    host_extra_bytes: int
    """Other tensors that stay in host memory (per-layer embeddings)."""
    tensor_bytes: int
    """Sum over the file's tensors, next-token layers included, a tied table once."""
    unloaded_bytes: int
    """Listed in the file and not loaded (next-token layers)."""
    file_bytes: int
    """Tensors plus header and tokenizer metadata: the real file's size if it has this quantization, or estimated."""
    params: int
    """Weights of the text model without next-token layers, a tied table once."""
    active_params: int
    """Weights one token touches: `params` without unused experts, the embedding row counted as the whole table."""
    bits_per_weight: float
    matmul_type: str
    """The type most of the matrix bytes have: decides kernels and speed on a CPU."""
    type_bytes: tuple[tuple[str, int], ...] = ()
    """Bytes per type over the file's tensors, most first."""


def weight_profile(spec: ModelSpec, quant: str, *, importance_matrix: bool = False) -> WeightProfile:
    """Sum a model's weights in a quantization.

    `quant` is a mix of llama-quantize or a checkpoint format, in any case; a file that fixes its types ignores it.
    Raises `UnknownQuant` and `UnknownArchitecture`.
    """
    if spec.tensors is not None and all(tensor.type is not None for tensor in spec.tensors):
        label = spec.quant or quant
        return _profile(spec, label, _fixed_sizer)
    label = quant_name(quant)
    if label in FORMATS:
        return _profile(spec, label, _format_sizer(FORMATS[label]))
    facts = blueprint(spec).facts
    if importance_matrix:
        facts = structs.replace(facts, importance_matrix=True)
    return _profile(spec, label, _mix_sizer(label, facts))


NEXT_TOKEN_KEPT: dict[str, tuple[str, ...]] = {
    "hy_v3": ("ffn_", "exp_probs_b", "nextn.embed_tokens", "nextn.shared_head"),
    "step35": ("ffn_", "exp_probs_b", "nextn.embed_tokens", "nextn.shared_head"),
}
"""Starts of the names of what an architecture loads of its next-token blocks although nobody asked for them.

src/models/hy-v3.cpp and step35.cpp skip the rest of such a block (`TENSOR_SKIP`) but not these.
"""
Sizer = Callable[[Piece, Position], tuple[str, int]]
"""Type name and bytes of one tensor at its position."""


def _fixed_sizer(item: Piece, _place: Position) -> tuple[str, int]:
    kind = item.fixed_type or "F32"
    return kind, row_bytes(kind, item.row_elements) * item.rows


def _format_sizer(form: CheckpointFormat) -> Sizer:
    def size(item: Piece, _place: Position) -> tuple[str, int]:
        if item.role in form.roles and item.rows > 1 and not item.kept and item.fixed_type in {None, "MXFP4"}:
            return form.name, round(item.elements * form.bits / 8)
        return "BF16", round(item.elements * form.rest_bits / 8)

    return size


def _mix_sizer(mix: str, facts: MixFacts) -> Sizer:
    source = mix if mix in {"F16", "F32"} else "BF16"
    chosen: dict[int, str] = {}

    def size(item: Piece, place: Position) -> tuple[str, int]:
        kind = item.fixed_type
        if kind is None:
            if item.kept:
                kind = source
            else:
                key = item.slot << 8 | place
                found = chosen.get(key)
                if found is None:
                    found = chosen[key] = chosen_type(
                        mix,
                        item.category,
                        place,
                        facts,
                        name=item.name,
                        row_elements=item.row_elements,
                        matrices=item.matrices,
                    )
                kind = found
        return kind, row_bytes(kind, item.row_elements) * item.rows

    return size


def _profile(spec: ModelSpec, quant: str, size: Sizer) -> WeightProfile:
    plan = blueprint(spec)
    model = grouped(plan)
    loaded = plan.loaded_blocks
    types: dict[str, int] = {}
    matrices: dict[str, int] = {}
    weighed = _weigh(model, size, _used_experts(spec), types, matrices)
    first = embedding = output = host = beyond_elements = tables = 0
    for item in model.outside:
        kind, amount = size(item, NOWHERE)
        types[kind] = types.get(kind, 0) + amount
        beyond_elements += item.elements
        if item.name == "token_embd.weight":
            embedding = amount
        elif item.name in HOST_NAMES:
            host += amount
        elif item.name.startswith(FIRST_BLOCK_PREFIXES):
            first += amount
            tables += item.elements if item.name.startswith("rope_") else 0
        else:
            output += amount
            if item.name == "output.weight":
                matrices[kind] = matrices.get(kind, 0) + amount
    layers = tuple([weighed[number] for number in model.order[:loaded]])
    if first and layers:
        layers = (structs.replace(layers[0], resident_bytes=layers[0].resident_bytes + first), *layers[1:])
    kept_host, kept_output = _kept(spec, model, loaded, size)
    host += kept_host
    output += kept_output
    elements = [model.kinds[group.kind].elements for group in model.groups]
    block_elements = sum([elements[number] for number in model.order[:loaded]])
    all_elements = sum(map(operator.mul, elements, model.counts)) + beyond_elements
    expert_elements = sum([model.kinds[plan.order[number]].expert_elements for number in range(loaded)])
    params = beyond_elements + block_elements - tables
    used, experts = _used_experts(spec)
    total = sum(types.values())
    return WeightProfile(
        spec=spec,
        quant=quant,
        layers=layers,
        cumulative_resident_bytes=tuple(accumulate([layer.resident_bytes for layer in layers], initial=0)),
        cumulative_expert_bytes=tuple(accumulate([layer.expert_bytes for layer in layers], initial=0)),
        cumulative_expert_active_bytes=tuple(accumulate([layer.expert_active_bytes for layer in layers], initial=0)),
        embedding_bytes=embedding,
        output_bytes=output + embedding if plan.facts.tied else output,
        host_extra_bytes=host,
        tensor_bytes=total,
        unloaded_bytes=sum(
            [weighed[number].resident_bytes + weighed[number].expert_bytes for number in model.order[loaded:]],
        )
        - kept_host
        - kept_output,
        file_bytes=_real_size(spec, quant) or total + metadata_bytes(spec, _tensor_count(model)),
        params=params,
        active_params=params - expert_elements + expert_elements * used // experts,
        bits_per_weight=8 * total / max(1, all_elements),
        matmul_type=max(matrices, key=matrices.__getitem__, default="F32"),
        type_bytes=tuple(sorted(types.items(), key=lambda entry: -entry[1])),
    )


def _kept(spec: ModelSpec, model: Grouped, loaded: int, size: Sizer) -> tuple[int, int]:
    """Weigh what is loaded of next-token blocks in any case: on the host, and with the head."""
    host = output = 0
    names = NEXT_TOKEN_KEPT.get(spec.architecture)
    for number in model.order[loaded:] if names else ():
        for item, place in model.groups[number].pieces:
            if item.name == "nextn.embed_tokens.weight":
                host += size(item, place)[1]
            elif item.name.startswith(names or ()) and item.name != "ffn_norm.weight":
                output += size(item, place)[1]
    return host, output


def _real_size(spec: ModelSpec, quant: str) -> int | None:
    # The size of a checkpoint in 16 bits says nothing about the file that is made from it.
    return spec.file_bytes if spec.quant is not None and spec.quant == quant else None


def _used_experts(spec: ModelSpec) -> tuple[int, int]:
    for layer in spec.layers:
        if isinstance(layer.ffn, Moe):
            return layer.ffn.experts_used, layer.ffn.experts
    return 1, 1


def _tensor_count(model: Grouped) -> int:
    return len(model.outside) + sum(
        [len(group.pieces) * count for group, count in zip(model.groups, model.counts, strict=True)],
    )


def _weigh(
    model: Grouped,
    size: Sizer,
    used: tuple[int, int],
    types: dict[str, int],
    matrices: dict[str, int],
) -> list[LayerWeights]:
    """Weigh one block of every group; `types` and `matrices` collect the bytes of all of them by type."""
    blocks = [0] * len(model.kinds)
    for group, count in zip(model.groups, model.counts, strict=True):
        blocks[group.kind] += count
    steady = [
        _sum(zip(kind.steady, repeat(NOWHERE)), count, size, types, matrices)
        for kind, count in zip(model.kinds, blocks, strict=True)
    ]
    weighed = []
    for group, count in zip(model.groups, model.counts, strict=True):
        resident, experts, largest, largest_expert = steady[group.kind]
        moved = zip(model.kinds[group.kind].positional, group.places, strict=True)
        more = _sum(moved, count, size, types, matrices)
        experts += more[1]
        weighed.append(
            LayerWeights(
                resident_bytes=resident + more[0],
                expert_bytes=experts,
                expert_active_bytes=experts * used[0] // used[1],
                largest_tensor_bytes=max(largest, more[2]),
                largest_expert_tensor_bytes=max(largest_expert, more[3]),
            ),
        )
    return weighed


def _sum(
    pieces: Iterable[tuple[Piece, Position]],
    count: int,
    size: Sizer,
    types: dict[str, int],
    matrices: dict[str, int],
) -> tuple[int, int, int, int]:
    resident = experts = largest = largest_expert = 0
    for item, place in pieces:
        kind, amount = size(item, place)
        types[kind] = types.get(kind, 0) + amount * count
        if item.rows > 1:
            matrices[kind] = matrices.get(kind, 0) + amount * count
        if item.role == "experts":
            experts += amount
            largest_expert = max(largest_expert, amount)
        else:
            resident += amount
            largest = max(largest, amount)
    return resident, experts, largest, largest_expert


_BYTES_PER_PIECE_TOKEN = 23
"""Vocabulary entry without merges (SentencePiece): text, score and type. Mistral 7B and Gemma 3: 23 to 25 bytes."""
_BYTES_PER_BPE_TOKEN = 39
"""Vocabulary entry with its merge rule. Qwen 2.5 and 3, SmolLM2, LFM2, Hunyuan: 36 to 42 bytes."""
_BYTES_PER_LONG_BPE_TOKEN = 63
"""The same for vocabularies made from tiktoken tables (several merges a token). Llama 3, gpt-oss: 65 bytes."""
_TIKTOKEN_SIZES = frozenset({128_256, 200_064, 201_088, 202_048})
_PIECE_SIZES = frozenset({32_000, 32_016, 32_064, 32_768, 92_544})
_BYTES_PER_TENSOR = 60
"""Table entry of a GGUF file: name, dimensions, type and offset."""


def metadata_bytes(spec: ModelSpec, tensors_listed: int) -> int:
    """Estimate header, tensor table and tokenizer of a GGUF file, from the vocabulary's size and kind."""
    if spec.architecture.startswith(("gemma", "ernie4_5")) or spec.vocab_size in _PIECE_SIZES:
        per_token = _BYTES_PER_PIECE_TOKEN
    else:
        per_token = _BYTES_PER_LONG_BPE_TOKEN if spec.vocab_size in _TIKTOKEN_SIZES else _BYTES_PER_BPE_TOKEN
    return spec.vocab_size * per_token + tensors_listed * _BYTES_PER_TENSOR


def sizer(spec: ModelSpec, quant: str) -> Sizer:
    """Return the function that weighs one tensor of a model in a quantization. Raises `UnknownQuant`."""
    label = quant_name(quant) if spec.quant is None else quant
    if spec.tensors is not None and all(tensor.type is not None for tensor in spec.tensors):
        return _fixed_sizer
    if label in FORMATS:
        return _format_sizer(FORMATS[label])
    return _mix_sizer(label, blueprint(spec).facts)


def weight_bytes_by_role(spec: ModelSpec, quant: str) -> dict[str, int]:
    """Sum the loaded weights by role, for engines that split roles over ranks (vLLM's tensor parallelism).

    Keys are `willitrun_catalog.model.Role`; a tied head counts under `embedding` once. Next-token layers are left out.
    """
    plan = blueprint(spec)
    model = grouped(plan)
    size = sizer(spec, quant)
    sums: dict[str, int] = {}
    for item in model.outside:
        sums[item.role] = sums.get(item.role, 0) + size(item, NOWHERE)[1]
    counts: dict[int, int] = {}
    for number in model.order[: plan.loaded_blocks]:
        counts[number] = counts.get(number, 0) + 1
    for number, count in counts.items():
        for item, place in model.groups[number].pieces:
            sums[item.role] = sums.get(item.role, 0) + count * size(item, place)[1]
    return sums
