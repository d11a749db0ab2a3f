from __future__ import annotations

import pytest
from msgspec import structs

from tests.estimator.answers_on import answered
from willitrun_catalog.find import find_model
from willitrun_estimator import evidence, hardware
from willitrun_estimator.calibration import Corrections
from willitrun_estimator.plan import Interval, Speed
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

ONE = Interval(expected=100.0, low=80.0, high=130.0)
WAIT = Interval(expected=2.0, low=1.0, high=3.0)


@pytest.fixture(scope="module")
def known():
    machine = open_machine("RTX 3090, 64 GiB RAM")
    spec = find_model("llama-2-7b-chat").spec
    plan = answered(spec.name, "RTX 3090, 64 GiB RAM", quant="Q4_0", context=4096).plan
    gpus = hardware.devices(machine, Request(), sheet_of).gpus
    return evidence.Known(plan=plan, model=spec.name, gpus=gpus, corrections=None, prompt_tokens=512, depth_tokens=0)


def estimated(**fields) -> Speed:
    values = {"decode_tokens_per_s": ONE, "prefill_tokens_per_s": structs.replace(ONE, expected=100.0), "ttft_s": None}
    return Speed(**(values | fields))


def test_published_rows_move_the_estimate_and_stand_beside_it(known):
    found = evidence.informed(estimated(load_s=WAIT), known)
    assert found.decode_tokens_per_s.expected > 120
    assert found.decode_tokens_per_s.basis == "measured-alike"
    assert found.measured
    assert found.ttft_cold_s.expected == pytest.approx(found.ttft_s.expected + 2.0)
    assert found.ttft_cold_s.low == pytest.approx(found.ttft_s.low + 1.0)
    assert evidence.informed(estimated(), known).ttft_cold_s is None


@pytest.mark.parametrize("change", [{"model": "no-such"}, {"depth_tokens": evidence.SHALLOW_TOKENS + 1}, {"gpus": ()}])
def test_without_rows_of_the_same_setup_nothing_moves(known, change):
    interval, rows = evidence.moved(ONE, "decode", structs.replace(known, **change))
    assert (interval, rows) == (ONE, ())


def test_rows_are_for_whole_models_on_gpus(known):
    half = structs.replace(known.plan, gpu_layers=10)
    assert evidence.moved(ONE, "decode", structs.replace(known, plan=half)) == (ONE, ())
    unknown = tuple(structs.replace(gpu, sheet=None) for gpu in known.gpus)
    assert evidence.moved(ONE, "decode", structs.replace(known, gpus=unknown)) == (ONE, ())


def test_unknown_speeds_stay_unknown(known):
    assert evidence.moved(None, "decode", known) == (None, ())
    nothing = evidence.informed(estimated(decode_tokens_per_s=None), known)
    assert nothing.decode_tokens_per_s is None
    assert nothing.ttft_s is None
    assert nothing.measured, "what others measured is shown all the same"


def test_corrections_without_runs_change_nothing(known):
    alone = structs.replace(known, model="no-such", corrections=Corrections())
    assert evidence.moved(ONE, "decode", alone)[0].expected == pytest.approx(100.0)
