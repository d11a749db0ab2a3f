"""Plans that the quick look passed over although they fit, found by exact looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from willitrun_estimator.found import Found, by_merit
from willitrun_estimator.question import Question
from willitrun_estimator.search import NO_BAR
from willitrun_estimator.sweep import sweep

MOST_LOOKS = 12
"""Each exact look settles one kind of layout of one setup, and few can be better than a plan that holds."""


def surpassing(question: Question, best: Found, per_quant: Mapping[str, Sequence[Found]]) -> Found:
    """Return a plan that takes precedence over the best one and holds as well; the best one where there is none.

    The quick look's closed forms can ask for a little too much. A lenient look is taken instead, and what it finds is
    looked at exactly, one after the other. `per_quant` are the plans that were found.
    """
    for _ in range(MOST_LOOKS):
        bar = NO_BAR.raised(best)
        able = [quant for quant, found in per_quant.items() if question.rivalled(quant, found, bar.whole)]
        if not able:
            return best
        question.lenient = True
        swept = sweep(question, able, bar=bar) if len(able) > 1 else [(able[0], question.search(able[0], bar=bar))]
        found = [one for _, plans in swept for one in plans]
        question.lenient = False
        first = by_merit([best, *found])[0]
        if place(first) == place(best):
            return best
        if question.holds(first):
            best = first
    return best


def place(one: Found) -> tuple[object, ...]:
    """Return where a plan is in the space."""
    return one.quant, one.kv_type, one.context_tokens, one.ubatch, one.gpus, one.placement
