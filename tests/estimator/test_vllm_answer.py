from __future__ import annotations

import pytest
from msgspec import structs

from tests.estimator.answers_on import answered
from willitrun_catalog.find import find_model
from willitrun_estimator import hardware, vllm_answer
from willitrun_estimator.question import Question
from willitrun_estimator.request import Request
from willitrun_here.ask import sheet_of
from willitrun_here.machines import open_machine

H100 = "H100 80GB, 256 GiB RAM"


def question(words=H100, model="llama-3.1-8b", **asked):
    request = Request(**asked)
    return Question(find_model(model).spec, hardware.devices(open_machine(words), request, sheet_of), request)


@pytest.mark.parametrize(
    ("words", "reached"), [(H100, True), ("MI300X", True), ("Intel Arc A770", False), ("no GPU, 64 GiB RAM", False)]
)
def test_back_ends_that_vllm_has(words, reached):
    assert vllm_answer.reaches(question(words).devices) is reached
    one = question(words)
    assert (vllm_answer.planned_for(one.spec, one.devices, one.request) is not None) is reached


def test_the_whole_answer():
    found = answered("llama-3.1-8b", H100, engine="vllm")
    assert found.plan.engine == "vllm"
    assert found.tags.runtime.value == "vllm"
    assert found.grade in "SABCDF"
    assert {part.name for part in found.score_parts} >= {"quality"}
    (best,) = [row for row in found.quants if row.best]
    assert best.quant == found.plan.quant
    assert all(row.engine == "vllm" and row.memory_bytes > row.file_bytes for row in found.quants)
    sizes = {row.quant: row.file_bytes for row in found.quants}
    assert sizes["AWQ"] < sizes["FP8"] < sizes["BF16"]


@pytest.mark.parametrize(
    ("model", "bits"),
    [
        ("llama-3.1-8b", {"BF16": 16.0, "FP8": 9.05, "AWQ": 5.71}),
        ("gpt-oss-20b", {"BF16": 16.0, "MXFP4": 5.61}),
        ("gemma-3-12b", {"BF16": 16.0}),
        ("qwen3-30b-a3b", {"BF16": 16.0}),
    ],
)
def test_bits_are_those_of_what_is_loaded(model, bits):
    rows = {row.quant: row for row in answered(model, H100, engine="vllm").quants}
    for quant, expected in bits.items():
        assert rows[quant].bits_per_weight == pytest.approx(expected, rel=0.02)
    assert ("MXFP4" in rows) is (model == "gpt-oss-20b"), "no other model here was published in MXFP4"


def test_what_cannot_start_has_no_plan_and_no_points():
    found = answered("llama-3.1-405b", "RTX 3060 12GB, 16 GiB RAM", engine="vllm")
    assert (found.plan, found.score, found.grade, found.tags) == (None, 0, "F", None)
    assert found.fit.status == "too-large"
    assert found.fit.message


def test_formats_that_cannot_be_loaded_are_left_out():
    assert (
        vllm_answer.checkpoint_option(question("RTX 3060 12GB, 16 GiB RAM", "llama-3.1-405b"), "BF16", best=False)
        is None
    )
    option = vllm_answer.checkpoint_option(question(kv_type="q8_0", ubatch=256), "BF16", best=True)
    assert option is not None, "llama.cpp's own choices do not stand in vLLM's way"
    assert option.best


def test_many_users_count_the_aggregate():
    alone = answered("llama-3.1-8b", H100, engine="vllm")
    many = answered("llama-3.1-8b", H100, engine="vllm", mode="scale-out", concurrency=32)
    assert many.serving.output_tokens_per_s[-1] > 5 * alone.speed.decode_tokens_per_s.expected


def test_the_engine_is_chosen_by_the_mode():
    build = lambda planned: planned  # noqa: E731 - a stand-in for building the answer
    scaled, choice = vllm_answer.better_engine(question(mode="scale-out"), None, build)
    assert choice is None or choice.engine == "vllm"
    assert (scaled is None) == (choice is None)
    assert vllm_answer.better_engine(question("no GPU, 64 GiB RAM", mode="scale-out"), None, build) == (None, None)
    served = answered("llama-3.1-8b", H100, mode="scale-out")
    assert served.plan.engine in {"vllm", "llama.cpp"}


def test_serving_modes_say_which_engine_is_better_and_by_how_much():
    served = answered("llama-3.1-8b", H100, mode="light-api")
    assert served.engine_choice.engine == served.plan.engine == "vllm"
    assert served.engine_choice.gain > 0.1
    assert "llama.cpp" in served.engine_choice.reason
    assert not any("llama.cpp" in finding for finding in served.findings)


def test_other_modes_offer_vllm_where_it_is_faster():
    offered = [one for one in answered("llama-3.1-8b", H100).improvements if one.code == "engine-vllm"]
    assert all(one.gain > 0.1 and "--engine vllm" in one.message for one in offered)
    slow = question("no GPU, 64 GiB RAM")
    assert vllm_answer.worth_changing(slow, None) == ()


@pytest.mark.parametrize("asked", [{"quant": "Q4_K_M"}, {"kv_type": "q4_0"}])
def test_what_only_llama_cpp_has_decides_the_engine(asked):
    one = question(mode="light-api", **asked)
    assert vllm_answer.comparable(one) is None
    assert answered("llama-3.1-8b", H100, mode="light-api", **asked).plan.engine == "llama.cpp"
    assert vllm_answer.better_engine(one, None, lambda planned: planned) == (None, None)


def test_vllm_is_offered_by_its_gain_or_not_at_all():
    one = question("4x RTX 4090, 128 GiB RAM", "qwen2.5-14b")
    planned = vllm_answer.comparable(one)
    rates = planned.serving.output_tokens_per_s
    slower = structs.replace(planned.serving, output_tokens_per_s=tuple(rate / 2 for rate in rates))
    (offered,) = vllm_answer.worth_changing(one, slower)
    assert offered.gain == pytest.approx(1.0)
    faster = structs.replace(planned.serving, output_tokens_per_s=tuple(rate * 2 for rate in rates))
    assert vllm_answer.worth_changing(one, faster) == ()
    near = structs.replace(planned.serving, output_tokens_per_s=tuple(rate / 1.05 for rate in rates))
    assert "inside the spread" in vllm_answer.better_engine(one, near, lambda value: value)[1].reason


def test_where_nothing_fits_the_checkpoint_that_would_is_named():
    (offered,) = answered("gemma-3-27b", "RTX 3090, 64 GiB RAM", engine="vllm").improvements
    assert offered.code == "smaller-checkpoint"
    assert "--quant" in offered.message
    assert "a repository of its own" in offered.message
    assert answered("gemma-3-27b", "RTX 3090, 64 GiB RAM", engine="vllm", quant="bf16").improvements == ()


def test_a_gain_inside_the_spread_is_not_offered():
    one = question("RTX 4090, 64 GiB RAM", "qwen3-14b")
    planned = vllm_answer.comparable(one)
    faster = tuple(rate * 3 for rate in planned.serving.output_tokens_per_s)
    quick = structs.replace(planned, serving=structs.replace(planned.serving, output_tokens_per_s=faster))
    assert vllm_answer.smaller_checkpoints(one, quick) == ()


def test_a_plan_without_a_known_speed_still_has_points():
    found = answered("phi-4", "Tesla T4, 64 GiB RAM", engine="vllm", engine_version="0.26")
    assert found.plan.quant == "BNB-NF4"
    assert found.speed is None
    assert found.score > 0


def test_published_checkpoints_of_fewer_bits_are_offered_by_their_gain():
    (offered,) = answered("qwen3-14b", "RTX 4090, 64 GiB RAM", engine="vllm").improvements
    assert offered.code == "ready-checkpoint"
    assert "Qwen/Qwen3-14B-AWQ" in offered.message
    assert offered.gain > 0.1


@pytest.mark.parametrize(
    ("words", "model", "asked"),
    [
        ("MI300X", "nemotron-3-nano-30b-a3b", {}),
        ("8x H100 80GB, 512 GiB RAM", "qwen3-1.7b", {"mode": "interactive"}),
        (H100, "llama-3.1-8b", {}),
        (H100, "qwen3-14b", {"quant": "bf16"}),
    ],
)
def test_nothing_is_offered_where_nothing_is_gained_known_or_free_to_choose(words, model, asked):
    assert answered(model, words, engine="vllm", **asked).improvements == ()
