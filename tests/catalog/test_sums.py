"""What the catalog ships of weights is what summing them gives."""

from __future__ import annotations

import pytest
from msgspec import structs

from willitrun_catalog import shipped, sums
from willitrun_catalog.quant import ladder
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.weight_sums import packed, unpacked
from willitrun_estimator.weights import weight_profile


@pytest.mark.slow
def test_every_model_in_every_quantization():
    for spec in shipped.models():
        found = shipped.sums_of(spec)
        assert found is not None, spec.name
        for quant in ladder(spec):
            assert unpacked(spec, quant, found) == weight_profile(spec, quant), (spec.name, quant)


def test_what_is_not_in_the_ladder_is_summed_when_asked_for():
    spec = shipped.model("llama-3.1-8b-instruct")
    found = shipped.sums_of(spec)
    assert found is not None
    assert found.of("IQ1_S") is None
    assert unpacked(spec, "IQ1_S", found) is None
    assert Prepared(spec, found).weights("IQ1_S") == weight_profile(spec, "IQ1_S")


def test_a_model_that_only_has_the_name_gets_no_sums():
    spec = shipped.model("llama-3.1-8b-instruct")
    assert shipped.sums_of(structs.replace(spec, vocab_size=1000)) is None
    assert shipped.sums_of(structs.replace(spec, name="my-own")) is None


def test_an_entry_that_changed_since_gets_no_sums():
    entry = shipped.compiled().models[0]
    assert sums.sums_of(shipped.model_at(0).name, entry) is not None
    assert sums.sums_of(shipped.model_at(0).name, entry + b"x") is None
    assert sums.sums_of("no such model", entry) is None


def test_blocks_that_differ_are_kept_apart():
    spec = shipped.model("deepseek-v3")
    profile = weight_profile(spec, "Q4_K_M")
    folded = packed(profile)
    assert sum(folded.runs[::2]) == spec.block_count
    assert len(folded.kinds) == len(set(profile.layers)) > 2
    assert folded.runs[:2] == (3, 0), "three dense blocks come first"
