"""Compute buffers of the context that drafts with a model's own next-token block (`LLM_GRAPH_TYPE_DECODER_MTP`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_catalog.model import Attention, Mla, Moe
from willitrun_estimator import cache
from willitrun_estimator.compute.builder import HEAD, Builder
from willitrun_estimator.compute.copies import copy_bytes
from willitrun_estimator.compute.form import ROWS, Dim, Sizes, U
from willitrun_estimator.compute.operations import Homes
from willitrun_estimator.compute.programs import peaks
from willitrun_estimator.compute.schedule import OFFLOAD_ROWS
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.tensors.family import next_token_layer
from willitrun_estimator.weight_groups import grouped

if TYPE_CHECKING:
    from willitrun_catalog.model import Layer, ModelSpec
    from willitrun_estimator.compute.graph import Graph
    from willitrun_estimator.placement import Settings
    from willitrun_estimator.weights import WeightProfile

DRAFTING = frozenset(
    (
        *("bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe", "hy_v3", "mimo2"),
        *("nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next", "step35"),
    ),
)
"""Architectures with a graph for next-token blocks (src/models); a file of another may have such blocks to no use."""
PICKED_INSIDE = frozenset({"nemotron_h_moe"})
"""Of these the rows that get logits are picked after attention; with others after the last norm."""
TABLE, HEAD_COPY = "nextn.embed_tokens.weight", "nextn.shared_head_head.weight"
"""Copies of the token table and the head that some files hold in the block."""
GPU_ALIGNMENT, HOST_ALIGNMENT = 128, 32


def drafting_layer(spec: ModelSpec) -> Layer:
    """Give the block as the draft's graph has it: where the model has a sparse indexer, without."""
    layer = next_token_layer(spec)
    mixers = tuple(
        structs.replace(mixer, indexer_heads=None, indexer_dim=None) if isinstance(mixer, Mla) else mixer
        for mixer in layer.mixers
    )
    return structs.replace(layer, mixers=mixers)


def next_token_graph(b: Builder, layer: Layer, homes: Homes) -> Graph:
    """Build the graph: the next token's embedding and the last hidden state, joined, through a block and the head."""
    g, hidden = b.graph, b.spec.hidden_size
    tokens = b.token_input("tokens")
    state = b.further_input("states", (hidden, U))
    x = g.add("embedded", (hidden, U), g.weight("token_embd", b.host), tokens, rows=0)
    x = b.norm(x, "nextn.enorm", homes)
    state = b.norm(state, "nextn.hnorm", homes)
    x = b.matmul("nextn.eh_proj", homes, hidden, g.add("joined", (2 * hidden, U), x, state))
    b.expect(layer.mixers[0], homes)
    if isinstance(layer.ffn, Moe):
        b.expect(None, homes)
    inside = b.spec.architecture in PICKED_INSIDE
    x = b.block(layer, x, homes, last=inside)
    norm = next((name for name in ("nextn.shared_head_norm", "layer_output_norm") if b.has(homes, name)), None)
    x = b.norm(x, norm, homes) if norm is not None else g.add("norm", x.dims, x, inplace=True)
    x.is_output = True
    x = x if inside else b.out_rows(x)
    own = HEAD_COPY in homes.parts
    logits = g.add("logits", (b.spec.vocab_size, ROWS), g.weight(HEAD_COPY if own else HEAD, homes.block), x)
    logits.is_output = True
    g.end()
    g.end()
    return g


def table_bytes(weights: WeightProfile) -> int:
    """Give the bytes of the block's own copy of the token table; 0 where the file has none."""
    spec = weights.spec
    groups = grouped(blueprint(spec)).order[len(spec.layers) :]
    known = copy_bytes(weights)
    return sum(known.get(f"{group}/{TABLE}", 0) for group in groups)


def draft_compute_bytes(
    spec: ModelSpec, settings: Settings, *, backend: str = "cuda", gpus: int = 1
) -> tuple[int, int]:
    """Give the buffers of the GPU with the last blocks and of the host, everything offloaded; cache in f16."""
    plan = blueprint(spec)
    layer = drafting_layer(spec)
    small = structs.replace(spec, layers=(layer,), tensors=None)
    settings = structs.replace(settings, kv_type_k="f16", kv_type_v="f16")
    host = 1 if gpus else 0
    block = plan.kinds[plan.order[len(spec.layers)]]
    parts = frozenset(part.name for part in block)
    width = max((m.key_dim for m in layer.mixers if isinstance(m, Attention)), default=0)
    whole = any(part.name == "attn_q_norm.weight" and part.shape[0] > width > 0 for part in block)
    outside = frozenset(part.name for part in plan.outside)
    builder = Builder(small, settings, host=host, outside=outside, backend=backend, whole_qk_norm=whole)
    graph = next_token_graph(builder, layer, Homes(0, 0, 0, rotary=builder.style.rope != "none", parts=parts))
    cells, streams = cache.stream_cells(settings)
    ubatch = min(settings.ubatch, cells * streams)
    slots = max(1, settings.parallel)
    large: dict[Dim, bool] = {U: ubatch >= OFFLOAD_ROWS, ROWS: False}
    values = Sizes(cache.pad(ubatch, slots), cells, cells, min(slots, ubatch)).values()
    alignments = (*([GPU_ALIGNMENT] * host), HOST_ALIGNMENT)
    found = peaks(graph, values, alignments, offload=settings.op_offload, large=large, pipeline=gpus > 1)
    return found[0] if gpus else 0, found[-1]
