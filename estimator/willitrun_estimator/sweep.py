"""All quantizations of one question, the most promising first, each only as long as it can still win."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from willitrun_estimator.ceilings import cheap, may_be_whole, sharp
from willitrun_estimator.found import Bar, Found, by_merit
from willitrun_estimator.question import Question
from willitrun_estimator.search import NO_BAR


def sweep(
    question: Question,
    quants: Iterable[str],
    *,
    bar: Bar = NO_BAR,
    narrow: bool = False,
    ceilings: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, list[Found]]]:
    """Search one quantization after the other while one can pass the bar, which the best so far raises.

    Only quantizations that the cheap ceiling does not rule out are weighed, and of those only the ones that the sharp
    one leaves are searched. `ceilings` are the cheap ones where they are known.
    """
    waiting = [(-(cheap(question, quant) if ceilings is None else ceilings[quant]), False, quant) for quant in quants]
    heapify(waiting)
    while waiting:
        ceiling, weighed, quant = heappop(waiting)
        if -ceiling <= bar.whole:
            return
        if not weighed:
            heappush(waiting, (-sharp(question, quant), True, quant))
            continue
        if not bar.passes(-ceiling, may_be_whole=may_be_whole(question, quant)):
            continue
        found = question.search(quant, bar=bar, narrow=narrow)
        if found:
            bar = bar.raised(found[0])
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
    bar = Bar(floor, floor) if floor > 0 else NO_BAR
    swept = sweep(question, quants, bar=bar, narrow=narrow, ceilings=ceilings)
    return next(iter(by_merit(found[0] for _, found in swept if found)), None)
