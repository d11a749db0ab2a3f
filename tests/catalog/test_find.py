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
        ("llama3.1", "llama-3.1-8b-instruct"),
        ("Llama 3.3 70B", "llama-3.3-70b-instruct"),
        ("llama3", "llama-3-8b-instruct"),
        ("llama3.2", "llama-3.2-3b-instruct"),
        ("llama3.2:1b", "llama-3.2-1b-instruct"),
        ("llama-2-7b", "llama-2-7b-chat"),
        ("llama-4-scout", "llama-4-scout-17b-16e-instruct"),
        ("llama4 maverick", "llama-4-maverick-17b-128e-instruct"),
        ("qwen3", "qwen3-8b"),
        ("qwen3-8b", "qwen3-8b"),
        ("qwen3:8b", "qwen3-8b"),
        ("qwen3:4b", "qwen3-4b"),
        ("qwen3-coder", "qwen3-coder-30b-a3b-instruct"),
        ("qwen3-vl", "qwen3-vl-8b-instruct"),
        ("qwen2.5", "qwen2.5-7b-instruct"),
        ("qwen2.5:7b", "qwen2.5-7b-instruct"),
        ("qwen2.5-coder", "qwen2.5-coder-7b-instruct"),
        ("qwen2.5-coder-7b", "qwen2.5-coder-7b-instruct"),
        ("qwen2.5-vl-7b", "qwen2.5-vl-7b-instruct"),
        ("qwq", "qwq-32b"),
        ("gemma3", "gemma-3-12b-it"),
        ("gemma-3-27b-it", "gemma-3-27b-it"),
        ("gemma3:1b", "gemma-3-1b-it"),
        ("gemma2", "gemma-2-9b-it"),
        ("gemma3n", "gemma-3n-e4b-it"),
        ("gemma 4 31b", "gemma-4-31b-it"),
        ("embeddinggemma", "embeddinggemma-300m"),
        ("mistral", "mistral-7b-instruct-v0.3"),
        ("mistral-small", "mistral-small-4-119b-2603"),
        ("mistral small 3.2", "mistral-small-3.2-24b-instruct-2506"),
        ("mistral-nemo", "mistral-nemo-instruct-2407"),
        ("phi-4", "phi-4"),
        ("phi4-mini", "phi-4-mini-instruct"),
        ("phi-3-mini", "phi-3-mini-4k-instruct"),
        ("deepseek-r1", "deepseek-r1"),
        ("deepseek-r1:7b", "deepseek-r1-distill-qwen-7b"),
        ("deepseek-r1:8b", "deepseek-r1-0528-qwen3-8b"),
        ("deepseek-r1:70b", "deepseek-r1-distill-llama-70b"),
        ("deepseek-r1-distill-qwen-7b", "deepseek-r1-distill-qwen-7b"),
        ("deepseek-v2-lite", "deepseek-v2-lite-chat"),
        ("gpt-oss", "gpt-oss-20b"),
        ("gptoss", "gpt-oss-20b"),
        ("kimi-k2", "kimi-k2-instruct"),
        ("kimi k2 thinking", "kimi-k2-thinking"),
        ("glm-4.5-air", "glm-4.5-air"),
        ("glm-4.5", "glm-4.5"),
        ("granite-3.3-8b", "granite-3.3-8b-instruct"),
        ("command-r", "command-r-08-2024"),
        ("command r7b", "command-r7b-12-2024"),
        ("command-a", "command-a-03-2025"),
        ("mixtral-8x7b", "mixtral-8x7b-instruct-v0.1"),
        ("smollm2", "smollm2-1.7b-instruct"),
        ("smollm3", "smollm3-3b"),
        ("olmo-2", "olmo-2-1124-7b-instruct"),
        ("olmo-2-32b", "olmo-2-0325-32b-instruct"),
        ("falcon-h1", "falcon-h1-7b-instruct"),
        ("yi-34b", "yi-1.5-34b-chat"),
        ("exaone-4-32b", "exaone-4.0-32b"),
        ("tinyllama", "tinyllama-1.1b-chat-v1.0"),
        ("seed-oss", "seed-oss-36b-instruct"),
        ("unsloth/Qwen3-30B-A3B-GGUF", "qwen3-30b-a3b"),
        ("lmstudio-community/Qwen3-4B-GGUF", "qwen3-4b"),
        ("qwen2.5:latest", "qwen2.5-7b-instruct"),
        ("nemotron nano 9b", "nemotron-nano-9b-v2"),
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


@pytest.mark.parametrize("typed", ["gpt-4", "claude", "pixtral", "wizardlm", "vicuna", "bge-m3", "hermes-3", "llama-9"])
def test_models_that_are_not_in_the_catalog_are_said_to_be_unknown(typed):
    with pytest.raises(UnknownModel) as caught:
        find_model(typed)
    assert caught.value.nearest


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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Phi-4-14B", "phi-4"),
        ("DeepSeek-R1-671B", "deepseek-r1"),
        ("DeepSeek-V2-Lite-16B", "deepseek-v2-lite-chat"),
        ("Qwen3-Coder-Next-80B-A3B", "qwen3-coder-next"),
        ("Gemma-4-E2B-QAT", "gemma-4-e2b-it"),
    ],
)
def test_a_size_that_the_maker_leaves_out_may_be_said(typed, meant):
    assert find_model(typed).spec.name == meant


@pytest.mark.parametrize("typed", ["phi-4-27b", "deepseek-r1-400b", "0K1"])
def test_a_size_that_is_not_the_models_is_another_model(typed):
    with pytest.raises(UnknownModel):
        find_model(typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b-instruct"),
        ("RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8", "qwen2.5-7b-instruct"),
        ("cyankiwi/gemma-4-31B-it-AWQ-4bit", "gemma-4-31b-it"),
        ("Qwen3.8-27B NVFP4", "qwen3.8-27b"),
        ("Qwen3.8-27B AutoRound int4", "qwen3.8-27b"),
    ],
)
def test_a_quantized_checkpoint_has_the_shape_of_its_model(typed, meant):
    assert find_model(typed).spec.name == meant


def test_a_format_alone_names_no_model():
    with pytest.raises(UnknownModel):
        find_model("nothing-AWQ")
