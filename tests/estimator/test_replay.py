"""The replayed allocator does what it would do without states, and keeps no more than it may."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_estimator.compute import replay as replay_of
from willitrun_estimator.compute.allocator import Arena
from willitrun_estimator.compute.form import MONOMIALS, evaluate, form
from willitrun_estimator.compute.replay import Kept, Move, Replay
from willitrun_estimator.compute.steps import (
    ARRIVED,
    EARLY,
    GIVE,
    LATEST,
    SINCE,
    TAKE,
    TAKE_FOR_GOOD,
    TAKE_WEIGHT,
    Steps,
    code,
    decode,
)

FORMS = [form((elements,)) for elements in (16, 32, 33, 64, 100, 0)]
VALUES = (1,) * len(MONOMIALS)
ALIGNMENT = 64


def plain(moves: Sequence[Move]) -> int:
    """Follow the steps one by one."""
    arena, held = Arena(), ([], [], [])  # type: tuple[Arena, tuple[list[tuple[int, int]], ...]]
    for steps, weights in moves:
        for packed in steps.codes:
            argument, what, kind = decode(packed)
            if what == GIVE:
                arena.give(*held[kind].pop(argument))
            elif what == LATEST:
                held[SINCE].append(held[kind].pop(argument))
            else:
                size = weights[argument] if what == TAKE_WEIGHT else evaluate(FORMS[argument], VALUES)
                size = -(-size // ALIGNMENT) * ALIGNMENT
                offset = arena.take(size)
                if what != TAKE_FOR_GOOD:
                    held[kind].append((offset, size))
    return arena.peak


@st.composite
def lines(draw: st.DrawFn) -> list[Move]:
    """Draw what is taken ahead, for each of several blocks, and what these do until all is given back."""
    blocks = draw(st.integers(1, 6))
    sizes = st.integers(0, len(FORMS) - 1)
    early, arrived = draw(st.tuples(sizes, sizes))
    moves: list[Move] = []
    counts = [0, 0, 0]
    before = draw(st.booleans())

    def add(*codes: int, weights: tuple[int, ...] = ()) -> None:
        moves.append((Steps(codes, tuple((0, str(size)) for size in weights)), weights))

    for _ in range(blocks if draw(st.booleans()) else 0):
        add(code(early, TAKE, EARLY))
        counts[EARLY] += 1
    if before:
        add(code(draw(sizes), TAKE, SINCE))
        counts[SINCE] += 1
    for _ in range(blocks if draw(st.booleans()) else 0):
        add(code(arrived, TAKE, ARRIVED), code(draw(sizes), TAKE, ARRIVED))
        counts[ARRIVED] += 2
    for _ in range(blocks):
        codes = []
        weights: list[int] = []
        for _ in range(draw(st.integers(1, 8))):
            kind = draw(st.sampled_from([SINCE, EARLY, ARRIVED]))
            what = draw(st.sampled_from([TAKE, GIVE, GIVE, LATEST, TAKE_WEIGHT, TAKE_FOR_GOOD]))
            if what in {GIVE, LATEST} and not counts[kind]:
                continue
            if what in {GIVE, LATEST}:
                argument = draw(st.sampled_from([0, counts[kind] - 1]))
                counts[kind] -= 1
                counts[SINCE] += what == LATEST
            else:
                argument = draw(sizes)
                kind = kind if what == TAKE else SINCE
                counts[kind] += what != TAKE_FOR_GOOD
            if what == TAKE_WEIGHT:
                weights.append(draw(st.integers(1, 500)))
                argument = len(weights) - 1
            codes.append(code(argument, what, kind))
        add(*codes, weights=tuple(weights))
    return moves


@given(st.lists(lines(), min_size=1, max_size=4))
def test_states_and_walls_change_nothing(drawn: list[list[Move]]) -> None:
    replay = Replay(FORMS, VALUES, ALIGNMENT)
    for moves in drawn * 2:
        assert replay.peak(moves) == plain(moves)


def blocks(count: int) -> list[Move]:
    """Return a line of blocks that have a tensor each from the start and copies that came with the split."""
    leaf = Steps((code(0, TAKE, EARLY),), ())
    copies = Steps((code(1, TAKE, ARRIVED), code(2, TAKE, ARRIVED)), ())
    first = Steps((code(3, TAKE, SINCE),), ())
    own = Steps(
        (
            code(4, TAKE, SINCE),
            code(0, GIVE, EARLY),
            code(0, GIVE, ARRIVED),
            code(0, GIVE, ARRIVED),
            code(0, GIVE, SINCE),
        ),
        (),
    )
    return [(steps, ()) for steps in ([leaf] * count + [first] + [copies] * count + [own] * count)]


def test_layouts_with_more_blocks_to_come_are_in_the_same_states() -> None:
    replay = Replay(FORMS, VALUES, ALIGNMENT)
    long = blocks(40)
    assert replay.peak(long) == plain(long)
    kept = len(replay)
    for count in (39, 30, 12):
        line = [(steps, ()) for steps, _ in blocks(count)]
        # Steps are told by identity, as `Known` has them.
        line = [long[0]] * count + [long[40]] + [long[41]] * count + [long[-1]] * count
        assert replay.peak(line) == plain(line)
    assert len(replay) <= kept + 3 * 3


def test_replays_asked_last_keep_their_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_of, "KEPT", Kept())
    monkeypatch.setattr(replay_of, "MOST_MOVES", 30)
    first, second = (Replay(FORMS, VALUES, alignment) for alignment in (64, 128))
    line = blocks(5)
    first.peak(line)
    assert len(first) > 1
    for _ in range(2):
        second.peak(line)
        second.peak(blocks(6))
    assert len(first) == 1
    assert first.peak(line) == plain(line)


def test_states_that_are_forgotten_are_freed_at_once() -> None:
    replay = Replay(FORMS, VALUES, ALIGNMENT)
    take, give = (Steps((code(*one),), ()) for one in ((0, TAKE, SINCE), (0, GIVE, SINCE)))
    replay.peak([(take, ()), (give, ()), (take, ()), (give, ())])
    gc.collect()
    replay.forget()
    assert gc.collect() == 0
