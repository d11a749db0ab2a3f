"""Folding the weights of a model into the sums that the catalog ships, and back."""

from __future__ import annotations

from itertools import accumulate

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.sums import ModelSums, QuantSums
from willitrun_estimator.weights import LayerWeights, WeightProfile


def packed(profile: WeightProfile) -> QuantSums:
    """Fold a profile into what the catalog ships of it."""
    kinds: dict[tuple[int, int, int, int, int], int] = {}
    runs: list[int] = []
    for layer in profile.layers:
        kind = kinds.setdefault(structs.astuple(layer), len(kinds))
        if runs and runs[-1] == kind:
            runs[-2] += 1
        else:
            runs += [1, kind]
    return QuantSums(
        kinds=tuple(kinds),
        runs=tuple(runs),
        embedding_bytes=profile.embedding_bytes,
        output_bytes=profile.output_bytes,
        host_extra_bytes=profile.host_extra_bytes,
        tensor_bytes=profile.tensor_bytes,
        unloaded_bytes=profile.unloaded_bytes,
        file_bytes=profile.file_bytes,
        bits_per_weight=profile.bits_per_weight,
        matmul_type=profile.matmul_type,
        type_bytes=profile.type_bytes,
    )


def unpacked(spec: ModelSpec, quant: str, sums: ModelSums) -> WeightProfile | None:
    """Return the profile that the catalog ships for a quantization; None where it ships none."""
    found = sums.of(quant)
    if found is None:
        return None
    kinds = [
        LayerWeights(
            resident_bytes=resident,
            expert_bytes=experts,
            expert_active_bytes=active,
            largest_tensor_bytes=largest,
            largest_expert_tensor_bytes=largest_expert,
        )
        for resident, experts, active, largest, largest_expert in found.kinds
    ]
    order: list[int] = []
    for count, kind in zip(found.runs[::2], found.runs[1::2], strict=True):
        order += [kind] * count
    residents, experts, actives, _, _ = zip(*found.kinds, strict=True)
    return WeightProfile(
        spec=spec,
        quant=quant,
        layers=tuple([kinds[kind] for kind in order]),
        cumulative_resident_bytes=tuple(accumulate([residents[kind] for kind in order], initial=0)),
        cumulative_expert_bytes=tuple(accumulate([experts[kind] for kind in order], initial=0)),
        cumulative_expert_active_bytes=tuple(accumulate([actives[kind] for kind in order], initial=0)),
        embedding_bytes=found.embedding_bytes,
        output_bytes=found.output_bytes,
        host_extra_bytes=found.host_extra_bytes,
        tensor_bytes=found.tensor_bytes,
        unloaded_bytes=found.unloaded_bytes,
        file_bytes=found.file_bytes,
        params=sums.params,
        active_params=sums.active_params,
        bits_per_weight=found.bits_per_weight,
        matmul_type=found.matmul_type,
        type_bytes=found.type_bytes,
    )
