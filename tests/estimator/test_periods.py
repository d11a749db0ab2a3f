"""Which blocks of a run are built, and which stand for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_estimator.compute.kinds import Looks
from willitrun_estimator.compute.periods import shortened, units_of

NEAR, AHEAD = Looks(1, 0), Looks(1, 1)


def test_of_a_run_the_ends_and_one_between_are_built():
    kept, same = shortened("a" * 32, NEAR)
    assert kept == (0, 1, 2)
    assert same == (0, *[1] * 30, 2)


def test_one_more_is_built_where_blocks_are_computed_for_before_their_turn():
    kept, same = shortened("a" * 32, AHEAD)
    assert kept == (0, 1, 2, 3, 4)
    assert same == (0, *[1] * 28, 2, 3, 4)


def test_a_pattern_is_one_unit():
    kept, same = shortened("d" + "wwf" * 12, NEAR)
    assert kept == tuple(range(10))
    assert same[:7] == tuple(range(7))
    assert same[7:10] == (4, 5, 6)
    assert same[-3:] == (7, 8, 9)


@pytest.mark.parametrize(("length", "looks", "units"), [(1, NEAR, 3), (1, Looks(2, 2), 8), (4, NEAR, 3), (4, AHEAD, 4)])
def test_enough_units_to_look_ahead(length, looks, units):
    assert units_of(length, looks) == units


@given(st.text("ab", min_size=1, max_size=70), st.sampled_from([NEAR, AHEAD, Looks(3, 0)]))
def test_every_block_has_one_like_it_with_like_neighbours(kinds, looks):
    kept, same = shortened(kinds, looks)
    built = [kinds[index] for index in kept]
    assert list(kept) == sorted(set(kept))
    assert [built[place] for place in same] == list(kinds)
    for block, place in enumerate(same):
        near = slice(max(0, block - looks.reach), block + looks.reach + 1)
        assert list(kinds[near]) == built[max(0, place - looks.reach) : place + looks.reach + 1]
        assert set(kinds[:block]) == set(built[:place])
        assert set(kinds[block + 1 + looks.ahead :]) == set(built[place + 1 + looks.ahead :])
