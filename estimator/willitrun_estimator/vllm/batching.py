"""Speed against concurrency: what a step costs with c sequences, and what follows for tokens per second.

    step(c)  = sqrt(memory(c)^2 + compute(c)^2) + layers x launch + all-reduces + c x sequence work
    memory   = (dense + head + experts touched by c tokens + c x cache of one sequence) / bandwidth
    compute  = 2 x (dense weights + active expert weights / expert share) x c / matrix rate
    tokens/s = c x O / (O x step + c x (I x prefill + request work))

c is the largest of the asked concurrency, `--max-num-seqs` and what the KV pool holds, padded to the next captured
batch (steps of 8): the staircase that serving sweeps show. Constants are in `rates`, fitted by `scripts/fit_vllm.py`.
"""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from willitrun_catalog.model import Attention, Mla, ModelSpec, Moe, Recurrent
from willitrun_estimator.device import Device
from willitrun_estimator.vllm.cache import element_bytes, kv_heads_per_rank, state_bytes
from willitrun_estimator.vllm.formats import Format
from willitrun_estimator.vllm.rates import Rates, gpu_class
from willitrun_estimator.vllm.weights import StageWeights

FAST_LINK_BYTES_PER_S = 300e9
"""NVLink or xGMI between the GPUs of a server, one direction."""
SLOW_LINK_BYTES_PER_S = 25e9
"""All-reduce over PCI Express 4.0 x16."""
FAST_LINK_FROM = 100e9
GRAPH_STEP = 8


class StepShape(Struct, frozen=True, kw_only=True):
    """What of a model, its format and its split decides a step's time, per rank and over all pipeline stages."""

    dense_bytes: float
    """Read by every step, the head included."""
    expert_bytes: float
    expert_share: float
    """Experts one token uses over all."""
    weights_per_token: float
    """Weights multiplied per token on one rank, for decoding (the head included)."""
    expert_weights: float
    """Of these, those of routed experts: small matrices that few tokens of a batch share."""
    head_weights: float
    layers: int
    hidden: int
    tensor_parallel: int
    pipeline_parallel: int
    attention_weights: float
    """Prompt attention: multiply-adds per token and token of context it looks back on, per rank."""
    narrow: bool
    """Weights of fewer than 8 bits, unpacked for the 16-bit units."""
    tokens_per_chunk: int
    """`--max-num-batched-tokens`: weights are read once per chunk of a prefill."""


class Terms(Struct, frozen=True, kw_only=True):
    """One operating point as plain numbers (or as arrays of them, for fitting)."""

    sequences: float
    """Running in one engine."""
    padded: float
    """The same, padded to a captured batch."""
    dense_bytes: float
    expert_bytes: float
    covered_share: float
    """Of the experts that a step touches."""
    cache_bytes: float
    """Cache of one sequence at its mean length, per rank."""
    weights_per_token: float
    expert_weights: float
    head_weights: float
    layers: float
    collectives: float
    """All-reduces of a step."""
    collective_bytes: float
    """Moved by one of them per token."""
    attention_weights: float
    """Multiply-adds of a prompt token's attention over the prompt, on average."""
    narrow: float
    tokens_per_chunk: float
    bandwidth: float
    flops: float
    link: float
    input_tokens: float
    output_tokens: float
    engines: float
    """Replicas that have work."""
    waiting: float
    """Requests whose prefill delays the others: the running ones (one less where prefill is not counted)."""


def step_shape(
    spec: ModelSpec,
    stages: tuple[StageWeights, ...],
    checkpoint: Format,
    *,
    tensor_parallel: int,
    max_num_batched_tokens: int,
) -> StepShape:
    """Sum the stages up: a token passes through all of them."""
    dense = sum(stage.rank.dense_bytes for stage in stages)
    experts = sum(stage.rank.expert_bytes for stage in stages)
    active = sum(stage.rank.expert_active_bytes for stage in stages)
    head = stages[-1].rank.output_bytes
    share = next((f.experts_used / f.experts for f in (x.ffn for x in spec.layers) if isinstance(f, Moe)), 0.0)
    routed = experts > 0
    bits = checkpoint.linear_bits
    if routed and checkpoint.dense_with_experts_bits is not None:
        bits = checkpoint.dense_with_experts_bits
    head_weights = head / checkpoint.other_bytes
    expert_weights = 8 * active / checkpoint.expert_bits
    return StepShape(
        dense_bytes=dense + head,
        expert_bytes=experts,
        expert_share=share if routed else 0.0,
        weights_per_token=8 * dense / bits + expert_weights + head_weights,
        expert_weights=expert_weights,
        head_weights=head_weights,
        layers=spec.block_count,
        hidden=spec.hidden_size,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=len(stages),
        attention_weights=_attention(spec) / tensor_parallel,
        narrow=min(bits, checkpoint.expert_bits if routed else bits) < 8,  # noqa: PLR2004
        tokens_per_chunk=max_num_batched_tokens,
    )


def _attention(spec: ModelSpec) -> float:
    """Scores and values of full attention: a query meets every earlier key, and every value once more."""
    total = 0
    for layer in spec.layers:
        for mixer in layer.mixers:
            if isinstance(mixer, Attention) and mixer.window is None:
                total += mixer.heads * (mixer.key_dim + mixer.value_dim)
            elif isinstance(mixer, Mla):
                total += mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
    return float(total)


def cache_bytes(spec: ModelSpec, *, tensor_parallel: int, kv_type: str, context_tokens: float) -> float:
    """Sum the bytes a step reads for one sequence of that length on one rank; recurrent state is read and written."""
    width = element_bytes(kv_type)
    total = 0.0
    for layer in spec.layers:
        for mixer in layer.mixers:
            if isinstance(mixer, Attention):
                tokens = min(context_tokens, mixer.window or context_tokens)
                heads = kv_heads_per_rank(mixer.kv_heads, tensor_parallel)
                total += tokens * heads * (mixer.key_dim + mixer.value_dim) * width
            elif isinstance(mixer, Mla):
                total += context_tokens * (mixer.kv_rank + mixer.rope_dim) * width
            elif isinstance(mixer, Recurrent):
                total += 2 * state_bytes(mixer, spec.architecture, tensor_parallel)
    return total


def link_rate(device: Device) -> float:
    """Give one direction between two GPUs of the machine, by what is known of their links."""
    if device.peer_bytes_per_s is None:
        return FAST_LINK_BYTES_PER_S if gpu_class(device) in {"hbm", "cdna3"} else SLOW_LINK_BYTES_PER_S
    if device.peer_bytes_per_s >= FAST_LINK_FROM:
        return FAST_LINK_BYTES_PER_S
    return min(device.peer_bytes_per_s, SLOW_LINK_BYTES_PER_S)


def padded(sequences: float) -> float:
    """Round up to the captured batch that a step of that many sequences runs in."""
    return float(ceil(sequences)) if sequences <= GRAPH_STEP // 2 else float(GRAPH_STEP * ceil(sequences / GRAPH_STEP))


def terms(
    shape: StepShape,
    device: Device,
    *,
    concurrency: float,
    running_limit: float,
    cache_bytes_per_sequence: float,
    input_tokens: float,
    output_tokens: float,
    data_parallel: int = 1,
    prefill_counted: bool = True,
) -> Terms:
    """Reduce an operating point to numbers. `running_limit` is what one engine can run at once.

    A pipeline keeps its stages busy with one batch each, so a batch holds a share of the sequences.
    """
    engines = min(float(data_parallel), concurrency)
    running = max(1.0, min(concurrency / engines, running_limit))
    batch = max(1.0, running / shape.pipeline_parallel)
    wide = shape.tensor_parallel > 1
    return Terms(
        sequences=running,
        padded=padded(batch),
        dense_bytes=shape.dense_bytes,
        expert_bytes=shape.expert_bytes,
        covered_share=1 - (1 - shape.expert_share) ** batch,
        cache_bytes=cache_bytes_per_sequence / shape.pipeline_parallel,
        weights_per_token=shape.weights_per_token,
        expert_weights=shape.expert_weights,
        head_weights=shape.head_weights,
        layers=float(shape.layers),
        collectives=2.0 * shape.layers if wide else 0.0,
        collective_bytes=4.0 * shape.hidden,
        attention_weights=shape.attention_weights * input_tokens / 2,
        narrow=float(shape.narrow),
        tokens_per_chunk=float(shape.tokens_per_chunk),
        bandwidth=device.bandwidth_bytes_per_s or 0.0,
        flops=device.flops_per_s or 0.0,
        link=link_rate(device),
        input_tokens=float(input_tokens),
        output_tokens=float(output_tokens),
        engines=engines,
        waiting=(running if prefill_counted else running - 1) / shape.pipeline_parallel,
    )


def step_s(point: Terms, constants: Rates) -> float:
    """Give the seconds of one decoding step."""
    bandwidth = constants.bandwidth_share * point.bandwidth
    read = (
        point.dense_bytes
        + constants.expert_reads * point.expert_bytes * point.covered_share
        + constants.cache_reads * point.sequences * point.cache_bytes
    )
    memory = read / bandwidth
    flops = constants.decode_flops_share * _matrix_flops(point, constants)
    multiplied = point.weights_per_token + (1 / constants.expert_decode_flops - 1) * point.expert_weights
    compute = 2 * multiplied * point.padded / flops
    collective = constants.collective_s + point.padded * point.collective_bytes / (constants.link_share * point.link)
    busy: float = (memory**2 + compute**2) ** 0.5
    launch = point.layers * constants.layer_s + point.collectives * collective
    return busy + launch + point.padded * constants.sequence_s


def prefill_token_s(point: Terms, constants: Rates) -> float:
    """Give the seconds a prompt token adds: arithmetic, its share of reading all weights per chunk, and all-reduces."""
    bandwidth = constants.bandwidth_share * point.bandwidth
    flops = constants.prefill_flops_share * _matrix_flops(point, constants)
    weights = (point.dense_bytes + constants.expert_reads * point.expert_bytes) / bandwidth / point.tokens_per_chunk
    collective = point.collectives * point.collective_bytes / (constants.link_share * point.link)
    multiplied = point.weights_per_token - point.head_weights + point.attention_weights
    multiplied += (1 / constants.expert_prefill_flops - 1) * point.expert_weights
    return 2 * multiplied / flops + weights + collective


def request_s(point: Terms, constants: Rates) -> float:
    """Give the seconds one request's prefill takes from the engine."""
    return point.input_tokens * prefill_token_s(point, constants) + point.layers * constants.request_layer_s


def output_tokens_per_s(point: Terms, constants: Rates) -> float:
    """Give the aggregate rate of all engines."""
    busy = point.output_tokens * step_s(point, constants) + point.waiting * request_s(point, constants)
    return point.engines * point.sequences * point.output_tokens / busy


def time_per_token_s(point: Terms, constants: Rates) -> float:
    """Give the seconds between two tokens of one request, the others' prefill in between included."""
    share = (point.sequences - 1) * request_s(point, constants) / point.output_tokens
    return step_s(point, constants) + share


def ttft_s(point: Terms, constants: Rates, *, concurrency: float) -> float:
    """Give the seconds to a request's first token: its prefill, what it waits for of the others', its turn.

    Requests beyond those that run wait for a place, on average half of the excess at the rate places come free.
    """
    own = request_s(point, constants) + step_s(point, constants)
    wait = constants.queue_share * (point.sequences - 1) * request_s(point, constants)
    excess = max(0.0, concurrency / point.engines - point.sequences)
    duration = point.output_tokens * time_per_token_s(point, constants) + own
    return own + wait + excess / point.sequences * duration


def _matrix_flops(point: Terms, constants: Rates) -> float:
    return point.flops * (1 + (constants.narrow_flops - 1) * point.narrow)
