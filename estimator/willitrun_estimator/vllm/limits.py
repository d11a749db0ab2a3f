"""What holds a vLLM setup back, each in one sentence with its numbers."""

from __future__ import annotations

from willitrun_catalog.model import Attention, ModelSpec
from willitrun_estimator.device import Device
from willitrun_estimator.plan import Limit, Serving
from willitrun_estimator.vllm import cache
from willitrun_estimator.vllm.batching import FAST_LINK_FROM
from willitrun_estimator.vllm.kernels import Kernel, capability
from willitrun_estimator.vllm.memory import SAFETY_UNIFIED_BYTES
from willitrun_estimator.vllm.settings import SEQUENCE_STEP, Setup
from willitrun_estimator.vllm.weights import is_latent
from willitrun_probe.units import format_bytes

BFLOAT16_FROM = 8.0


def limits_of(
    spec: ModelSpec, setup: Setup, how: Kernel, gpus: tuple[Device, ...], serving: Serving | None
) -> tuple[Limit, ...]:
    """List what a reader should know before starting this setup."""
    found = []
    split, device = setup.split, gpus[0]
    if how.how != "native":
        found.append(Limit(code="weight-only" if how.how == "weight-only" else "emulated", message=how.reason))
    if setup.checkpoint.method == "bitsandbytes":
        found.append(
            Limit(
                code="speed-unknown",
                message=(
                    f"the speed of {setup.checkpoint.name} in vLLM is not known here; it may be slower than 16 bits, "
                    "AWQ or GPTQ checkpoints are faster"
                ),
            )
        )
    if device.backend == "cuda" and capability(device) < BFLOAT16_FROM:
        found.append(
            Limit(code="half-only", message=f"{device.name} has no bfloat16: the model runs in float16 (--dtype half)")
        )
    if setup.max_num_seqs % SEQUENCE_STEP:
        found.append(
            Limit(
                code="sequences-off-step",
                message=(
                    f"--max-num-seqs {setup.max_num_seqs} is not a multiple of 8: steps run in captured batches of 8, "
                    f"so {SEQUENCE_STEP * -(-setup.max_num_seqs // SEQUENCE_STEP)} costs the same per step"
                ),
            )
        )
    heads = max((m.kv_heads for x in set(spec.layers) for m in x.mixers if isinstance(m, Attention)), default=0)
    if split.tensor_parallel > 1 and is_latent(spec):
        found.append(
            Limit(
                code="latent-replicated",
                message=(
                    f"the latent cache is not split over tensor-parallel ranks: {split.tensor_parallel} GPUs hold the "
                    "same tokens; data parallel or --decode-context-parallel-size would hold more"
                ),
            )
        )
    elif heads and split.tensor_parallel > heads:
        found.append(
            Limit(
                code="kv-replicated",
                message=f"{heads} KV heads are repeated over {split.tensor_parallel} ranks: no room gained for tokens",
            )
        )
    slow = device.peer_bytes_per_s is not None and device.peer_bytes_per_s < FAST_LINK_FROM
    if split.tensor_parallel > 1 and slow:
        found.append(
            Limit(
                code="slow-links",
                message=(
                    f"tensor parallel over links of {(device.peer_bytes_per_s or 0) / 1e9:.0f} GB/s: every layer waits "
                    "for two all-reduces"
                ),
            )
        )
    if any(cache.has_state(layout) for layout in setup.layouts):
        found.append(
            Limit(
                code="state-blocks",
                message=(
                    f"every sequence holds {format_bytes(setup.layouts[0].state_bytes)} of recurrent state a layer: "
                    f"--max-num-seqs may not exceed the pool's {setup.blocks} blocks"
                ),
            )
        )
    if device.unified:
        found.append(
            Limit(
                code="unified-memory",
                message=(
                    "GPU and host share memory: vLLM takes what the host uses meanwhile for its own, so the cache "
                    f"may be {format_bytes(SAFETY_UNIFIED_BYTES)} smaller or larger from start to start"
                ),
            )
        )
    found += _wall(setup, serving)
    return tuple(found)


def _wall(setup: Setup, serving: Serving | None) -> list[Limit]:
    """Where the curve goes flat because the pool or `--max-num-seqs` is full."""
    if serving is None:
        return []
    flat = next(
        (
            c
            for c, now, then in zip(
                serving.concurrency[1:], serving.output_tokens_per_s[1:], serving.output_tokens_per_s, strict=False
            )
            if now < then * 1.01
        ),
        None,
    )
    if flat is None:
        return []
    return [
        Limit(
            code="capacity-wall",
            message=(
                f"beyond {flat // 2} users requests queue: --max-num-seqs is {setup.max_num_seqs} and the pool holds "
                f"{setup.blocks} blocks"
            ),
        )
    ]
