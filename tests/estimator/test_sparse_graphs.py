"""Graphs with sparse indexers, compressed caches and residual streams, against llama.cpp's planner."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.estimator.test_compute import machine, tiny
from willitrun_catalog.model import Dense, Layer, Mla, ModelSpec, NoFfn, NoMixer
from willitrun_catalog.shipped import model
from willitrun_estimator.compute import ComputeModel
from willitrun_estimator.compute.extent import sizes_of
from willitrun_estimator.compute.kernels import has_indexer_kernel
from willitrun_estimator.device import Backend
from willitrun_estimator.footprint import MemoryModel
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.weights import weight_profile


def buffers(spec: ModelSpec, split: tuple[int, ...], *, backend: Backend = "cuda", **asked: object) -> tuple[int, ...]:
    settings = Settings(**{"context_tokens": 32768, **asked})  # type: ignore[arg-type]
    known = ComputeModel(weight_profile(spec, "Q4_K_M"), machine(len(split), backend), settings)
    return known.bytes(Placement(gpu_layers=sum(split), split=split), settings.context_tokens)


@pytest.mark.parametrize(
    ("name", "split", "asked", "measured"),
    [
        ("deepseek-v4-flash", (44,), {}, (247036032, 34698176)),
        (
            "deepseek-v4-flash",
            (10, 20),
            {"context_tokens": 65536, "kv_type_k": "q8_0"},
            (1344479488, 313405568, 54883264),
        ),
        ("deepseek-v4-pro", (62,), {"flash_attention": False}, (2898360448, 56718272)),
        ("glm-5.3-flash", (46,), {}, (640365056, 57051456)),
        ("glm-5.3-flash", (22,), {"context_tokens": 131072}, (2174595072, 173646144)),
        ("glm-5.3-flash", (11, 22), {"context_tokens": 4096}, (2160402432, 701648384, 34385216)),
        ("glm-5.2", (79,), {"flash_attention": False}, (4936771712, 125906976)),
    ],
)
def test_buffers_are_the_planners(
    name: str, split: tuple[int, ...], asked: dict[str, object], measured: tuple[int, ...]
) -> None:
    assert buffers(model(name), split, **asked) == measured


def sharing() -> ModelSpec:
    """GLM 5.3 Flash with an indexer in every second block of latent attention alone."""
    spec = model("glm-5.3-flash")
    layers, latent = [], 0
    for layer in spec.layers:
        mixer = layer.mixers[0]
        if isinstance(mixer, Mla):
            latent += 1
            if latent % 2 == 0:
                mixer = structs.replace(mixer, indexer_heads=None, indexer_dim=None)
        layers.append(structs.replace(layer, mixers=(mixer,)))
    return structs.replace(spec, layers=tuple(layers))


@pytest.mark.parametrize(
    ("asked", "measured"),
    [({}, (449501696, 57051456)), ({"flash_attention": False}, (4950020608, 90605888))],
)
def test_blocks_may_share_the_choice_of_an_indexer(asked: dict[str, object], measured: tuple[int, ...]) -> None:
    assert buffers(sharing(), (46,), **asked) == measured


def test_blocks_that_share_a_choice_keep_no_keys() -> None:
    settings = Settings(context_tokens=32768)
    known = MemoryModel(weight_profile(sharing(), "Q4_K_M"), machine(1), settings)
    placement = Placement(gpu_layers=46, split=(46,))
    assert sum(known.cache_bytes(placement, 32768)[0]) == 672727040


def test_residual_streams_pass_a_block_without_parts() -> None:
    empty = Layer(mixers=(NoMixer(),), ffn=NoFfn())
    fed = Layer(mixers=(NoMixer(),), ffn=Dense(width=512))
    spec = structs.replace(tiny("glm5-next", fed, empty), sizes=(("streams", 4), ("indexer_pool", 16)))
    assert buffers(spec, (3,), context_tokens=1024)[0] > 0


@pytest.mark.parametrize(
    ("backend", "heads", "kind", "known"),
    [
        ("cuda", 32, "q4_0", True),
        ("cuda", 48, "f16", False),
        ("rocm", 64, "iq4_nl", False),
        ("metal", 32, "f16", False),
        ("metal", 64, "f16", True),
        ("vulkan", 48, "f16", True),
        ("cpu", 8, "iq4_nl", True),
    ],
)
def test_kernels_of_indexers(backend: str, heads: int, kind: str, known: bool) -> None:
    assert has_indexer_kernel(backend, heads, kind) is known


def test_the_host_scores_where_a_gpu_has_no_kernel() -> None:
    near, far = (buffers(model("glm-5.2"), (79,), backend=backend) for backend in ("vulkan", "metal"))
    assert far[-1] > near[-1]


def test_indexers_keep_no_more_cells_than_there_are() -> None:
    asked = Settings(context_tokens=1024)
    assert sizes_of(model("deepseek-v3.2"), asked, 1024, 1).chosen == 1024
    assert sizes_of(model("deepseek-v3.2"), asked, 4096, 1).chosen == 2048
    assert sizes_of(model("deepseek-v4-pro"), asked, 1024, 1).chosen == 256
    assert sizes_of(model("deepseek-v4-pro"), asked, 8192, 1).chosen == 1024
    assert sizes_of(model("glm-5.3-flash"), asked, 1024, 1).chosen == 128
    three = structs.replace(asked, parallel=3)
    assert sizes_of(model("deepseek-v3.2"), three, 12288, 3).ubatch == 513
