from __future__ import annotations

import pytest

from willitrun_catalog.publishers import published
from willitrun_catalog.shipped import model

QWEN = ("unsloth/Qwen3-8B-GGUF", "bartowski/Qwen_Qwen3-8B-GGUF", "mradermacher/Qwen3-8B-GGUF")


@pytest.mark.parametrize(
    ("quant", "repository", "tag"),
    [
        ("Q4_K_M", "unsloth/Qwen3-8B-GGUF", "Q4_K_M"),
        ("Q3_K_L", "bartowski/Qwen_Qwen3-8B-GGUF", "Q3_K_L"),
        ("IQ3_M", "bartowski/Qwen_Qwen3-8B-GGUF", "IQ3_M"),
    ],
)
def test_the_first_repository_whose_publisher_offers_it_is_named(quant, repository, tag):
    found = published(QWEN, quant)
    assert (found.repository, found.tag, found.known) == (repository, tag, True)


def test_a_plain_mix_goes_before_a_mix_of_the_publishers_own():
    assert published(QWEN, "IQ2_M").repository.startswith("bartowski/")
    assert published(QWEN[::2], "IQ2_M").tag == "UD-IQ2_M"


def test_what_nobody_is_known_to_offer_is_said_to_be_unknown():
    found = published(QWEN[::2], "IQ3_M")
    assert (found.repository, found.tag, found.known) == (QWEN[0], "IQ3_M", False)
    assert published((), "Q4_K_M") is None


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_models_trained_in_mxfp4_come_from_the_engines_own_repository(name):
    found = published(model(name).gguf_repos, "MXFP4_MOE")
    assert (found.repository, found.tag, found.known) == (f"ggml-org/{name}-GGUF", "MXFP4", True)
