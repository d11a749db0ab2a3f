from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from willitrun_estimator.plan import Interval
from willitrun_here.render import feel


@given(st.text(max_size=300))
def test_pieces_joined_are_the_text(text):
    assert "".join(feel.pieces(text)) == text
    assert all(feel.pieces(text))


def test_pieces_are_about_as_long_as_tokens():
    # Published averages for byte-pair tokenizers are near 4 characters a token for English, 3 for code.
    for reply in (feel.FIRST_REPLY, feel.SECOND_REPLY):
        assert 2.5 < len(reply) / len(feel.pieces(reply)) < 4.5


class FakeTime:
    """A clock that sleeping moves; every sleep is late by a fixed amount."""

    def __init__(self, late_s: float) -> None:
        self.now = 100.0
        self.late_s = late_s

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s


@pytest.mark.parametrize(
    ("pace", "wait_s", "per_s"), [("expected", 1.4, 74.1), ("low", 2.6, 51.87), ("high", 1.0, 96.33)]
)
def test_a_turn_is_played_at_the_estimated_speed(answers, pace, wait_s, per_s):
    written: list[str] = []
    fake = FakeTime(late_s=0.0005)
    (timing,) = feel.play(answers.a100(), written.append, clock=fake.clock, sleep=fake.sleep, pace=pace, warm_only=True)
    assert timing.first_token_s == pytest.approx(wait_s, abs=0.001)
    assert timing.total_s == pytest.approx(wait_s + (timing.tokens - 1) / per_s, abs=0.001)
    assert feel.SECOND_REPLY in "".join(written)


def test_late_wake_ups_do_not_add_up(answers):
    fake = FakeTime(late_s=0.02)
    (timing,) = feel.play(answers.a100(), str, clock=fake.clock, sleep=fake.sleep, warm_only=True)
    assert timing.total_s == pytest.approx(1.4 + (timing.tokens - 1) / 74.1, abs=0.025)


def test_cold_comes_first_and_takes_the_load(answers):
    fake = FakeTime(late_s=0.0)
    cold, warm = feel.play(answers.a100(), str, clock=fake.clock, sleep=fake.sleep)
    assert cold.first_token_s == pytest.approx(11.9)
    assert warm.first_token_s == pytest.approx(1.4)


def test_the_real_clock_keeps_time(answers):
    answer = answers.a100()
    fast = Interval(expected=400.0, low=400.0, high=400.0)
    wait = Interval(expected=0.05, low=0.05, high=0.05)
    answer = replace(answer, speed=replace(answer.speed, decode_tokens_per_s=fast, ttft_s=wait))
    (timing,) = feel.play(answer, str, clock=time.monotonic, sleep=time.sleep, warm_only=True)
    assert timing.first_token_s == pytest.approx(0.05, abs=0.05)
    assert timing.total_s == pytest.approx(0.05 + timing.tokens / 400, rel=0.15)


def test_unknown_speed_plays_nothing(answers):
    assert feel.play(answers.too_large(), str, clock=time.monotonic, sleep=time.sleep) == ()
    assert feel.turns(answers.too_large()) == ()
