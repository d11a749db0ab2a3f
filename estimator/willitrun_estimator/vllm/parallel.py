"""How many GPUs work on one copy of the model, and how: tensor, pipeline and data parallel.

Rules: `ParallelConfig` and `ModelConfig.verify_with_parallel_config` of the released wheels (heads, KV heads,
vocabulary),
`MarlinLinearKernel` and the block-FP8 checks (widths per rank in whole groups of 128), and
https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html (tensor parallel inside a node, pipeline across).
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_catalog.model import Attention, Dense, Ffn, Mixer, Mla, ModelSpec, Moe, Recurrent
from willitrun_estimator.device import Device
from willitrun_estimator.vllm.batching import FAST_LINK_BYTES_PER_S, link_rate
from willitrun_estimator.vllm.formats import PAD_VOCAB_ROWS, Format
from willitrun_estimator.vllm.weights import pad

GROUP_WIDTH = 128
"""Weights per scale of AWQ and GPTQ, and the block of FP8 checkpoints: a rank must hold whole ones."""
_GROUPED = frozenset({"awq", "gptq", "fp8"})


class Split(Struct, frozen=True, kw_only=True):
    """How the GPUs are used. `gpus` are positions in `Devices.gpus`."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    gpus: tuple[int, ...]
    expert_parallel: bool = False
    """`--enable-expert-parallel`: whole experts per rank, where their width does not divide."""

    @property
    def ranks(self) -> int:
        """GPUs in use."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


def indivisible(spec: ModelSpec, checkpoint: Format, tensor_parallel: int) -> str | None:
    """Say why a model cannot be split over that many tensor-parallel ranks; None where it can.

    Expert widths are not looked at: expert parallelism takes their place (`needs_expert_parallel`).
    """
    if tensor_parallel == 1:
        return None
    rows = pad(spec.vocab_size, PAD_VOCAB_ROWS)
    if rows % tensor_parallel:
        return f"the vocabulary of {rows} rows does not divide by {tensor_parallel}"
    for layer in set(spec.layers):
        reasons = [_indivisible_mixer(mixer, tensor_parallel) for mixer in layer.mixers]
        reasons.append(_indivisible_ffn(layer.ffn, checkpoint, tensor_parallel))
        found = next((reason for reason in reasons if reason is not None), None)
        if found is not None:
            return found
    return None


def _indivisible_mixer(mixer: Mixer, tensor_parallel: int) -> str | None:
    if isinstance(mixer, Recurrent):
        return _indivisible_state(mixer, tensor_parallel)
    if isinstance(mixer, Attention | Mla) and mixer.heads % tensor_parallel:
        return f"{mixer.heads} attention heads do not divide by {tensor_parallel}"
    if isinstance(mixer, Attention) and mixer.kv_heads % tensor_parallel and tensor_parallel % mixer.kv_heads:
        return f"{mixer.kv_heads} KV heads can neither be split nor repeated over {tensor_parallel} ranks"
    return None


def _indivisible_ffn(ffn: Ffn, checkpoint: Format, tensor_parallel: int) -> str | None:
    width = ffn.width if isinstance(ffn, Dense) else ffn.shared_width if isinstance(ffn, Moe) else 0
    if width % tensor_parallel:
        return f"a feed-forward width of {width} does not divide by {tensor_parallel}"
    if checkpoint.method in _GROUPED and width // tensor_parallel % GROUP_WIDTH:
        return (
            f"{checkpoint.name} needs {GROUP_WIDTH} weights per group and rank, and a width of {width} leaves "
            f"{width // tensor_parallel} on each of {tensor_parallel} ranks"
        )
    return None


def _indivisible_state(mixer: Recurrent, tensor_parallel: int) -> str | None:
    if mixer.heads % tensor_parallel or mixer.inner_dim % tensor_parallel:
        return f"{mixer.heads} heads of the recurrent state do not divide by {tensor_parallel}"
    if mixer.groups > 1 and mixer.groups % tensor_parallel:
        return f"{mixer.groups} groups of the recurrent state do not divide by {tensor_parallel}"
    return None


def needs_expert_parallel(spec: ModelSpec, checkpoint: Format, tensor_parallel: int) -> bool:
    """Tell whether experts must be dealt whole because their width does not split into whole groups."""
    for layer in set(spec.layers):
        ffn = layer.ffn
        if isinstance(ffn, Moe) and tensor_parallel > 1:
            uneven = ffn.width % tensor_parallel
            ragged = checkpoint.method in _GROUPED and ffn.width // tensor_parallel % GROUP_WIDTH
            if uneven or ragged:
                return True
    return False


def splits(
    spec: ModelSpec,
    checkpoint: Format,
    gpus: tuple[Device, ...],
    *,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
) -> tuple[Split, ...]:
    """List the ways to use equal GPUs, the simplest first.

    Ranks must be alike, so the GPUs of the largest group with one name and one size are taken. Given degrees stay
    fixed. Replicas (data parallel) fill what one copy leaves over.
    """
    members = alike(gpus)
    fast = bool(members) and link_rate(gpus[members[0]]) >= FAST_LINK_BYTES_PER_S
    found = []
    for stages in range(1, len(members) + 1):
        for ranks in range(1, len(members) // stages + 1):
            asked = tensor_parallel in {None, ranks} and pipeline_parallel in {None, stages}
            if not asked or stages > spec.block_count or indivisible(spec, checkpoint, ranks) is not None:
                continue
            if stages > 1 and pipeline_parallel is None and fast and _divides(spec, checkpoint, ranks * stages):
                continue
            spare = needs_expert_parallel(spec, checkpoint, ranks)
            if spare and not _experts_divide(spec, ranks):
                continue
            found += [
                Split(
                    tensor_parallel=ranks,
                    pipeline_parallel=stages,
                    data_parallel=copies,
                    gpus=members[: ranks * stages * copies],
                    expert_parallel=spare,
                )
                for copies in sorted({1, len(members) // (ranks * stages)})
            ]
    return tuple(sorted(found, key=lambda one: (one.ranks, one.pipeline_parallel, one.data_parallel)))


def _divides(spec: ModelSpec, checkpoint: Format, ranks: int) -> bool:
    """Tell whether tensor parallelism alone can use that many GPUs."""
    if indivisible(spec, checkpoint, ranks) is not None:
        return False
    return not needs_expert_parallel(spec, checkpoint, ranks) or _experts_divide(spec, ranks)


def _experts_divide(spec: ModelSpec, ranks: int) -> bool:
    return all(layer.ffn.experts % ranks == 0 for layer in set(spec.layers) if isinstance(layer.ffn, Moe))


def alike(gpus: tuple[Device, ...]) -> tuple[int, ...]:
    """Give the positions of the largest group of equal GPUs, by total memory in all."""
    groups: dict[tuple[str, int], list[int]] = {}
    for position, gpu in enumerate(gpus):
        groups.setdefault((gpu.name, gpu.memory_total_bytes), []).append(position)
    if not groups:
        return ()
    return tuple(max(groups.items(), key=lambda item: item[0][1] * len(item[1]))[1])
