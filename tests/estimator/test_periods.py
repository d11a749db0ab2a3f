"""Shortened runs of blocks give the peaks of whole graphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.find import find_model
from willitrun_estimator.compute import model as planning
from willitrun_estimator.compute.model import ComputeModel
from willitrun_estimator.compute.periods import KEPT, LONGEST, Run, shortened
from willitrun_estimator.compute.schedule import GIVE, TAKE, Program
from willitrun_estimator.hardware import devices
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.request import Request
from willitrun_estimator.weights import weight_profile
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine


def test_a_run_keeps_some_and_the_last_block_is_alone():
    kept, runs = shortened("a" * 32)
    assert kept == (*range(KEPT + 1), 31)
    assert runs == (Run(first=0, unit=1, units=KEPT + 1),)
    assert runs[0].compared == (KEPT - 2, KEPT - 1, KEPT)


def test_a_pattern_is_one_unit():
    kept, runs = shortened("d" + "wwf" * 12)
    # What is left of the pattern before the last block stays.
    assert runs == (Run(first=1, unit=3, units=KEPT + 1),)
    assert [*kept[-3:]] == [34, 35, 36]


@given(st.text("ab", min_size=1, max_size=70))
def test_what_is_left_out_repeats_what_is_kept(kinds):
    kept, runs = shortened(kinds)
    assert kept[-1] == len(kinds) - 1
    assert list(kept) == sorted(set(kept))
    left_out = len(kinds) - len(kept)
    assert left_out <= 0 or any(run.unit <= LONGEST for run in runs)
    grown, at = [], 0
    for run in runs:
        grown += [kinds[kept[index]] for index in range(at, run.first)]
        at = run.first + run.units * run.unit
        unit = [kinds[kept[index]] for index in range(run.first, run.first + run.unit)]
        until = kept[at] if at < len(kept) else len(kinds)
        grown += unit * ((until - kept[run.first]) // run.unit)
    grown += [kinds[kept[index]] for index in range(at, len(kept))]
    assert "".join(grown) == kinds


@pytest.mark.parametrize(
    ("name", "machine", "split", "experts"),
    [
        ("llama-3.1-8b", "RTX 3090", (33,), 0),
        ("qwen3-30b-a3b", "2x RTX 3090", (20, 29), 0),
        ("gpt-oss-20b", "RTX 3090", (25,), 12),
        ("qwen3-next-80b-a3b", "H200", (30,), 0),
    ],
)
@pytest.mark.parametrize("tokens", [4096, 65536])
def test_the_shortened_graph_has_the_peaks_of_the_whole_one(name, machine, split, experts, tokens):
    spec = find_model(name).spec
    gpus = devices(open_machine(f"{machine}, 256 GiB RAM"), Request(), sheet_of)
    placement = Placement(gpu_layers=sum(split), split=split, cpu_moe_layers=experts)
    weights, settings = weight_profile(spec, "Q4_K_M"), Settings(context_tokens=tokens)
    short, whole = (ComputeModel(weights, gpus, settings) for _ in range(2))
    whole._may_shorten = False
    assert short.bytes(placement, tokens) == whole.bytes(placement, tokens)


def test_a_run_that_does_not_repeat_itself_is_planned_whole(monkeypatch):
    spec = find_model("llama-3.1-8b").spec
    gpus = devices(open_machine("RTX 3090, 64 GiB RAM"), Request(), sheet_of)
    planned = []
    plan = ComputeModel._plan

    def watched(self, placement, *, whole=False):
        planned.append(whole)
        programs = plan(self, placement, whole=whole)
        return programs if whole else tuple((Unsettled(program), copies) for program, copies in programs)

    class Unsettled:
        def __init__(self, program):
            self.program = program

        def peak(self, values, copies):
            return None if self.program.compared else self.program.peak(values, copies)

    placement, settings = Placement(gpu_layers=33, split=(33,)), Settings(context_tokens=4096)
    weights = weight_profile(spec, "Q4_K_M")
    expected = ComputeModel(weights, gpus, settings).bytes(placement, 4096)
    monkeypatch.setattr(planning.ComputeModel, "_plan", watched)
    assert ComputeModel(weights, gpus, settings).bytes(placement, 4096) == expected
    assert planned == [False, True]


def test_a_program_that_grows_with_every_unit_says_so():
    size = ((1, 0, 0, 0, 0, 0, 0), None)
    growing = Program([(TAKE, slot, 0) for slot in range(4)], [size], 128, ((1, 2, 3),))
    settled = Program([(TAKE, 0, 0), (GIVE, 0, 0), (TAKE, 1, 0), (GIVE, 1, 0), (TAKE, 2, 0)], [size], 128, ((0, 2, 4),))
    assert growing.peak((1,) * 7) is None
    assert settled.peak((1,) * 7) == 128
