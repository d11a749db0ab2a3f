"""Packed answers: what comes back is what was kept, and there is never more than fits."""

from __future__ import annotations

import json
import sys

from hypothesis import given
from hypothesis import strategies as st

from willitrun_here import batch
from willitrun_here.recent import ENTRY_BYTES, Recent

QUESTIONS = st.lists(st.tuples(st.binary(max_size=3), st.binary(min_size=1, max_size=200)), max_size=40)


@given(QUESTIONS, st.integers(0, 6000))
def test_what_is_kept_comes_back_and_fits(questions: list[tuple[bytes, bytes]], most: int) -> None:
    kept, answers = Recent(most), dict[bytes, bytes]()
    for asked, answer in questions:
        answers.setdefault(asked, answer)
        known = kept.get(asked)
        assert known in (None, answers[asked])
        if known is None:
            kept.keep(asked, answers[asked])
        assert 0 <= kept.left_bytes <= most
        assert len(kept) <= most // ENTRY_BYTES
    for asked, answer in answers.items():
        assert kept.get(asked) in (None, answer)


def test_an_answer_is_kept_once() -> None:
    kept = Recent(10_000)
    kept.keep(b"a", b"answer" * 20)
    left = kept.left_bytes
    kept.keep(b"a", b"answer" * 20)
    assert (len(kept), kept.left_bytes) == (1, left)


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    kept = Recent(3 * (ENTRY_BYTES + 40))
    for name in (b"a", b"b", b"c"):
        kept.keep(name, b"{}")
    assert kept.get(b"a") == b"{}"
    kept.keep(b"d", bytes(range(200)))
    assert (kept.get(b"b"), kept.get(b"a")) == (None, b"{}")


def test_answers_are_packed_to_a_fifth_and_counted_as_what_they_take() -> None:
    kept, plain = Recent(1 << 22), 0
    for number in range(1, 60):
        asked = json.dumps(
            {"model": "llama-3.2-1b", "machine": f"RTX 3090, {number} GiB RAM", "quant": "Q4_K_M", "sections": ["plan"]}
        ).encode()
        answer = batch.answer_line(asked)
        kept.keep(asked, answer)
        plain += len(answer)
        assert kept.get(asked) == answer
    counted = (1 << 22) - kept.left_bytes
    assert counted - ENTRY_BYTES * len(kept) < plain / 5
    held = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in kept._kept.items())
    assert 0.6 * counted < held + 104 * len(kept) < 1.1 * counted
