"""All quantizations of one question, the most promising first, each only as long as it can still win."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from willitrun_estimator.ceilings import cheap, sharp
from willitrun_estimator.question import Question
from willitrun_estimator.search import Found


def sweep(
    question: Question,
    quants: Iterable[str],
    *,
    floor: float = 0.0,
    narrow: bool = False,
    ceilings: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, list[Found]]]:
    """Search one quantization after the other while one can exceed the best so far, and `floor`.

    Only quantizations that the cheap ceiling does not rule out are weighed, and of those only the ones that the sharp
    one leaves are searched. `ceilings` are the cheap ones where they are known.
    """
    waiting = [(-(cheap(question, quant) if ceilings is None else ceilings[quant]), False, quant) for quant in quants]
    heapify(waiting)
    while waiting:
        ceiling, weighed, quant = heappop(waiting)
        if -ceiling <= floor:
            return
        if not weighed:
            heappush(waiting, (-sharp(question, quant), True, quant))
            continue
        found = question.search(quant, floor=floor, narrow=narrow)
        if found:
            floor = max(floor, found[0].score)
        yield quant, found


def best_of(
    question: Question,
    quants: Iterable[str],
    *,
    floor: float = 0.0,
    narrow: bool = False,
    ceilings: Mapping[str, float] | None = None,
) -> Found | None:
    """Return the best plan of some quantizations, None when none scores above `floor` (0 asks for any)."""
    swept = sweep(question, quants, floor=floor, narrow=narrow, ceilings=ceilings)
    firsts = [found[0] for _, found in swept if found]
    return max(firsts, key=lambda one: one.score, default=None)
