"""What the graphs of a model depend on, worked out once: models of one shape share their plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willitrun_catalog.model import Attention, Layer, Moe
from willitrun_estimator import cache
from willitrun_estimator.compute import block_sparse
from willitrun_estimator.compute.builder import RESIDUAL_SCORE
from willitrun_estimator.compute.style import Style, style_of
from willitrun_estimator.latest import Latest
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.weight_groups import grouped

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec


class Shape:
    """One model without its name and its weights' types."""

    def __init__(self, spec: ModelSpec) -> None:
        plan = blueprint(spec)
        count = spec.block_count
        self.spec = spec
        self.style = style_of(spec.architecture)
        self.outside = frozenset(part.name for part in plan.outside)
        names = tuple(frozenset(part.name for part in kind) for kind in plan.kinds)
        self.parts = tuple(names[kind] for kind in plan.order[:count])
        """Names of each block's tensors, as `attn_q.weight`."""
        self.groups = grouped(plan).order[:count]
        """For each block its group of equal types."""
        heads = max((m.key_dim for layer in spec.layers for m in layer.mixers if isinstance(m, Attention)), default=0)
        self.whole_qk_norm = any(
            part.name == "attn_q_norm.weight" and len(part.shape) == 1 and part.shape[0] > heads
            for kind in plan.kinds
            for part in kind
        )
        """Queries and keys are normalised as a whole, before they are split into heads."""
        self.window = cache.model_window(spec)
        self.donors = donors(spec)
        self.rotary = tuple(rotary(spec, self.style, self.window, index) for index in range(count))
        """Whether each block's attention rotates by position."""
        self.routed = tuple(isinstance(layer.ffn, Moe) for layer in spec.layers)
        """Whether each block has routed experts."""
        self.experts = tuple(
            [frozenset(name.partition(".")[0] for name in part if "_exps." in name) for part in self.parts]
        )
        """For each block the names of its routed experts' tensors."""
        self.alike = "altup_inputs" not in dict(spec.sizes) and RESIDUAL_SCORE not in self.outside
        """No block is told apart by its number."""
        self.local = not self.style.hyper
        """No block depends on where others live: residual streams are written to in another way beside the host's."""
        self.grows = any(block_sparse.QUERY in parts for parts in self.parts)
        """Blocks choose among the cells in use, of which a plan counts with few."""
        layers: dict[Layer, int] = {}
        by_object: dict[int, int] = {}
        kinds: dict[tuple[object, ...], int] = {}
        order = []
        for index, layer in enumerate(spec.layers):
            if id(layer) not in by_object:
                by_object[id(layer)] = layers.setdefault(layer, len(layers))
            kind = by_object[id(layer)], self.rotary[index], self.parts[index], index == count - 1
            order.append(kinds.setdefault(kind, len(kinds)))
        self.kinds = tuple(order)
        """Equal numbers for blocks that are built alike: the last one is not, as only rows with logits leave it."""
        self.key = (
            spec.architecture, spec.hidden_size, spec.vocab_size, spec.sizes, spec.traits, self.outside,
            self.whole_qk_norm, tuple(layers), tuple(kinds), self.kinds,
        )  # fmt: skip
        """Equal for models whose graphs are equal."""


shape_of = Latest(Shape)
"""The shape of a model."""


def donors(spec: ModelSpec) -> tuple[int, ...]:
    """Find the block whose cache each block reads: its own, or the last of its kind that has one (Gemma 3n)."""
    latest: dict[bool, int] = {}
    found = []
    for index, layer in enumerate(spec.layers):
        windowed = cache.layer_window(spec, layer) is not None
        if not any(isinstance(m, Attention) and m.shares_kv for m in layer.mixers):
            latest[windowed] = index
        found.append(latest.get(windowed, index))
    return tuple(found)


def rotary(spec: ModelSpec, style: Style, window: int | None, index: int) -> bool:
    """Tell whether a block's attention rotates by position."""
    if style.rope == "three-of-four":
        return (index + 1) % 4 != 0
    if style.rope == "windowed" and window is not None:
        return cache.layer_window(spec, spec.layers[index]) is not None
    return style.rope != "none"
