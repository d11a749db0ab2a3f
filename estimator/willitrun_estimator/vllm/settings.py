"""Engine settings for one way to split the GPUs: lengths, batch sizes and utilization that are sure to start.

Order: the budget of every stage, then the pool, then one request of full length in it with a margin. Where that does
not fit, sequences, then batched tokens, then the length are lowered; what the user fixed stays.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from msgspec import Struct

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Device
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.request import Request
from willitrun_estimator.vllm import cache, memory
from willitrun_estimator.vllm.batching import FAST_LINK_FROM
from willitrun_estimator.vllm.cache import CacheLayout
from willitrun_estimator.vllm.formats import Format, expert_tile
from willitrun_estimator.vllm.memory import Budget
from willitrun_estimator.vllm.parallel import Split
from willitrun_estimator.vllm.rates import gpu_class
from willitrun_estimator.vllm.versions import BatchDefaults, Rules, batch_defaults
from willitrun_estimator.vllm.weights import StageWeights, stage_weights
from willitrun_probe.units import GIB

FREE_MARGIN_BYTES = round(0.3 * GIB)
"""Left beside the budget when the utilization is derived from free memory; `--margin` takes its place."""
UNIFIED_FREE_MARGIN_BYTES = 3 * GIB
"""The same where GPU and host share memory: by the time vLLM looks, its own processes hold 2.6 to 2.7 GiB of it
(GB10, 0.28: 113.69 of 116.43 and 29.83 of 32.40 GiB, https://github.com/llamastash/llamastash/pull/81)."""
SEQUENCE_STEP = 8
"""Batches run in captured sizes, which come in steps of 8."""
LEAST_CONTEXT = 2048
LEAST_BATCHED_TOKENS = 2048
TOWER_BATCHED_TOKENS = 4096
"""Holds the largest single item of the vision models whose items are not cut."""
WHOLE_ITEM_TOKENS = {"gemma3": 256, "gemma4": 2496}
"""Tokens of one image or video that a batch must take whole: images attend in both directions
(https://github.com/vllm-project/vllm/issues/42687); vLLM does not start with less."""
_SEQUENCES = {"interactive": 8, "balanced": 32, "light-api": 32, "scale-out": 1024}
"""Sequences that a mode asks for, before the pool and the defaults cap them."""


class Setup(Struct, frozen=True, kw_only=True):
    """One split with settings that start."""

    split: Split
    checkpoint: Format
    stages: tuple[StageWeights, ...]
    layouts: tuple[CacheLayout, ...]
    budgets: tuple[Budget, ...]
    """Of a rank of every stage."""
    utilization: float
    context_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_type: str
    enforce_eager: bool
    prefix_caching: bool
    towers: bool
    blocks: int
    """Of the pool, as expected."""
    blocks_per_request: int
    """Of full length."""
    safe_tokens: int
    """The longest `--max-model-len` that is sure to start with the other settings."""
    longest_tokens: int
    """The longest that starts if every estimate is right."""


class Shortage(Struct, frozen=True, kw_only=True):
    """Why nothing starts: what is needed on the tightest GPU and what there is."""

    needed_bytes: int
    available_bytes: int
    reason: str


def settle(
    spec: ModelSpec,
    checkpoint: Format,
    gpus: tuple[Device, ...],
    split: Split,
    request: Request,
    rules: Rules,
    *,
    wanted_tokens: int,
    kv_type: str,
    towers: bool = True,
) -> Setup | Shortage:
    """Find settings for a split that are sure to start, or say what is missing. `gpus` are those of the split."""
    smallest = min(gpus, key=memory.cuda_total_bytes)
    total = memory.cuda_total_bytes(smallest)
    usual = UNIFIED_FREE_MARGIN_BYTES if smallest.unified else FREE_MARGIN_BYTES
    margin = usual if request.margin_bytes is None else request.margin_bytes
    free = min(gpu.memory_free_bytes for gpu in gpus) - (0 if smallest.unified else memory.CONTEXT_BYTES)
    utilization = request.gpu_memory_utilization
    if utilization is None:
        # vLLM compares with what is free after its CUDA context exists.
        utilization = min(rules.gpu_memory_utilization, floor(100 * (free - margin) / total) / 100)
    elif utilization * total > free:
        return Shortage(
            needed_bytes=round(utilization * total),
            available_bytes=free,
            reason=f"of memory that is free once CUDA is up, for a utilization of {utilization:g},",
        )
    stages = stage_weights(
        spec,
        checkpoint,
        tensor_parallel=split.tensor_parallel,
        pipeline_parallel=split.pipeline_parallel,
        towers=towers,
        expert_tile=expert_tile(rules.version, smallest.family),
    )
    layouts = tuple(
        cache.cache_layout(
            spec,
            rules,
            tensor_parallel=split.tensor_parallel,
            kv_type=kv_type,
            stage=(stage.first_layer, stage.last_layer),
        )
        for stage in stages
    )
    context = request.context or min(spec.max_context_tokens, wanted_tokens)
    defaults = batch_defaults(
        rules.version,
        memory_total_bytes=total,
        name=smallest.name,
        compute_capability=smallest.compute_capability,
    )
    sequences, tokens = batch_sizes(spec, request, defaults, towers=towers)
    least_tokens = TOWER_BATCHED_TOKENS if towers and spec.non_text_params else LEAST_BATCHED_TOKENS
    shortage = None
    for seqs, batched in _ladder(request, sequences, tokens, least_tokens):
        budgets = stage_budgets(
            spec, checkpoint, smallest, stages, split, rules,
            total_bytes=total, utilization=utilization, max_num_seqs=seqs, max_num_batched_tokens=batched,
            enforce_eager=request.enforce_eager, towers=towers,
        )  # fmt: skip
        found = _fitted(
            spec, rules, layouts, budgets, split,
            context=context, fixed=request.context is not None, least=request.min_context or LEAST_CONTEXT,
            seqs=seqs, batched=batched, fixed_seqs=request.max_num_seqs is not None,
            margin=margin_bytes(spec, split, rules, unified=smallest.unified),
        )  # fmt: skip
        if isinstance(found, Shortage):
            shortage = found if shortage is None or found.available_bytes > shortage.available_bytes else shortage
            continue
        length, allowed, blocks, per_request, safe, longest = found
        return Setup(
            split=split,
            checkpoint=checkpoint,
            stages=stages,
            layouts=layouts,
            budgets=budgets,
            utilization=utilization,
            context_tokens=length,
            max_num_seqs=allowed,
            max_num_batched_tokens=batched,
            kv_type=kv_type,
            enforce_eager=request.enforce_eager,
            prefix_caching=caches_prefixes(layouts, rules),
            towers=towers,
            blocks=blocks,
            blocks_per_request=per_request,
            safe_tokens=safe,
            longest_tokens=longest,
        )
    assert shortage is not None  # noqa: S101 - the ladder has at least one step
    return shortage


def stage_budgets(
    spec: ModelSpec,
    checkpoint: Format,
    device: Device,
    stages: tuple[StageWeights, ...],
    split: Split,
    rules: Rules,
    *,
    total_bytes: int,
    utilization: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    enforce_eager: bool,
    towers: bool,
) -> tuple[Budget, ...]:
    """Budget a rank of every stage."""
    fast = device.peer_bytes_per_s is None or device.peer_bytes_per_s >= FAST_LINK_FROM
    libraries = memory.libraries_bytes(
        rules,
        backend=device.backend,
        family=device.family,
        tensor_parallel=split.tensor_parallel,
        pipeline_parallel=split.pipeline_parallel,
        fast_links=fast and gpu_class(device) in {"hbm", "cdna3"},
    )
    budgets = []
    for stage in stages:
        activation = memory.activation_bytes(
            spec,
            checkpoint,
            rules,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            tensor_parallel=split.tensor_parallel,
            has_head=stage.last_layer == spec.block_count,
            towers=towers and stage.first_layer == 0,
        )
        graphs = memory.graphs_bytes(
            max_num_seqs=max_num_seqs,
            enforce_eager=enforce_eager,
            layers=stage.last_layer - stage.first_layer,
        )
        loaded = memory.ROCM_LOAD_BYTES if device.backend == "rocm" else 0
        budgets.append(
            memory.budget(
                total_bytes=total_bytes,
                utilization=utilization,
                weights_bytes=stage.rank.total_bytes + loaded,
                libraries=libraries,
                activation=activation,
                graphs=graphs,
                rules=rules,
            )
        )
    return tuple(budgets)


def sequences_for(request: Request, default: int) -> int:
    """Give the sequences to allow: the mode's or twice the asked concurrency, a multiple of 8, at most the default."""
    wanted = max(_SEQUENCES[request.mode], 2 * request.concurrency)
    return min(default, SEQUENCE_STEP * -(-wanted // SEQUENCE_STEP))


def batch_sizes(spec: ModelSpec, request: Request, defaults: BatchDefaults, *, towers: bool) -> tuple[int, int]:
    """Give sequences and batched tokens to begin with: a batch takes at least one token of every sequence.

    A model with a vision tower gets room for one whole item, which vLLM does not cut for prefix attention (Gemma).
    Raises EstimatorError for fixed values that contradict each other or such an item.
    """
    tokens = defaults.max_num_batched_tokens
    if towers and spec.non_text_params:
        tokens = max(tokens, TOWER_BATCHED_TOKENS)
    sequences = request.max_num_seqs or sequences_for(request, defaults.max_num_seqs)
    if request.max_num_batched_tokens is None:
        return sequences, max(tokens, sequences)
    tokens = request.max_num_batched_tokens
    item = WHOLE_ITEM_TOKENS.get(spec.architecture, 0) if towers and spec.non_text_params else 0
    if tokens < item:
        raise EstimatorError(
            f"{spec.title} does not start with --max-num-batched-tokens {tokens}: one image or video takes {item}",
            f"take at least {item}",
        )
    if request.max_num_seqs is not None and sequences > tokens:
        raise EstimatorError(
            f"vLLM does not start with --max-num-seqs {sequences} above --max-num-batched-tokens {tokens}",
            "raise the batched tokens or lower the sequences",
        )
    return min(sequences, tokens), tokens


def margin_bytes(spec: ModelSpec, split: Split, rules: Rules, *, unified: bool = False) -> int:
    """Give what a plan keeps beyond the estimate so that its start cannot fail."""
    if unified:
        return memory.SAFETY_UNIFIED_BYTES
    wide = split.tensor_parallel > 1 or spec.non_text_params > 0
    return memory.SAFETY_WIDE_BYTES if wide or rules.subtracts_graphs else memory.SAFETY_BYTES


def caches_prefixes(layouts: tuple[CacheLayout, ...], rules: Rules) -> bool:
    """Tell whether prefix caching is on by default: with recurrent state from 0.26 on, without any attention never."""
    if not any(cache.has_state(layout) for layout in layouts):
        return True
    return rules.version >= (0, 26) and all(layout.attention_block_tokens for layout in layouts)


def _ladder(request: Request, sequences: int, tokens: int, least: int) -> list[tuple[int, int]]:
    """List the settings to try, from the wanted ones down: first fewer sequences, then fewer batched tokens."""
    seqs = [sequences]
    while request.max_num_seqs is None and seqs[-1] > SEQUENCE_STEP:
        seqs.append(max(SEQUENCE_STEP, SEQUENCE_STEP * (seqs[-1] // 2 // SEQUENCE_STEP)))
    batched = [tokens]
    while request.max_num_batched_tokens is None and batched[-1] > least:
        batched.append(max(least, batched[-1] // 2))
    steps = [(count, tokens) for count in seqs]
    return steps + [(seqs[-1], count) for count in batched[1:]]


def _fitted(
    spec: ModelSpec,
    rules: Rules,
    layouts: tuple[CacheLayout, ...],
    budgets: tuple[Budget, ...],
    split: Split,
    *,
    context: int,
    fixed: bool,
    least: int,
    seqs: int,
    batched: int,
    fixed_seqs: bool,
    margin: int,
) -> tuple[int, int, int, int, int, int] | Shortage:
    """Give length, sequences, blocks, blocks per request, and the longest safe and possible length of settings."""
    prefix = caches_prefixes(layouts, rules)
    pools = tuple(one.pool_bytes for one in budgets)
    blocks = cache.pool_blocks(layouts, pools)
    safe = cache.pool_blocks(layouts, tuple(pool - margin for pool in pools))

    def per_request(length: int) -> int:
        return max(
            cache.blocks_per_request(
                layout, rules, context_tokens=length, max_num_batched_tokens=batched, prefix_caching=prefix
            )
            for layout in layouts
        )

    longest = _longest(per_request, safe - 1, spec.max_context_tokens)
    length = context if fixed else min(context, longest)
    if min(pools) < margin or length > longest or length < min(least, context):
        worst = min(range(len(budgets)), key=lambda i: budgets[i].pool_bytes)
        needed = (per_request(length if fixed else min(least, context)) + 1) * layouts[worst].block_bytes
        one = budgets[worst]
        return Shortage(
            needed_bytes=one.requested_bytes - one.pool_bytes + needed + margin,
            available_bytes=one.requested_bytes,
            reason=f"on each of {split.ranks} GPUs" if split.ranks > 1 else "on the GPU",
        )
    if any(cache.has_state(layout) for layout in layouts) and seqs > safe:
        if fixed_seqs:
            return Shortage(
                needed_bytes=seqs * layouts[0].block_bytes,
                available_bytes=max(0, safe) * layouts[0].block_bytes,
                reason=f"of cache for --max-num-seqs {seqs} ({safe} blocks of recurrent state fit)",
            )
        seqs = SEQUENCE_STEP * (safe // SEQUENCE_STEP) or safe
    possible = _longest(per_request, blocks - 1, spec.max_context_tokens)
    return length, seqs, blocks, per_request(length), longest, possible


def _longest(per_request: Callable[[int], int], blocks: int, limit: int) -> int:
    """Give the longest request that fits that many blocks, up to a limit; 0 when none does."""
    if per_request(limit) <= blocks:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if per_request(middle) <= blocks:
            low = middle
        else:
            high = middle
    return low
