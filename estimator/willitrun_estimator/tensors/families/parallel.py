"""Blocks whose attention and feed-forward run side by side: Falcon, StableLM 2."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Layer, ModelSpec
from willitrun_estimator.tensors.family import ONE_NORM, Family
from willitrun_estimator.tensors.part import Part, scale


def _falcon(spec: ModelSpec, _layer: Layer, _index: int) -> Iterator[Part]:
    if "two-norms" in spec.traits:
        yield from scale("attn_norm_2", spec.hidden_size, biased=True)


def _stablelm(spec: ModelSpec, _layer: Layer, _index: int) -> Iterator[Part]:
    if "one-norm" not in spec.traits:
        yield from scale("ffn_norm", spec.hidden_size, biased=True)


FAMILIES: dict[str, Family] = {
    "falcon": Family(norms=ONE_NORM, norm_bias=True, fused_qkv=True, more=_falcon),
    "stablelm": Family(norms=ONE_NORM, norm_bias=True, qk_norm_kind="each", more=_stablelm),
}
