"""The shipped list of ready-made checkpoints: formats that exist, of models that exist, by their own makers."""

from __future__ import annotations

from msgspec import structs

from willitrun_catalog.shipped import models
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.formats import FORMATS
from willitrun_estimator.vllm.plan import checkpoints
from willitrun_estimator.vllm.repositories import ready_made, shipped_repositories


def test_every_entry_is_a_known_model_and_format_of_the_same_maker():
    known = {spec.hf_id for spec in models()}
    names = {one.name for one in FORMATS.values()}
    assert shipped_repositories().source.startswith("Repositories of the model makers")
    for own, found in shipped_repositories().repositories.items():
        assert own in known
        for name, repository in found.items():
            assert name in names
            assert repository.partition("/")[0] == own.partition("/")[0]
            assert repository.startswith(own.removesuffix("-BF16") + "-")


def test_only_the_model_itself_has_its_makers_checkpoints(model):
    spec = model("qwen3-14b")
    assert ready_made(spec, FORMATS["awq"]) == "Qwen/Qwen3-14B-AWQ"
    assert ready_made(spec, FORMATS["nvfp4"]) is None
    assert ready_made(structs.replace(spec, source="hf:Qwen/Qwen3-14B:main"), FORMATS["fp8"]) == "Qwen/Qwen3-14B-FP8"
    assert ready_made(structs.replace(spec, source="hf:someone/tuned"), FORMATS["fp8"]) is None
    assert ready_made(structs.replace(spec, source="/models/qwen3"), FORMATS["fp8"]) is None


def test_published_formats_are_tried_before_what_is_made_while_loading(model):
    names = [one.name for one in checkpoints(model("qwen3-14b"), Request())]
    assert names == ["BF16", "FP8", "AWQ", "BNB-NF4"]
    early = [one.name for one in checkpoints(model("qwen3-14b"), Request(), (0, 10))]
    assert "FP8" in early, "a stored FP8 checkpoint needs no release that makes it while loading"
