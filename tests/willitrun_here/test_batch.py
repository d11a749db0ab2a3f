from __future__ import annotations

import json

import pytest

from willitrun_here import batch
from willitrun_here.recent import Recent

LINE = {"model": "llama-3.2-1b", "machine": "RTX 3090, 64 GiB RAM", "quant": "Q4_K_M", "sections": ["plan"]}


def line(**fields) -> bytes:
    return json.dumps({**LINE, **fields}).encode()


def answer(**fields) -> dict:
    return json.loads(batch.answer_line(line(**fields)))


@pytest.mark.parametrize("identity", [1, "a", None, 2**53])
def test_ids_come_back(identity):
    assert answer(id=identity)["id"] == identity
    assert answer(id=identity, model="no-such-model-anywhere-x")["id"] == identity


def test_only_the_sections_asked_for():
    found = answer(sections=["plan", "speed"])
    assert set(found) == {"schema", "id", "model", "machine", "fit", "score", "grade", "plan", "speed"}
    assert found["plan"]["quant"] == "Q4_K_M"
    whole = {name: value for name, value in LINE.items() if name != "sections"}
    every = json.loads(batch.answer_line(json.dumps(whole).encode()))
    assert {"quants", "workloads", "improvements", "limits"} <= set(every)
    assert every["quants"]


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": 3}, 2, "needs a model"),
        ({"model": "no-such-model-anywhere-x"}, 4, "unknown model"),
        ({"machine": "Voodoo 2"}, 4, "Voodoo"),
        ({"machine": 5}, 2, "string or an object"),
        ({"machine": {"gpu": 1}}, 2, "machine"),
        ({"context": -5}, 2, "context"),
        ({"context": 0}, 2, "context"),
        ({"context": "8k"}, 2, "context"),
        ({"concurrency": 0}, 2, "concurrency"),
        ({"ubatch": 2**40}, 2, "ubatch"),
        ({"gpu_layers": -1}, 2, "gpu-layers"),
        ({"margin": -1}, 2, "margin"),
        ({"kv_type": "f17"}, 2, "f17"),
        ({"backend": "opencl"}, 2, "opencl"),
        ({"engine": "exllama"}, 2, "exllama"),
        ({"gpu_memory_utilization": 2.0}, 2, "share"),
        ({"min_decode": -1}, 2, "min-decode"),
        ({"contxt": 8192}, 2, "contxt"),
        ({"sections": "plan"}, 2, "list"),
        ({"sections": ["plans"]}, 2, "plans"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, 2, "flash"),
        ({"backend": "rocm"}, 2, "rocm"),
    ],
)
def test_what_is_wrong_becomes_an_answer(fields, code, words):
    found = answer(id=9, **fields)
    assert found["id"] == 9
    assert found["error"]["code"] == code
    assert words in found["error"]["message"]


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b'"x"', b"\xff", b"{}" * 2, b'{"a":1,}', b" " * 3 + b"x"])
def test_bad_lines_are_answered(text):
    assert json.loads(batch.answer_line(text))["error"]["code"] == 2


def test_lines_too_long_are_answered():
    assert "bytes" in json.loads(batch.answer_line(b" " * (batch.MOST_LINE_BYTES + 1)))["error"]["message"]


def test_auto_means_leaving_it_out():
    options = dict.fromkeys(("context", "kv_type", "engine", "gpu_layers", "backend", "flash_attention"), "auto")
    assert answer(**options) == answer()
    assert answer(flash_attention="off")["plan"]["flash_attention"] is False
    assert answer(flash_attention=False) == answer(flash_attention="off")


def test_machines_as_objects():
    found = answer(machine={"gpus": [{"name": "RTX 3090", "count": 2}], "ram_bytes": 64 * 2**30})
    assert len(found["machine"]["gpus"]) == 2


def test_equal_questions_are_answered_once_and_keep_their_ids(monkeypatch):
    monkeypatch.setattr(batch, "RECENT", Recent(1 << 20))
    calls = []
    real = batch.answered
    monkeypatch.setattr(batch, "answered", lambda asked: calls.append(1) or real(asked))
    first, second = answer(id='a"id":null'), answer(id=2)
    assert len(calls) == 1
    assert first["id"] == 'a"id":null'
    assert second == first | {"id": 2}


def test_a_whole_answer_has_commands_and_a_line_may_ask_for_them_alone():
    whole = json.loads(batch.answer_line(b'{"model": "llama-3.2-1b", "machine": "RTX 3090", "context": 4096}'))
    assert {"llama.cpp", "docker", "ollama", "vllm"} <= set(whole["commands"])
    found = answer(sections=["commands"])
    assert "-c" in found["commands"]["llama.cpp"]["argv"]
    assert "plan" not in found


def test_the_margin_is_named_like_its_option():
    assert answer(margin=24 * 2**30)["plan"]["gpu_layers"] == 0


def test_a_defect_that_one_line_shows_is_an_error_line(monkeypatch):
    monkeypatch.setattr(batch, "answered", lambda asked: asked["missing"])
    found = answer(id=3, context=1111)
    assert found["id"] == 3
    assert found["error"]["code"] == 4
    assert "KeyError('missing')" in found["error"]["message"]
