"""Ranking the models that run on a machine: the score of each one's best plan, weighed with its presumed ability."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.answer import Prospect, prospect, ranked_answer
from willitrun_estimator.device import Devices
from willitrun_estimator.hardware import devices
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_estimator.score import strength
from willitrun_here.ask import prepared_of, sheet_of
from willitrun_probe.machine import Machine

ROUNDED = 0.51
"""What a score may gain when it is rounded to whole points; a little more, so that equals are not cut."""
NOT_FOR_TALK = frozenset({"embedding", "reranker"})


def rank(machine: Machine, request: Request, *, limit: int | None, local: bool = False) -> list[Answer]:
    """Return the answers of the best models, best first; models that cannot start here never appear.

    Well-known instruct releases of their makers come first, others only when there is room left in `limit`. A plan
    that would read weights from disk for every token is not offered: it starts, and nobody would use it. Nor is a model
    without the context that is wanted at least.
    """
    plan_on = devices(machine, request, sheet_of)
    groups: tuple[Iterable[ModelSpec], ...]
    if local:
        from willitrun_catalog.readers.local import local_models  # noqa: PLC0415 - only for --local

        groups = (local_models(),)
    else:
        from willitrun_catalog.shipped import models  # noqa: PLC0415

        known = [spec for spec in models() if not NOT_FOR_TALK & set(spec.capabilities)]
        groups = ([spec for spec in known if spec.canonical], [spec for spec in known if not spec.canonical])
    ranked: list[Answer] = []
    for specs in groups:
        if limit is not None and len(ranked) >= limit:
            break
        long_enough = [spec for spec in specs if spec.max_context_tokens >= (request.min_context or 0)]
        ranked += best_of(long_enough, plan_on, request, None if limit is None else limit - len(ranked))
    return ranked


def best_of(specs: Iterable[ModelSpec], plan_on: Devices, request: Request, limit: int | None) -> list[Answer]:
    """Return the best answers of some models, the most promising worked out first.

    A model waits under the best it could reach: by its ability alone, then by the size of its weights too. Once the
    worst answer kept is better, nothing that waits is looked at any more.
    """
    waiting: list[tuple[float, int, float, ModelSpec, Prospect | None]] = []
    for order, (known_ability, spec) in enumerate(sorted(((ability(spec), spec) for spec in specs), key=by_ability)):
        heapq.heappush(waiting, (-overall(100.0, known_ability), order, known_ability, spec, None))
    kept: list[tuple[float, int, Answer]] = []
    while waiting:
        least, order, known_ability, spec, known = heapq.heappop(waiting)
        full = limit is not None and len(kept) >= limit
        if full and -least < kept[0][0]:
            break
        if known is None:
            known = prospect(plan_on, spec, request, prepared_of(spec))
            if known.most > 0:
                reach = overall(min(100.0, known.most + ROUNDED), known_ability)
                heapq.heappush(waiting, (-reach, order, known_ability, spec, known))
            continue
        floor = max(0.0, least_score(kept[0][0], known_ability) - ROUNDED) if full else 0.0
        result = ranked_answer(plan_on, spec, request, floor=floor, known=known)
        if result is None:
            continue
        points = overall(float(result.score), known_ability)
        ranked = structs.replace(result, rank_score=points, rank_basis=basis(spec, known_ability))
        heapq.heappush(kept, (points, -order, ranked))
        if limit is not None and len(kept) > limit:
            heapq.heappop(kept)
    return [result for _, _, result in sorted(kept, key=lambda item: (-item[0], -item[1]))]


def by_ability(pair: tuple[float, ModelSpec]) -> float:
    """Return what puts the ablest first."""
    return -pair[0]


def basis(spec: ModelSpec, known_ability: float) -> str:
    """Say what the presumed ability rests on: no evaluation is shipped, so size and release date."""
    when = spec.release_date or "an unknown date"
    size = (spec.params or 0) / 1e9
    return f"ability {known_ability:.2f} from {size:.1f} B parameters of {when}; no evaluation is shipped"


def least_score(worst: float, known_ability: float) -> float:
    """Return the score a model of this ability must exceed to come before one that is ranked at `worst`."""
    return 100.0 * (worst / 100.0) ** 2 / max(known_ability, 1e-9)


def overall(points: float, known_ability: float) -> float:
    """Weigh how well a model runs with what it can do: the geometric mean, 0..100."""
    return float((points / 100.0 * known_ability) ** 0.5 * 100.0)


def ability(spec: ModelSpec) -> float:
    """Return the presumed ability, 0..1, from size and age."""
    params = spec.params or 0
    return strength(params, active_params(spec), spec.release_date) if params else 0.0


def active_params(spec: ModelSpec) -> int:
    """Return the parameters one token uses, from the published total and the experts' share."""
    from willitrun_catalog.model import Moe  # noqa: PLC0415

    total = spec.params or 0
    idle = sum(
        (layer.ffn.experts - layer.ffn.experts_used)
        * (3 if layer.ffn.gated else 2)
        * layer.ffn.width
        * spec.hidden_size
        for layer in spec.layers
        if isinstance(layer.ffn, Moe)
    )
    return max(1, total - idle)
