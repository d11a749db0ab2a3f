"""Cache and state of a model as sums over its blocks, for given cache types and slots: no device changes them."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from itertools import accumulate

from willitrun_catalog.model import Layer, ModelSpec
from willitrun_estimator import cache
from willitrun_estimator.placement import Settings

Kinds = tuple[tuple[tuple[int, ...], int], ...]
"""For each kind of cache: bytes of a cell over the first n blocks, and its cells over all streams."""

MOST_CONTEXTS = 64
"""Contexts whose sums are kept at a time."""


class CacheSums:
    """Sums over the first 0, 1, … n blocks. Every method takes a context; `settings` has that of a checkpoint.

    Raises EstimatorError for a cache type the model's rows cannot have. Not thread-safe (it keeps what it has summed).
    """

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self.spec, self.settings = spec, settings
        known: dict[int, tuple[dict[cache.Span, int], int]] = {}
        facts = []
        for layer in spec.layers:
            found = known.get(id(layer))
            if found is None:
                found = known[id(layer)] = (
                    cache.layer_row_bytes(spec, layer, settings),
                    cache.layer_state_bytes(spec, layer, settings),
                )
            facts.append(found)
        self._beyond = cache.next_token_caches(spec, settings)
        if self._beyond:
            rows, state = facts[-1]
            both = Counter(rows)
            both.update(cache.row_bytes(self._beyond))
            facts[-1] = (dict(both), state)
        spans = sorted({span for rows, _ in facts for span in rows}, key=lambda span: (span.ratio, span.window or 0))
        self.rows = {span: tuple(accumulate((rows.get(span, 0) for rows, _ in facts), initial=0)) for span in spans}
        self.states = tuple(accumulate((state for _, state in facts), initial=0))
        self.quantized = cache.is_quantized(settings.kv_type_k) or cache.is_quantized(settings.kv_type_v)
        self._kinds: dict[int, Kinds] = {}
        self._paddings: dict[int, tuple[int, ...]] = {}
        self._held: dict[int, list[int]] = {}

    @cached_property
    def checkpoint_bytes(self) -> int:
        """One context checkpoint: the windowed caches and states of one slot. 0 for a plain transformer."""
        spec, settings = self.spec, self.settings
        cells, _ = cache.stream_cells(settings)
        total = cache.state_bytes(spec, settings) // max(1, settings.parallel)
        distinct = {id(layer): layer for layer in spec.layers}
        for key, count in Counter(map(id, spec.layers)).items():
            for span, row in cache.layer_row_bytes(spec, distinct[key], settings).items():
                if span.window is not None and not settings.swa_full:
                    total += count * row * min(cells, span.window)
        return total

    def kinds(self, context_tokens: int) -> Kinds:
        """Return the kinds of cache the model has at a context."""
        known = self._kinds.get(context_tokens)
        if known is None:
            if len(self._kinds) >= MOST_CONTEXTS:
                self._kinds.clear()
            full, streams = cache.model_cells(self.spec, self.settings, context_tokens)
            known = self._kinds[context_tokens] = tuple(
                (rows, streams * cache.span_cells(self.spec, span, self.settings, full))
                for span, rows in self.rows.items()
            )
        return known

    def paddings(self, context_tokens: int) -> tuple[int, ...]:
        """Return what CUDA and ROCm add to the tensors of a quantized cache; () where they add nothing."""
        if not self.quantized:
            return ()
        known = self._paddings.get(context_tokens)
        if known is None:
            if len(self._paddings) >= MOST_CONTEXTS:
                self._paddings.clear()
            added: dict[int, int] = {}
            known = self._paddings[context_tokens] = tuple(
                accumulate((self._padding(layer, context_tokens, added) for layer in self.spec.layers), initial=0)
            )
            if self._beyond:
                more = cache.rows_padding_bytes(self.spec, self._beyond, self.settings, context_tokens)
                known = self._paddings[context_tokens] = (*known[:-1], known[-1] + more)
        return known

    def _padding(self, layer: Layer, context_tokens: int, added: dict[int, int]) -> int:
        known = added.get(id(layer))
        if known is None:
            rows = cache.layer_caches(self.spec, layer, self.settings)
            known = added[id(layer)] = cache.rows_padding_bytes(self.spec, rows, self.settings, context_tokens)
        return known

    def held(self, context_tokens: int) -> list[int]:
        """Return the bytes of caches and states together, without what a back end adds."""
        known = self._held.get(context_tokens)
        if known is None:
            if len(self._held) >= MOST_CONTEXTS:
                self._held.clear()
            known = list(self.states)
            for rows, cells in self.kinds(context_tokens):
                known = [total + row * cells for total, row in zip(known, rows, strict=True)]
            self._held[context_tokens] = known
        return known
