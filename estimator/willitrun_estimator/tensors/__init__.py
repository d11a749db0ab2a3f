"""From a model's shape to its tensor list, as llama.cpp's converter writes it.

`tensors(spec)` is the plain list; `blueprint(spec)` is the same thing with equal blocks held once, which is what sums
are made from. `families` has one short entry per architecture.
"""

from __future__ import annotations

from willitrun_catalog.model import ModelSpec, Tensor
from willitrun_estimator.tensors.blueprint import Blueprint, blueprint
from willitrun_estimator.tensors.part import Part
from willitrun_estimator.tensors.registry import UnknownArchitecture

__all__ = ["Blueprint", "Part", "UnknownArchitecture", "blueprint", "tensors"]


def tensors(spec: ModelSpec) -> tuple[Tensor, ...]:
    """List the tensors of a model, next-token blocks included; raises `UnknownArchitecture`.

    A model read from a file brings its own list. `type` is set where a file or the makers fix it.
    """
    if spec.tensors is not None:
        return spec.tensors
    plan = blueprint(spec)
    listed = [Tensor(part.name, part.shape, None, part.role, part.type) for part in plan.outside]
    for number, kind in enumerate(plan.order):
        prefix = f"blk.{number}."
        listed += [Tensor(prefix + part.name, part.shape, number, part.role, part.type) for part in plan.kinds[kind]]
    return tuple(listed)
