"""What ollama picks when nobody tells it."""

from __future__ import annotations

import pytest

from willitrun_catalog.shipped import model
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.ollama import KV_TYPES, default_context, ollama
from willitrun_estimator.question import kv_types
from willitrun_estimator.request import Request

GIB = 1 << 30


def machine(*sizes: float) -> Devices:
    gpus = tuple(
        Device(
            name="GPU",
            backend="cuda",
            family="ada",
            memory_total_bytes=int(size * GIB),
            memory_free_bytes=int(size * GIB),
            bandwidth_bytes_per_s=None,
        )
        for size in sizes
    )
    host = Host(ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB, bandwidth_bytes_per_s=None, threads=8)
    return Devices(name="m", gpus=gpus, host=host)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_ollama_takes_three_cache_types(kv_type):
    assert kv_types(Request(engine="ollama", kv_type=kv_type)) == (kv_type,)
    assert set(kv_types(Request(engine="ollama"))) <= set(KV_TYPES)


@pytest.mark.parametrize("kv_type", ["f32", "bf16", "q5_1", "q5_0", "q4_1", "iq4_nl"])
def test_another_cache_type_is_refused_with_what_would_do(kv_type):
    with pytest.raises(EstimatorError, match=f"--kv-type {kv_type}.*takes only f16, q8_0, q4_0") as caught:
        kv_types(Request(engine="ollama", kv_type=kv_type))
    assert "--engine llama.cpp" in caught.value.advice
    assert kv_types(Request(engine="llama.cpp", kv_type=kv_type)) == (kv_type,)


@pytest.mark.parametrize(
    ("sizes", "tokens"),
    [((), 4096), ((12,), 4096), ((23.6,), 32768), ((12, 12), 32768), ((24, 24), 131072), ((80,), 131072)],
)
def test_context_follows_the_memory_of_all_gpus(sizes: tuple[float, ...], tokens: int) -> None:
    assert default_context(model("llama-3.1-8b-instruct"), machine(*sizes)) == tokens


def test_each_slot_has_the_whole_context() -> None:
    chosen = ollama(model("llama-3.1-8b-instruct"), machine(12), context_tokens=8192, parallel=3)
    assert (chosen.context_tokens, chosen.parallel, chosen.kv_unified) == (24576, 3, False)
    default = ollama(model("llama-3.1-8b-instruct"), machine(12))
    assert (default.context_tokens, default.parallel, default.kv_type_k, default.ubatch) == (4096, 1, "f16", 512)
