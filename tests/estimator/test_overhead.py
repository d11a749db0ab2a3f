"""What stands beyond the buffers: GPU contexts against measured cards, and the host's named lines."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from msgspec.structs import replace

from willitrun_catalog.shipped import model
from willitrun_estimator import overhead
from willitrun_estimator.cache_sums import CacheSums
from willitrun_estimator.compute.next_token import draft_compute_bytes
from willitrun_estimator.device import Backend, Device
from willitrun_estimator.placement import Settings
from willitrun_estimator.weights import weight_profile

MIB = 1 << 20
CONTEXTS = Path(__file__).parents[1] / "truth" / "context_overhead.csv"


def gpu(backend: Backend, multiprocessors: int | None) -> Device:
    return Device(
        name="GPU",
        backend=backend,
        family="unknown",
        memory_total_bytes=1,
        memory_free_bytes=1,
        bandwidth_bytes_per_s=None,
        multiprocessors=multiprocessors,
    )


def measured() -> list[tuple[str, Backend, int, float, bool]]:
    with CONTEXTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [
        (row["device"], row["backend"], int(row["multiprocessors"]), float(row["mib"]), row["state"] == "used")  # type: ignore[misc]
        for row in rows
    ]


@pytest.mark.parametrize(("device", "backend", "count", "mib", "used"), measured())
def test_contexts_of_measured_cards(device: str, backend: Backend, count: int, mib: float, used: bool) -> None:
    said = overhead.context_bytes(gpu(backend, count), used=used) / MIB
    slack = {("cuda", False): 60, ("cuda", True): 120, ("rocm", True): 230}[backend, used]
    assert abs(said - mib) <= slack, device


def test_an_unknown_card_gets_an_upper_bound_that_says_so() -> None:
    unknown, known = gpu("cuda", None), gpu("cuda", 188)
    assert overhead.runtime_bytes(unknown) >= overhead.runtime_bytes(known)
    assert "unknown" in overhead.runtime_notes(unknown)[0][2]
    assert "unknown" not in overhead.runtime_notes(known)[0][2]
    assert overhead.runtime_notes(gpu("metal", 40)) == ()


def test_vulkan_takes_scratch_for_experts_while_it_runs() -> None:
    moe = weight_profile(model("qwen3-30b-a3b"), "Q4_K_M")
    dense = weight_profile(model("qwen3-8b"), "Q4_K_M")
    wide = Settings(context_tokens=4096, ubatch=2048)
    names = [name for name, _, _ in overhead.runtime_notes(gpu("vulkan", 82), moe, wide)]
    assert names == ["GPU context and kernels", "expert prefill scratch"]
    assert overhead.runtime_bytes(gpu("vulkan", 82), moe, wide) == (239 + 1901) * MIB
    assert len(overhead.runtime_notes(gpu("vulkan", 82), dense, wide)) == 1
    assert len(overhead.runtime_notes(gpu("cuda", 82), moe, wide)) == 1


def test_projectors_are_sized_by_file_or_parameters() -> None:
    weights = weight_profile(model("gemma-3-12b-it"), "Q4_K_M")
    assert overhead.projector_bytes(weights) == 2 * weights.spec.non_text_params > 0
    known = replace(weights, spec=replace(weights.spec, projector_bytes=888))
    assert overhead.projector_bytes(known) == 888


@pytest.mark.parametrize(
    ("name", "context", "slots", "cache", "gpu", "host"),
    [
        ("qwen3.5-35b-a3b", 8192, 1, 16.0, 72.02, 16.02),
        ("qwen3.5-35b-a3b", 32768, 4, 64.0, 76.02, 40.02),
        ("qwen3.5-27b", 32768, 4, 128.0, 130.02, 52.02),
        ("deepseek-v3.2", 8192, 1, 9.0, 375.01, 36.01),
        ("ling-3.0-flash", 8192, 1, 9.0, 102.01, 18.01),
        ("glm-4.5-air", 8192, 1, 32.0, 154.01, 24.01),
        ("glm-4.7-flash", 8192, 1, 9.0, 72.51, 16.01),
        ("nemotron-3-super-120b-a12b", 8192, 1, 8.0, 40.01, 24.01),
        ("step-3.7-flash", 8192, 1, 96.0, 76.01, 24.01),
        ("hy3-preview", 32768, 4, 128.0, 160.01, 48.01),
        ("glm-5.2", 8192, 1, 9.0, 224.01, 32.01),
    ],
)
def test_a_draft_head_takes_what_llama_cpp_plans_for_its_context(
    name: str, context: int, slots: int, cache: float, gpu: float, host: float
) -> None:
    wanted = Settings(context_tokens=context, parallel=slots, kv_unified=slots > 1)
    found = overhead.draft_bytes(weight_profile(model(name), "Q4_K_M"), wanted)
    lines = {line: amount / MIB for line, amount, _ in found}
    assert lines["draft head cache"] == cache
    assert lines["draft compute buffer"] == pytest.approx(gpu, abs=0.01)
    assert lines["draft inputs, in RAM"] == pytest.approx(host, abs=0.01)


@pytest.mark.parametrize(
    ("name", "weights", "table"),
    [("glm-4.5-air", 1964.70, 333.0), ("deepseek-v3.2", 7667.47, 497.11), ("glm-4.6", 2454.78, 0.0)],
)
def test_a_draft_heads_token_table_stays_in_ram(name: str, weights: float, table: float) -> None:
    found = overhead.draft_bytes(weight_profile(model(name), "Q4_K_M"), Settings(context_tokens=4096))
    lines = {line: amount / MIB for line, amount, _ in found}
    assert lines["draft head weights"] == pytest.approx(weights, abs=0.01)
    assert lines.get("draft token table, in RAM", 0.0) == pytest.approx(table, abs=0.01)
    whole = overhead.draft_bytes(weight_profile(model(name), "Q8_0"), Settings(context_tokens=4096))
    assert "draft token table, in RAM" not in {line for line, _, _ in whole}


def test_states_are_kept_for_drafted_tokens_where_they_can_be_rolled_back() -> None:
    wanted = Settings(context_tokens=4096)
    kept = overhead.draft_bytes(weight_profile(model("qwen3.5-27b"), "Q4_K_M"), wanted, 2)
    assert {line: amount for line, amount, _ in kept}["draft rollback states"] / MIB == pytest.approx(299.24, abs=0.02)
    latent = overhead.draft_bytes(weight_profile(model("glm-5.2"), "Q4_K_M"), wanted)
    assert "draft rollback states" not in {line for line, _, _ in latent}


def test_models_that_llama_cpp_cannot_draft_with_have_no_draft_lines() -> None:
    for name in ("qwen3-8b", "k-exaone-236b-a23b"):
        assert overhead.draft_bytes(weight_profile(model(name), "Q4_K_M"), Settings(context_tokens=4096)) == ()


def test_a_draft_over_two_gpus_keeps_four_copies_of_its_inputs() -> None:
    spec = model("nemotron-3-super-120b-a12b")
    gpu, host = draft_compute_bytes(spec, Settings(context_tokens=8192), gpus=2)
    assert gpu / MIB == pytest.approx(128.03, abs=0.01)
    assert host / MIB == pytest.approx(72.04, abs=0.01)
    assert draft_compute_bytes(spec, Settings(context_tokens=8192), gpus=0)[0] == 0


def test_host_lines() -> None:
    windowed = model("gemma-3-12b-it")
    wanted = Settings(context_tokens=32768)
    assert [name for name, _, _ in overhead.host_notes(wanted)] == ["prompt cache, at most"]
    lines = overhead.host_notes(wanted, checkpoint_bytes=7, repacked_bytes=5)
    assert [name for name, _, _ in lines] == [
        "prompt cache, at most",
        "context checkpoints, at most",
        "repacked weights",
    ]
    assert [held for _, held, _ in lines[1:]] == [7 * overhead.CHECKPOINTS, 5]
    assert CacheSums(model("llama-3.1-8b-instruct"), wanted).checkpoint_bytes == 0
    assert CacheSums(windowed, wanted).checkpoint_bytes == 40 * 1024 * 2 * 2 * 8 * 256
    assert CacheSums(windowed, Settings(context_tokens=32768, swa_full=True)).checkpoint_bytes == 0


def test_only_processors_repack() -> None:
    weights = weight_profile(model("llama-3.1-8b-instruct"), "Q4_K_M")
    wanted = Settings(context_tokens=4096)
    assert 3 << 30 < overhead.repacked_bytes(weights, 0, wanted) < 5 << 30
    assert overhead.repacked_bytes(weights, 1, wanted) == 0
    assert overhead.repacked_bytes(weights, 0, Settings(context_tokens=4096, repack=False)) == 0


def test_what_options_would_take_is_named_beside_the_totals() -> None:
    wanted = Settings(context_tokens=8192)
    seeing, drafting = (weight_profile(model(name), "Q4_K_M") for name in ("gemma-3-12b-it", "qwen3.5-35b-a3b"))
    (line,) = overhead.option_notes(seeing, wanted, gpus=1)
    assert line[:2] == ("projector", overhead.projector_bytes(seeing))
    named = {name: amount for name, amount, _ in overhead.option_notes(drafting, wanted, gpus=1)}
    assert named["projector"] == overhead.projector_bytes(drafting)
    assert named["draft head cache"] == 16 * MIB
    on_host = {name: amount for name, amount, _ in overhead.option_notes(drafting, wanted, gpus=0)}
    assert on_host["draft head cache"] == 16 * MIB
    assert "draft compute buffer" not in on_host
    assert overhead.option_notes(weight_profile(model("qwen3-8b"), "Q4_K_M"), wanted, gpus=1) == ()
