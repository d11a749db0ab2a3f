"""A plan as the search finds it, and which of two whose scores say the same comes first."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from willitrun_estimator.placement import Placement

RESOLUTION = 1.0
"""Points: a score is stated in whole ones, and plans that are closer to each other are equally good by it."""


class Found(Struct, frozen=True, kw_only=True):
    """One plan that can start, with what it needs and the factors of its score."""

    quant: str
    kv_type: str
    context_tokens: int
    ubatch: int
    gpus: tuple[int, ...]
    placement: Placement
    used_bytes: tuple[int, ...]
    """Per GPU of the set, then the host."""
    rate: float | None
    ttft_s: float | None
    quality: float
    short_bytes: int
    """What the host lacks: weights that have to be read from disk as the engine goes; 0 when all fit."""
    score: float
    whole: bool = False
    """Nothing that a GPU could hold is on the host."""
    parted: int = 0
    """Blocks with routed experts on the host, those on the host themselves among them."""
    spare_bytes: int = 0
    """What stays free of the budget on the fullest GPU of those that hold something."""

    def precedence(self) -> tuple[int, int, int, int, float]:
        """Return what decides between layouts whose scores are equally good, the greater the better.

        Most blocks on GPUs come first, because speeds are those of an empty context and a block on the host loses more
        as it fills; then fewest blocks whose experts are on the host; then least on the host; then what stays free.
        """
        return self.placement.gpu_layers, -self.parted, -self.used_bytes[-1], self.spare_bytes, self.score


def by_merit(plans: Iterable[Found]) -> list[Found]:
    """Return plans best first: by score, but scores within `RESOLUTION` of the best are equally good.

    Of those, plans wholly on GPUs come before others; and of the layouts that differ in nothing else from the one that
    scores best, the one by `Found.precedence`.
    """
    ranked = sorted(plans, key=lambda plan: -plan.score)
    if len(ranked) <= 1:
        return ranked
    near = [plan for plan in ranked if plan.score > ranked[0].score - RESOLUTION]
    first = next((plan for plan in near if plan.whole), near[0])
    alike = [
        plan
        for plan in near
        if (plan.quant, plan.kv_type, plan.context_tokens, plan.ubatch, plan.gpus)
        == (first.quant, first.kv_type, first.context_tokens, first.ubatch, first.gpus)
    ]
    lead = max(alike, key=Found.precedence)
    return [lead, *(plan for plan in ranked if plan is not lead)]


class Bar(Struct, frozen=True):
    """The scores that a plan must exceed to take the place of the best one so far."""

    any: float = 0.0
    whole: float = 0.0
    """The same for a plan wholly on GPUs: less, where the best one is not."""

    def raised(self, plan: Found) -> Bar:
        """Return the bar after a further plan."""
        return Bar(max(self.any, plan.score), max(self.whole, plan.score - (0.0 if plan.whole else RESOLUTION)))

    def passes(self, bound: float, *, may_be_whole: bool) -> bool:
        """Tell whether a plan with no more than so many points can exceed the bar."""
        return bound > (self.whole if may_be_whole else self.any)
