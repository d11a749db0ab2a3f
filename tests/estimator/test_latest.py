from __future__ import annotations

import pytest
from msgspec import structs

from willitrun_catalog import shipped
from willitrun_estimator.latest import Latest
from willitrun_estimator.tensors import blueprint


def test_only_the_latest_are_kept():
    values = [[n] for n in range(3)]
    latest = Latest(lambda value: [*value], most=2)
    made = [latest(value) for value in values]
    assert [latest(value) is held for value, held in zip(values[1:], made[1:], strict=True)] == [True, True]
    again = latest(values[0])
    assert again == made[0]
    assert again is not made[0]
    assert latest(values[2]) is made[2]
    assert latest(values[1]) is not made[1]


def test_what_fails_is_tried_again():
    asked = []

    def fail(value: object) -> None:
        asked.append(value)
        raise ValueError("no")

    latest = Latest(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            latest("x")
    assert asked == ["x", "x"]


def test_equal_models_are_laid_out_alike_and_one_model_once():
    spec = shipped.model("llama-3.2-1b-instruct")
    assert blueprint(spec) is blueprint(spec)
    assert blueprint(structs.replace(spec)) == blueprint(spec)
