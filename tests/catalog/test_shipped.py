from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from willitrun_catalog import shipped
from willitrun_catalog.errors import UnknownGpu, UnknownModel
from willitrun_catalog.model import Attention, Moe

ROOT = Path(__file__).resolve().parents[2]


def test_the_compiled_file_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "compile_catalog.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_models_are_there_with_sources():
    models = shipped.models()
    assert len(models) == 299
    assert sum(len(spec.aliases) for spec in models) == 335
    assert all(spec.sources and spec.layers and spec.params for spec in models)
    assert len({spec.name for spec in models}) == 299
    assert shipped.model_names() == tuple(spec.name for spec in models)


def test_names_are_as_people_type_them():
    assert all(name == name.lower() and " " not in name for name in shipped.model_names())


def test_well_known_shapes():
    llama = shipped.model("llama-3.1-8b-instruct")
    assert (llama.block_count, llama.hidden_size, llama.vocab_size) == (32, 4096, 128256)
    assert llama.layers[0].mixers == (Attention(heads=32, kv_heads=8, key_dim=128, value_dim=128),)
    gpt_oss = shipped.model("gpt-oss-20b")
    assert gpt_oss.native_type == "mxfp4"
    assert isinstance(gpt_oss.layers[0].ffn, Moe)
    assert [layer.mixers[0].window for layer in gpt_oss.layers[:3]] == [128, None, 128]
    kimi = shipped.model("kimi-linear-48b-a3b-instruct")
    assert [mixer.kind for mixer in kimi.layers[0].mixers] == ["kda"]
    assert kimi.layers[0].mixers[0].state_elements == 128 * 128 * 32
    assert kimi.layers[0].mixers[0].conv_elements == 3 * 3 * 4096
    qwen = shipped.model("qwen3-next-80b-a3b-instruct")
    state = qwen.layers[0].mixers[0]
    assert 4 * (state.conv_elements + state.state_elements) * 36 == pytest.approx(75.4 * 2**20, rel=1e-3)


def test_equal_layers_are_one_object():
    llama = shipped.model("llama-3.1-8b-instruct")
    assert len({id(layer) for layer in llama.layers}) == 1


def test_canonical_marks_makers_instruct_releases():
    assert shipped.model("llama-3.1-8b-instruct").canonical
    assert not shipped.model("nemotron-h-56b-base-8k").canonical
    assert not shipped.model("qwen3-embedding-8b").canonical
    assert not shipped.model("intellect-3").canonical


def test_unknown_names_raise():
    with pytest.raises(UnknownModel):
        shipped.model("Llama-3.1-8B")
    with pytest.raises(UnknownGpu):
        shipped.datasheet("RTX 3090")


def test_all_accelerators_are_there_with_sources():
    sheets = shipped.datasheets()
    assert len(sheets) == 368
    assert {sheet.vendor for sheet in sheets} == {"nvidia", "amd", "intel", "apple"}
    assert all(sheet.sources and sheet.family for sheet in sheets)
    # Integrated GPUs take what RAM there is; every card has a size of its own.
    assert all(sheet.unified for sheet in sheets if sheet.memory_bytes is None)


def test_well_known_accelerators():
    card = shipped.datasheet("NVIDIA GeForce RTX 3090")
    assert card.memory_bytes == 24 << 30
    assert card.bandwidth_bytes_per_s == pytest.approx(936.2e9)
    assert card.fp16_flops_per_s == pytest.approx(71.2e12)
    assert card.fp16_fast_flops_per_s == pytest.approx(142.3e12)
    assert (card.compute_capability, card.family, card.pcie_generation, card.pcie_lanes) == ("8.6", "ampere", 4, 16)
    old = shipped.datasheet("AMD Instinct MI100")
    assert (old.gfx_target, old.family, old.link) == ("gfx908", "cdna1", "xGMI")
    apple = shipped.datasheet("Apple M4 Max (40-core GPU)")
    assert apple.unified
    assert apple.memory_options_bytes == (48 << 30, 64 << 30, 128 << 30)
    assert apple.fp16_flops_per_s == pytest.approx(18.4e12)


@pytest.mark.parametrize(
    ("name", "multiprocessors"),
    [
        ("NVIDIA GeForce RTX 3090", 82),
        ("NVIDIA A100 SXM4 40 GB", 108),
        ("NVIDIA H100 SXM5 80 GB", 132),
        ("NVIDIA B200 SXM", 148),
        ("AMD Instinct MI100", 120),
        ("AMD Instinct MI300X", 304),
        ("AMD Radeon RX 7900 XTX", 96),
        ("Intel Arc A770", 32),
        ("Apple M4 Max (40-core GPU)", 40),
        ("NVIDIA H20 96GB", None),
    ],
)
def test_multiprocessors_where_known(name, multiprocessors):
    assert shipped.datasheet(name).multiprocessors == multiprocessors


def test_pci_ids_lead_to_data_sheets():
    assert [sheet.name for sheet in shipped.datasheets_by_pci_id("10DE:2204")] == ["NVIDIA GeForce RTX 3090"]
    assert shipped.datasheets_by_pci_id("ffff:0000") == ()


def test_one_model_is_decoded_alone():
    code = (
        "from willitrun_catalog import shipped; shipped.model('phi-4'); "
        "assert shipped.model_at.cache_info().currsize == 1; import sys; "
        "assert not {'tomllib', 'difflib', 'asyncio', 'urllib.request'} & set(sys.modules)"
    )
    # A measured child would import the coverage tool and what that needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "catalog", env=env)
