"""One model made ready for many questions: sums that no machine changes, each made once and kept.

A placement then costs look-ups and additions. What is kept is bounded, so that a million questions about a model take
no more memory than a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.quality import QuantQuality, quality
from willitrun_catalog.sums import ModelSums
from willitrun_estimator import cache
from willitrun_estimator.cache_sums import CacheSums
from willitrun_estimator.compute import ComputeModel
from willitrun_estimator.compute.build import Build
from willitrun_estimator.device import Backend, Devices
from willitrun_estimator.expert_parts import Parts, expert_parts
from willitrun_estimator.placement import Settings
from willitrun_estimator.stack import Stack
from willitrun_estimator.throughput.work import BlockWork, Work, multiplied_elements
from willitrun_estimator.weight_sums import unpacked
from willitrun_estimator.weights import WeightProfile, weight_profile
from willitrun_estimator.widths import Widths, widths

MOST_KEPT = 48
"""Sums of one kind that are kept at a time; a model's quantizations times its cache types are about thirty."""
MOST_STACKS = 128

Key = TypeVar("Key")
Value = TypeVar("Value")


def kept(store: dict[Key, Value], key: Key, make: Callable[[], Value], most: int = MOST_KEPT) -> Value:
    """Return the value of a key, made where it is not there; a full store starts anew."""
    known = store.get(key)
    if known is None:
        if len(store) >= most:
            store.clear()
        known = store[key] = make()
    return known


class Elements(NamedTuple):
    """Weights that are multiplied, by number."""

    read: float
    """By one token."""
    held: float
    """By any token: all experts."""
    experts: float
    """Those of `held` in routed experts."""
    used_share: float
    """Of the routed experts, what one token reads."""


class Prepared:
    """The sums of one model. Questions about it share them, whatever the machine and the request. Not thread-safe."""

    def __init__(self, spec: ModelSpec, sums: ModelSums | None = None) -> None:
        self.spec = spec
        self.shipped_sums = sums
        """Weights that were summed when the catalog was compiled; None for models that are not of the catalog."""
        self._weights: dict[str, WeightProfile] = {}
        self._qualities: dict[str, QuantQuality] = {}
        self._sums: dict[Settings, CacheSums] = {}
        self._block_works: dict[Settings, BlockWork] = {}
        self._works: dict[tuple[str, Settings], Work] = {}
        self._stacks: dict[tuple[str, Settings, int, bool], Stack] = {}
        self._computes: dict[tuple[str, Settings, int, Backend | None, Build], ComputeModel] = {}
        self._elements: Elements | None = None
        self._largest: dict[str, tuple[int, int]] = {}
        self._parts: dict[str, tuple[Parts, ...]] = {}

    @cached_property
    def widths(self) -> Widths:
        """How wide the blocks are while they compute."""
        return widths(self.spec.layers, self.spec.hidden_size)

    def weights(self, quant: str) -> WeightProfile:
        """Return the weights in a quantization. Raises `UnknownQuant` and `UnknownArchitecture`."""
        return kept(self._weights, quant, lambda: self._weigh(quant))

    def _weigh(self, quant: str) -> WeightProfile:
        known = None if self.shipped_sums is None else unpacked(self.spec, quant, self.shipped_sums)
        return weight_profile(self.spec, quant) if known is None else known

    def params(self, quant: str) -> int:
        """Return the number of weights, which is the same in every quantization: any that was summed tells it."""
        if not self._weights:
            self.weights(quant)
        return next(iter(self._weights.values())).params

    def elements(self, quant: str) -> Elements:
        """Return how many weights there are to multiply: the same in every quantization, so that any tells it."""
        if self._elements is None:
            weights = self.weights(quant)
            read, idle = multiplied_elements(weights), weights.params - weights.active_params
            experts = weights.cumulative_expert_bytes[-1]
            share = weights.cumulative_expert_active_bytes[-1] / experts if experts else 0.0
            self._elements = Elements(read, read + idle, idle / (1.0 - share) if experts else 0.0, share)
        return self._elements

    def largest_tensors(self, quant: str) -> tuple[int, int]:
        """Return the bytes of the largest resident matrix of a block, and of its largest expert tensor."""

        def look() -> tuple[int, int]:
            every = self.weights(quant).layers
            layers = dict(zip(map(id, every), every, strict=True)).values()
            return (
                max((layer.largest_tensor_bytes for layer in layers), default=0),
                max((layer.largest_expert_tensor_bytes for layer in layers), default=0),
            )

        return kept(self._largest, quant, look)

    def quality(self, quant: str) -> QuantQuality:
        """Return what a quantization of this model costs."""

        def look_up() -> QuantQuality:
            return quality(quant, self.params(quant), native_type=self.spec.native_type)

        return kept(self._qualities, quant, look_up)

    def expert_parts(self, quant: str) -> tuple[Parts, ...]:
        """Return the matrices of the routed experts of every block."""
        return kept(self._parts, quant, lambda: expert_parts(self.spec, quant))

    def sums(self, settings: Settings) -> CacheSums:
        """Return the sums of caches and states."""
        return kept(self._sums, settings, lambda: CacheSums(self.spec, settings))

    def work(self, quant: str, settings: Settings) -> Work:
        """Return the sums that speed follows from."""

        def make() -> Work:
            beside = kept(self._block_works, settings, lambda: BlockWork(self.spec, settings))
            return Work(self.weights(quant), settings, beside)

        return kept(self._works, (quant, settings), make)

    def stack(self, quant: str, settings: Settings, context_tokens: int, *, padded: bool) -> Stack:
        """Return the bytes of the blocks; `padded` where the GPUs' back end pads quantized caches."""

        def make() -> Stack:
            sums = self.sums(settings)
            paddings = sums.paddings(context_tokens) if padded else ()
            return Stack.of(self.weights(quant), sums.held(context_tokens), paddings)

        return kept(self._stacks, (quant, settings, context_tokens, padded), make, MOST_STACKS)

    def compute(self, quant: str, settings: Settings, devices: Devices, build: Build) -> ComputeModel:
        """Return the model of compute buffers for as many GPUs of the same back end."""
        gpus = devices.gpus
        key = quant, settings, len(gpus), gpus[0].backend if gpus else None, build
        return kept(self._computes, key, lambda: ComputeModel(self.weights(quant), devices, settings, build))

    def takes(self, kv_type: str, settings: Settings) -> bool:
        """Tell whether the rows of this model's caches are whole blocks of a cache type."""
        block = cache.KV_TYPES[kv_type][0]
        layers = dict(zip(map(id, self.spec.layers), self.spec.layers, strict=True)).values()
        rows = (row for layer in layers for row in cache.layer_caches(self.spec, layer, settings))
        return all(elements % block == 0 for _, _, elements in rows)
