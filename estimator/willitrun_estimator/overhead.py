"""Memory beyond llama.cpp's own buffers, as named lines with their basis.

GPU: the driver's context, lazily loaded kernels, library workspaces and pools. Host: what the server keeps in RAM.
Sources of the constants: `ggml_backend_cuda_get_device_memory` against the driver's counters
(https://github.com/ggml-org/llama.cpp/pull/23604), memory breakdown rows of logs, and whole-card use of one model on
many cards (https://github.com/sudoingX/qwen38-mtp/pull/13); see estimator/README.md for the fit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_estimator import cache
from willitrun_estimator.compute import next_token

if TYPE_CHECKING:
    from willitrun_estimator.device import Backend, Device
    from willitrun_estimator.placement import Settings
    from willitrun_estimator.weights import WeightProfile

MIB = 1 << 20

Line = tuple[str, int, str]
"""Name, bytes, basis."""

IDLE: dict[Backend, tuple[float, float]] = {
    "cuda": (39.0, 2.75),
    "rocm": (38.0, 4.0),
    "vulkan": (54.0, 0.0),
    "metal": (0.0, 0.0),
    "cpu": (0.0, 0.0),
}
"""MiB = constant + slope x multiprocessors once a context exists: 15 NVIDIA cards of 13 to 188 SM within 25 MiB."""

AFTER_USE: dict[Backend, tuple[float, float]] = {
    "cuda": (93.0, 3.2),
    "rocm": (89.0, 5.0),
    "vulkan": (239.0, 0.0),
    "metal": (0.0, 0.0),
    "cpu": (0.0, 0.0),
}
"""The same after the first prompts: 11 NVIDIA cards within 106 MiB, 7 AMD GPUs of 40 to 256 CU within 190 MiB.

Vulkan's is the largest peak beyond the plan of a dense model (26 to 239 MiB). Metal's allocations are its buffers.
"""

UNKNOWN_MULTIPROCESSORS = 192
"""Assumed where the count is unknown: as many as the largest cards have, so that the reserve is never short."""

VULKAN_EXPERT_PREFILL_BYTES = 1901 * MIB
"""Peak of the expert multiplication's own buffer at 2048 tokens a micro-batch (gemma-4-26B-A4B, RTX 3090)."""

CHECKPOINTS = 32
"""`--ctx-checkpoints`: snapshots of windowed caches and states that llama-server keeps per slot."""
PROMPT_CACHE_BYTES = 8192 * MIB
"""`--cache-ram`: the most that llama-server keeps of earlier prompts in RAM."""


def context_bytes(gpu: Device, *, used: bool = True) -> int:
    """Give what the driver's context holds: after real use, or idle right after its creation."""
    return _context(AFTER_USE if used else IDLE, gpu.backend, gpu.multiprocessors)


def _context(table: dict[Backend, tuple[float, float]], backend: Backend, multiprocessors: int | None) -> int:
    constant, slope = table[backend]
    count = UNKNOWN_MULTIPROCESSORS if multiprocessors is None else multiprocessors
    return int((constant + slope * count) * MIB)


def runtime_notes(
    gpu: Device, weights: WeightProfile | None = None, settings: Settings | None = None
) -> tuple[Line, ...]:
    """List what a GPU holds beyond the buffers."""
    routed = weights is not None and settings is not None and weights.cumulative_expert_bytes[-1] > 0
    ubatch = settings.ubatch if routed and settings is not None and gpu.backend == "vulkan" else 0
    return _runtime(gpu.backend, gpu.multiprocessors, ubatch)


@lru_cache(maxsize=512)
def _runtime(backend: Backend, multiprocessors: int | None, expert_ubatch: int) -> tuple[Line, ...]:
    """List it for a kind of GPU; `expert_ubatch` where Vulkan multiplies experts."""
    constant, slope = AFTER_USE[backend]
    if not constant:
        return ()
    basis = f"{constant:g} MiB + {slope:g} MiB per multiprocessor of {backend}, measured after use"
    if multiprocessors is None and slope:
        basis = f"number of multiprocessors unknown, {UNKNOWN_MULTIPROCESSORS} assumed: an upper bound; {basis}"
    lines: list[Line] = [("GPU context and kernels", _context(AFTER_USE, backend, multiprocessors), basis)]
    if expert_ubatch:
        scratch = VULKAN_EXPERT_PREFILL_BYTES * expert_ubatch // 2048
        lines.append(
            ("expert prefill scratch", scratch, "Vulkan allocates it while it runs; scaled from one measurement")
        )
    return tuple(lines)


def runtime_bytes(gpu: Device, weights: WeightProfile | None = None, settings: Settings | None = None) -> int:
    """Sum what a GPU holds beyond the buffers."""
    return sum(amount for _, amount, _ in runtime_notes(gpu, weights, settings))


def projector_bytes(weights: WeightProfile) -> int:
    """Give the vision or audio projector's weights: the file's size, or two bytes for each of its parameters."""
    return weights.spec.projector_bytes or 2 * weights.spec.non_text_params


ROLLED_BACK = frozenset(
    (
        *("bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"),
        *("qwen35", "qwen35moe", "qwen4exp"),
    ),
)
"""Architectures whose states are kept for every drafted token (`llm_arch_supports_rs_rollback`, src/llama-arch.cpp)."""
GATHERED_ON_GPU = frozenset({"F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"})
"""Types of which a GPU gathers rows, so that a block's copy of the token table can live there."""


def draft_bytes(weights: WeightProfile, settings: Settings, drafts: int = 3, *, gpus: int = 1) -> tuple[Line, ...]:
    """List what the model's own next-token head takes when it drafts (`--spec-type draft-mtp`), everything offloaded.

    On the last GPU its block's weights, an f16 cache of every next-token block, and the compute buffer of a context of
    its own; on each GPU one more set of states per drafted token and slot; in RAM the block's copy of the token table
    and the context's inputs. Empty for a model without such a head, or whose architecture llama.cpp has no graph for
    (`llama_init_from_model` and `create_memory` with LLAMA_CONTEXT_TYPE_MTP, common/speculative.cpp).
    """
    spec = weights.spec
    if not spec.mtp_layers or spec.architecture not in next_token.DRAFTING:
        return ()
    cells, streams = cache.stream_cells(settings)
    plain = structs.replace(settings, kv_type_k="f16", kv_type_v="f16")
    row = sum(cache.layer_row_bytes(spec, next_token.drafting_layer(spec), plain).values())
    gpu, host = next_token.draft_compute_bytes(spec, settings, gpus=gpus)
    table = 0 if weights.quant in GATHERED_ON_GPU else next_token.table_bytes(weights)
    states = cache.state_bytes(spec, settings) * drafts if spec.architecture in ROLLED_BACK else 0
    lines = (
        ("draft head weights", weights.unloaded_bytes - table, "next-token blocks of the file"),
        ("draft head cache", row * cells * streams * spec.mtp_layers, "f16 K and V of each next-token block"),
        ("draft rollback states", states, "one state per drafted token and slot"),
        ("draft compute buffer", gpu, "llama.cpp's allocator replayed on the draft's graph"),
        ("draft token table, in RAM", table, "the next-token block's copy of the token table"),
        ("draft inputs, in RAM", host, "llama.cpp's allocator replayed on the draft's graph"),
    )
    return tuple(line for line in lines if line[1])


def option_notes(weights: WeightProfile, settings: Settings, *, gpus: int) -> tuple[Line, ...]:
    """List what options would take that no plan sets: a projector for images or sound, drafting with the own head.

    No total contains them. What drafts is on the last GPU, but for what says that it is in RAM.
    """
    lines = [("projector", projector_bytes(weights), "weights that read images or sound (--mmproj), on the first GPU")]
    for name, amount, basis in draft_bytes(weights, settings, gpus=gpus):
        lines.append((name, amount, f"{basis} (--spec-type draft-mtp)"))
    return tuple(line for line in lines if line[1])


def host_notes(settings: Settings, *, checkpoint_bytes: int = 0, repacked_bytes: int = 0) -> tuple[Line, ...]:
    """List what may further occupy host memory; none of it is needed to start, so no total contains it."""
    lines: list[Line] = [
        (
            "prompt cache, at most",
            PROMPT_CACHE_BYTES,
            "llama-server --cache-ram, 8192 MiB by default; 0 switches it off",
        )
    ]
    if checkpoint_bytes:
        lines.append(
            (
                "context checkpoints, at most",
                checkpoint_bytes * CHECKPOINTS * max(1, settings.parallel),
                f"{CHECKPOINTS} per slot (--ctx-checkpoints), each the windowed caches and states",
            )
        )
    if repacked_bytes:
        lines.append(
            (
                "repacked weights",
                repacked_bytes,
                "part of the weights: rearranged for the CPU, cannot be dropped like mapped files",
            )
        )
    return tuple(lines)


REPACKED_TYPES = frozenset({"Q4_0", "Q4_K", "Q2_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"})
"""Types that some CPU has a repacked layout for (ggml/src/ggml-cpu/repack.cpp)."""


def repacked_bytes(weights: WeightProfile, gpus: int, settings: Settings) -> int:
    """Give an upper bound of the weights that a CPU-only run rearranges in memory; 0 with a GPU or `--no-repack`."""
    if gpus or not settings.repack:
        return 0
    eligible = sum(amount for kind, amount in weights.type_bytes if kind in REPACKED_TYPES)
    return max(0, min(eligible, weights.tensor_bytes - weights.unloaded_bytes - weights.embedding_bytes))
