"""What stands beyond the buffers: GPU contexts against measured cards, and the host's named lines."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from msgspec.structs import replace

from willitrun_catalog.shipped import model
from willitrun_estimator import overhead
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


def test_a_draft_head_takes_weights_cache_states_and_a_buffer() -> None:
    hybrid = weight_profile(model("qwen3.5-27b"), "Q4_K_M")
    lines = {name: amount for name, amount, _ in overhead.draft_bytes(hybrid, Settings(context_tokens=131072), 2)}
    assert lines["draft head cache"] == 512 * MIB
    assert lines["draft rollback states"] / MIB == pytest.approx(2 * 149.62, abs=0.02)
    latent = weight_profile(model("glm-5.2"), "Q4_K_M")
    wide = overhead.draft_bytes(latent, Settings(context_tokens=4096, logit_rows=512))
    assert {name for name, _, _ in wide} == {"draft head weights", "draft head cache", "draft compute buffer"}
    assert overhead.draft_bytes(weight_profile(model("qwen3-8b"), "Q4_K_M"), Settings(context_tokens=4096)) == ()


def test_host_lines() -> None:
    plain = weight_profile(model("llama-3.1-8b-instruct"), "Q4_K_M")
    windowed = weight_profile(model("gemma-3-12b-it"), "Q4_K_M")
    wanted = Settings(context_tokens=32768)
    assert [name for name, _, _ in overhead.host_notes(plain, wanted)] == ["prompt cache, at most"]
    names = [name for name, _, _ in overhead.host_notes(windowed, wanted, repacked_bytes=5)]
    assert names == ["prompt cache, at most", "context checkpoints, at most", "repacked weights"]
    assert overhead.checkpoint_bytes(windowed, wanted) == 40 * 1024 * 2 * 2 * 8 * 256
    assert overhead.checkpoint_bytes(windowed, Settings(context_tokens=32768, swa_full=True)) == 0


def test_only_processors_repack() -> None:
    weights = weight_profile(model("llama-3.1-8b-instruct"), "Q4_K_M")
    wanted = Settings(context_tokens=4096)
    assert 3 << 30 < overhead.repacked_bytes(weights, 0, wanted) < 5 << 30
    assert overhead.repacked_bytes(weights, 1, wanted) == 0
    assert overhead.repacked_bytes(weights, 0, Settings(context_tokens=4096, repack=False)) == 0
