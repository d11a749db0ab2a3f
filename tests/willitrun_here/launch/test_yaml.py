from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_here.launch.yaml import to_yaml

pyyaml = pytest.importorskip("yaml", reason="install PyYAML to read the files back: pip install pyyaml")

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=15
)


@given(st.dictionaries(TEXT, VALUES, max_size=4) | st.lists(VALUES, max_size=4))
def test_any_plain_data_comes_back(value):
    assert pyyaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize("word", ["on", "No", "y", "NULL", "true", "1", "1.5", "0x10", "~", "2026-01-01", "a: b", "#"])
def test_words_other_readers_turn_into_values_stay_text(word):
    assert pyyaml.safe_load(to_yaml({word: word, "list": [word]})) == {word: word, "list": [word]}
