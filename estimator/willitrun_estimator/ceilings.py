"""Scores that no plan of a quantization can exceed, from cheap to sharp, so that most need not be worked out.

The cheap one needs no sums: a quantization never stores a weight in fewer bits than its base type has, and no device
reads faster than its data sheet says. The sharp one sums the weights and asks the speed model.
"""

from __future__ import annotations

from willitrun_catalog.block_types import row_bytes
from willitrun_catalog.mixes import BASE_TYPES
from willitrun_estimator.bounds import BOUND_SLACK, extremes, fastest, together
from willitrun_estimator.device import Devices
from willitrun_estimator.prepared import Elements
from willitrun_estimator.question import Question
from willitrun_estimator.score import quality_factor
from willitrun_estimator.setup import least_overlap
from willitrun_estimator.weights import WeightProfile

BLOCK = 256
"""Elements of the largest block: whole blocks of every type."""
LEAST_SHARE = 0.99
"""Of the base type's bits, what a mix stores at least on average; a test holds it against the catalog."""
MOST_OF_PEAK = 1.25
"""Rates above a data sheet's that are allowed for: fitted costs of a family may come out below the peak's."""


def cheap(question: Question, quant: str) -> float:
    """Return a bound from quality and size alone; 0 where memory cannot hold even that size."""
    quality = quality_factor(question.kl_divergence(quant, question.space.kv_types[0]))
    context = question.space.contexts[-1]
    bits = least_bits(question, quant)
    if bits is None:
        return question.objective.at_most(quality, context)
    elements = question.prepared.elements(quant)
    if elements.held * bits / 8 > room_bytes(question.devices):
        return 0.0
    seconds = least_seconds(question.devices, elements, bits / 8)
    if seconds is None:
        return question.objective.at_most(quality, context)
    rate = max(question.lens.concurrency, question.request.concurrency) * MOST_OF_PEAK / seconds
    return question.objective.judge(quality=quality, rate=rate, ttft_s=0.0, context_tokens=context)


def least_bits(question: Question, quant: str) -> float | None:
    """Return bits per weight that a quantization does not go below, None where a file or the makers fixed types."""
    base = BASE_TYPES.get(quant)
    if base is None or question.spec.native_type == "mxfp4" or question.spec.quant is not None:
        return None
    return LEAST_SHARE * 8 * row_bytes(base, BLOCK) / BLOCK


def room_bytes(devices: Devices) -> int:
    """Return what there is for weights: RAM, and the memory of GPUs that have their own."""
    return devices.host.ram_available_bytes + sum(gpu.memory_free_bytes for gpu in devices.gpus if not gpu.unified)


def least_seconds(devices: Devices, elements: Elements, element_bytes: float) -> float | None:
    """Return the seconds of reading one token's weights at peak rates; what the GPUs cannot hold is read by the host.

    Experts leave the GPUs first, because a token reads few of them. None where a bandwidth is unknown.
    """
    host = devices.host.bandwidth_bytes_per_s
    rates = [gpu.bandwidth_bytes_per_s for gpu in devices.gpus]
    if not host or not all(rates):
        return None
    fastest = max([host, *(rate for rate in rates if rate)])
    room = sum(gpu.memory_free_bytes for gpu in devices.gpus) / element_bytes
    over = max(0.0, elements.held - room)
    moved = min(over, elements.experts)
    left = moved * elements.used_share + over - moved
    return element_bytes * (max(0.0, elements.read - left) / fastest + left / host)


def sharp(question: Question, quant: str) -> float:
    """Return a bound by the weights, summed; 0 where memory cannot hold them."""
    weights, gpus = question.weights(quant), question.devices.gpus
    if weights.tensor_bytes - weights.unloaded_bytes > room_bytes(question.devices):
        return 0.0
    space = question.space
    lone: list[tuple[int, ...]] = [(kind,) for kind in dict.fromkeys(space.kinds)]
    over = held_bytes(weights) - sum(gpu.memory_free_bytes for gpu in gpus) if gpus else 0
    experts, movable = weights.cumulative_expert_bytes[-1], held_bytes(weights) - weights.output_bytes
    first = [question.setup(quant, space.kv_types[0], space.ubatches[0], one) for one in lone or [()]]
    step = together([extremes(one, rates=True) for one in first]).least(over, experts, movable)
    waits: list[float | None] = []
    for ubatch in space.ubatches:
        setups = [question.setup(quant, space.kv_types[0], ubatch, one) for one in lone or [()]]
        wait = together([extremes(one, rates=False) for one in setups]).least(over, experts, movable)
        overlap = least_overlap(len(gpus) + 1 if gpus else 1, ubatch, question.purpose.prompt_tokens)
        waits.append(None if wait is None else wait * overlap)
    wait = fastest(waits)
    return question.objective.judge(
        quality=quality_factor(question.kl_divergence(quant, space.kv_types[0])),
        rate=None if step is None else BOUND_SLACK / step,
        ttft_s=None if wait is None else wait / BOUND_SLACK,
        context_tokens=space.contexts[-1],
    )


def may_be_whole(question: Question, quant: str) -> bool:
    """Tell whether everything that GPUs hold could fit on them."""
    gpus = question.devices.gpus
    return bool(gpus) and held_bytes(question.weights(quant)) <= sum(gpu.memory_free_bytes for gpu in gpus)


def held_bytes(weights: WeightProfile) -> int:
    """Return the bytes of what can be on GPUs: blocks and head."""
    return weights.cumulative_resident_bytes[-1] + weights.cumulative_expert_bytes[-1] + weights.output_bytes
