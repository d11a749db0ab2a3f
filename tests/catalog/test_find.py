from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog import shipped
from willitrun_catalog.errors import CatalogError
from willitrun_catalog.find import UnknownModel, find_model
from willitrun_catalog.words import is_size, model_words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.1-8b", "llama-3.1-8b-instruct"),
        ("LLAMA 3.1 8B", "llama-3.1-8b-instruct"),
        ("llama3.1:8b", "llama-3.1-8b-instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "llama-3.1-8b-instruct"),
        ("bartowski/openai_gpt-oss-20b-GGUF", "gpt-oss-20b"),
        ("unsloth/gemma-3-12b-it-GGUF", "gemma-3-12b-it"),
        ("qwen3-30b-a3b", "qwen3-30b-a3b"),
        ("gpt-oss-20b", "gpt-oss-20b"),
        ("gpt-oss:120b", "gpt-oss-120b"),
        ("kimi-linear", "kimi-linear-48b-a3b-instruct"),
        ("mixtral 8x7b", "mixtral-8x7b-instruct-v0.1"),
        ("deepseek r1", "deepseek-r1"),
        ("deepseek-v3", "deepseek-v3"),
        ("qwen3 next", "qwen3-next-80b-a3b-instruct"),
        ("granite-4-h-small", "granite-4.0-h-small"),
        ("phi4", "phi-4"),
        ("command r+", "command-r-plus"),
        ("glm 4.5 air", "glm-4.5-air"),
        ("gemma3 12b", "gemma-3-12b-it"),
        ("llama 70b", "llama-3.3-70b-instruct"),
        ("mistral 7b", "mistral-7b-instruct-v0.3"),
    ],
)
def test_names_as_people_type_them(typed, meant):
    assert find_model(typed).spec.name == meant


def test_what_is_ambiguous_says_so():
    match = find_model("qwen2.5-coder")
    assert match.spec.canonical
    assert "qwen2.5-coder-32b-instruct" in match.alternatives
    assert find_model("llama-3.1-405b-instruct").alternatives == ()


def test_a_release_of_the_same_shape_keeps_its_name():
    match = find_model("Qwen2.5-Math-7B-Instruct")
    parent = shipped.model("qwen2.5-7b-instruct")
    assert (match.spec.name, match.spec.hf_id) == ("qwen2.5-math-7b-instruct", "Qwen/Qwen2.5-Math-7B-Instruct")
    assert match.spec.layers == parent.layers
    assert not match.spec.canonical
    assert match.spec.gguf_repos == ()


def test_a_base_model_named_without_its_maker_means_the_instruct_release():
    assert find_model("gemma-2b").spec.name == "gemma-2b-it"
    assert find_model("google/gemma-2b").spec.hf_id == "google/gemma-2b"


def test_unknown_names_bring_the_nearest():
    with pytest.raises(UnknownModel) as caught:
        find_model("lama-3.1-8b")
    assert caught.value.exit_code == 4
    assert caught.value.query == "lama-3.1-8b"
    assert caught.value.nearest[0] == "llama-3.1-8b-instruct"
    assert isinstance(caught.value, CatalogError)


def test_every_name_and_alias_finds_its_shape():
    for spec in shipped.models():
        for name in (spec.name, spec.hf_id, spec.hf_id.rpartition("/")[2]):
            assert find_model(name).spec is spec
        for alias in spec.aliases:
            assert find_model(alias).spec.hf_id == alias
            assert find_model(alias.rpartition("/")[2]).spec.layers == spec.layers


@given(st.sampled_from(shipped.model_names()), st.sampled_from(["-", " ", "_", "", "."]), st.booleans())
def test_case_and_punctuation_do_not_matter(name, separator, upper):
    typed = name.replace("-", separator)
    assert find_model(typed.upper() if upper else typed).spec.name == name


@given(st.text(max_size=40))
def test_any_text_finds_a_model_or_says_what_is_near(text):
    try:
        found = find_model(text).spec.layers
    except UnknownModel as error:
        found = error.nearest
    assert found


def test_a_search_takes_milliseconds():
    find_model("phi4")
    start = time.perf_counter()
    for _ in range(20):
        find_model("qwen3 coder")
    assert (time.perf_counter() - start) / 20 < 0.02


def test_words_of_a_name():
    assert model_words("Qwen2.5-7B") == model_words("qwen 2.5 7b") == ("qwen", "2.5", "7b")
    assert model_words("Qwen3-30B-A3B") == ("qwen", "3", "30b", "a3b")
    assert model_words("granite-4.0") == ("granite", "4")
    assert [is_size(word) for word in ("8b", "a3b", "e4b", "3.1", "coder")] == [True, True, True, False, False]
