from __future__ import annotations

import pytest
from msgspec.structs import replace

from willitrun_estimator.request import Request
from willitrun_here.fleet import planner

CARDS = [("NVIDIA GeForce RTX 3090", 24), ("NVIDIA GeForce RTX 3060", 12), ("NVIDIA H100 80GB HBM3", 80)]
MODELS = ["llama-3.1-8b", "qwen3-30b-a3b", "llama-3.3-70b"]

ON_GPU = {"comfortable", "fits", "tight"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("model", "total"), CARDS)
def test_screening_and_the_whole_search_agree_on_whether_a_model_runs(make_machine, name, model, total):
    spec = planner.find_catalog_model(name)
    for gpus, free, ram in ((1, total, 60), (2, total, 60), (2, total // 3, 12), (1, total // 8, 3)):
        machine = make_machine(gpus=gpus, total=total, free=free, ram_free=ram, model=model)
        answers = [run(machine, spec, Request()) for run in (planner.screen, planner.plan)]
        starts = [answer.plan is not None and answer.fit.status != "too-large" for answer in answers]
        assert starts[0] == starts[1], (gpus, free, ram)
        on_gpus = [answer.fit.status in ON_GPU for answer in answers]
        assert on_gpus[0] or not on_gpus[1], (gpus, free, ram)


def test_a_plan_on_one_of_several_gpus_says_which_by_index(make_machine):
    machine = make_machine(gpus=3, free=2)
    free = replace(machine.gpus[1], memory_free_bytes=20 * 1024**3)
    anonymous = tuple(replace(gpu, uuid=None) for gpu in (machine.gpus[0], free, machine.gpus[2]))
    answer = planner.screen(replace(machine, gpus=anonymous), planner.find_catalog_model("llama-3.1-8b"), Request())
    assert answer.plan.gpu_indexes == (1,)
    assert "CUDA_VISIBLE_DEVICES=1 " in answer.commands["llama.cpp"].shell


def test_the_server_opens_no_files_for_a_model_name(tmp_path):
    from willitrun_catalog.errors import CatalogError  # noqa: PLC0415

    with pytest.raises(CatalogError):
        planner.find_catalog_model(str(tmp_path))


def test_plans_depend_on_the_catalog_that_is_shipped():
    assert planner.catalog_version() == planner.catalog_version()
    assert len(planner.catalog_version()) <= 64
