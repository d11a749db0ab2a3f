"""How fast it feels: a short conversation played at the estimated speed, cold and warm.

A token is taken as the pieces a byte-pair tokenizer typically makes of English and code: a word with the space before
it (long words in parts), up to three digits, a few signs, or a run of white space.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from willitrun_estimator.plan import Answer, Interval
from willitrun_here.render.wording import number

Pace = Literal["expected", "low", "high"]
PACES: tuple[Pace, ...] = ("expected", "low", "high")
OPPOSITE: dict[Pace, Pace] = {"expected": "expected", "low": "high", "high": "low"}
"""A slow case is a low rate and a high wait."""

PIECE = re.compile(r" ?[^\W\d_]{1,8}|\d{1,3}| ?[^\w\s]{1,3}|_|\s+")

FIRST_PROMPT = "Write a function that sorts a list."
FIRST_REPLY = """\
Merge sort is a good first choice: it is stable and never slower than n log n.

def merge_sort(items):
    if len(items) < 2:
        return list(items)
    middle = len(items) // 2
    left, right = merge_sort(items[:middle]), merge_sort(items[middle:])
    merged = []
    while left and right:
        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return merged + left + right

print(merge_sort([5, 2, 9, 1]))  # [1, 2, 5, 9]

It splits the list in two, sorts each half the same way, and merges the halves by taking the smaller head each time.
"""
SECOND_PROMPT = "Add type hints and a docstring."
SECOND_REPLY = '''\
from collections.abc import Iterable

def merge_sort(items: Iterable[int]) -> list[int]:
    """Return the items in rising order; equal items keep their places."""
    items = list(items)
    if len(items) < 2:
        return items
    middle = len(items) // 2
    left, right = merge_sort(items[:middle]), merge_sort(items[middle:])
    merged: list[int] = []
    while left and right:
        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return merged + left + right

It now takes any iterable of integers and says what it returns.
'''


class Turn(Struct, frozen=True, kw_only=True):
    """One prompt with its reply, cut into tokens, and the wait before the first of them."""

    name: str
    label: str
    prompt: str
    pieces: tuple[str, ...]
    wait_s: Interval


class Timing(Struct, frozen=True, kw_only=True):
    """How a turn was really played."""

    first_token_s: float
    total_s: float
    tokens: int


def pieces(text: str) -> tuple[str, ...]:
    """Cut text into token-like pieces; joined they are the text again."""
    found, end = [], 0
    for match in PIECE.finditer(text):
        if match.start() > end:
            found.append(text[end : match.start()])
        found.append(match.group())
        end = match.end()
    return (*found, text[end:]) if end < len(text) else tuple(found)


def turns(answer: Answer) -> tuple[Turn, ...]:
    """Return the conversation, empty where the speed is not known."""
    speed = answer.speed
    if speed is None or speed.decode_tokens_per_s is None or speed.ttft_s is None:
        return ()
    cold = speed.ttft_cold_s
    second = Turn(
        name="A prompt" if cold is None else "Second prompt, warm",
        label="Warm: the model is in memory",
        prompt=SECOND_PROMPT,
        pieces=pieces(SECOND_REPLY),
        wait_s=speed.ttft_s,
    )
    if cold is None:
        return (second,)
    first = Turn(
        name="First prompt, cold",
        label="Cold: the model is loaded before it answers",
        prompt=FIRST_PROMPT,
        pieces=pieces(FIRST_REPLY),
        wait_s=cold,
    )
    return (first, second)


def play(
    answer: Answer,
    write: Callable[[str], object],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    pace: Pace = "expected",
    warm_only: bool = False,
) -> tuple[Timing, ...]:
    """Write the conversation at the estimated speed and return how it was timed.

    Every token has its own deadline counted from the start of the turn, so that late wake-ups do not add up; what is
    overdue is written at once.
    """
    decode = answer.speed.decode_tokens_per_s if answer.speed else None
    if decode is None:
        return ()
    per_s = getattr(decode, pace)
    timings = []
    for turn in turns(answer)[-1 if warm_only else 0 :]:
        write(f"{turn.label}\n> {turn.prompt}\n")
        start = clock()
        wait_s = getattr(turn.wait_s, OPPOSITE[pace])
        first_s = 0.0
        for index, piece in enumerate(turn.pieces):
            left_s = start + wait_s + index / per_s - clock()
            if left_s > 0:
                sleep(left_s)
            if index == 0:
                first_s = clock() - start
            write(piece)
        total_s = clock() - start
        timing = Timing(first_token_s=first_s, total_s=total_s, tokens=len(turn.pieces))
        timings.append(timing)
        rate = (timing.tokens - 1) / (total_s - first_s) if total_s > first_s else per_s
        write(f"[first token after {first_s:.2f} s, {timing.tokens} tokens at {number(rate)} tok/s]\n\n")
    return tuple(timings)
