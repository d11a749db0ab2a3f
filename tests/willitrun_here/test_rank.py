from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog.find import find_model
from willitrun_catalog.shipped import models
from willitrun_estimator.request import Request
from willitrun_here import rank as ranking
from willitrun_here.machines import open_machine
from willitrun_here.rank import ability, active_params, least_score, overall, rank

SMALL = open_machine("RTX 3060 12GB, 16 GiB RAM")
ASKED = Request(quant="Q4_K_M", context=8192)


@pytest.fixture(scope="module")
def best():
    return rank(SMALL, ASKED, limit=5)


def test_the_best_come_first(best):
    points = [row.rank_score for row in best]
    assert len(points) == 5
    assert points == sorted(points, reverse=True)
    assert len({row.model.name for row in best}) == 5


def test_a_shorter_list_is_the_beginning_of_a_longer_one(best):
    assert [row.model.name for row in rank(SMALL, ASKED, limit=2)] == [row.model.name for row in best[:2]]


def test_nothing_that_cannot_start_or_pages_is_offered(best):
    assert all(row.fit.status not in {"too-large", "paging"} for row in best)
    assert rank(open_machine("no GPU, 1 MiB RAM"), ASKED, limit=3) == []


def test_cutting_short_changes_nothing(monkeypatch, best):
    monkeypatch.setattr(ranking, "least_score", lambda *_: 0.0)
    assert [row.model.name for row in rank(SMALL, ASKED, limit=5)] == [row.model.name for row in best]


def test_only_models_for_talk(best):
    by_name = {spec.name: spec for spec in models()}
    assert not any(ranking.NOT_FOR_TALK & set(by_name[row.model.name].capabilities) for row in best)


def test_models_without_the_context_that_is_wanted_are_left_out():
    wanted = 1 << 20
    by_name = {spec.name: spec for spec in models()}
    found = rank(open_machine("8x H100 80GB, 1024 GiB RAM"), Request(quant="Q4_K_M", min_context=wanted), limit=3)
    assert len(found) == 3
    assert all(by_name[row.model.name].max_context_tokens >= wanted for row in found)


def test_vllm_is_ranked_without_ceilings():
    found = rank(open_machine("RTX 4090, 64 GiB RAM"), Request(engine="vllm", quant="AWQ"), limit=1)
    assert [row.plan.engine for row in found if row.plan is not None] == ["vllm"]


def test_models_of_this_machine_only(monkeypatch):
    from willitrun_catalog.readers import local  # noqa: PLC0415

    spec = find_model("llama-3.2-1b").spec
    monkeypatch.setattr(local, "local_models", lambda: [spec])
    assert [row.model.name for row in rank(SMALL, ASKED, limit=None, local=True)] == [spec.name]


@given(st.floats(1, 100), st.floats(0.01, 1))
def test_the_floor_is_the_inverse_of_the_weighing(worst, known):
    assert overall(least_score(worst, known), known) == pytest.approx(worst)


def test_idle_experts_do_not_count():
    moe = find_model("qwen3-30b-a3b").spec
    assert active_params(moe) == pytest.approx(3.3e9, rel=0.1)
    dense = find_model("llama-3.1-8b").spec
    assert active_params(dense) == dense.params
    assert 0 < ability(find_model("llama-3.2-1b").spec) < ability(dense) <= 1
