from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog import shipped
from willitrun_catalog.find import UnknownGpu, find_datasheet

GIB = 1 << 30


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("rtx3090", "NVIDIA GeForce RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 Laptop"),
        ("A100 40GB", "NVIDIA A100 SXM4 40 GB"),
        ("NVIDIA A100 40GB", "NVIDIA A100 SXM4 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 SXM4 80 GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 PCIe 80 GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80 GB"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe 80 GB"),
        ("Tesla V100-SXM2-16GB", "NVIDIA Tesla V100 SXM2 16 GB"),
        ("Tesla T4", "NVIDIA Tesla T4"),
        ("AMD Instinct MI100 32GB", "AMD Instinct MI100"),
        ("7900 XTX", "AMD Radeon RX 7900 XTX"),
        ("AMD Radeon RX 7900 XTX", "AMD Radeon RX 7900 XTX"),
        ("M4 Max", "Apple M4 Max (40-core GPU)"),
        ("M4 Max 32-core", "Apple M4 Max (32-core GPU)"),
        ("M5", "Apple M5 (10-core GPU)"),
        ("Apple M1", "Apple M1"),
        ("Intel(R) Arc(TM) A770 Graphics", "Intel Arc A770"),
        ("RTX 3060 8GB", "NVIDIA GeForce RTX 3060 8 GB"),
        ("4060 Ti 16GB", "NVIDIA GeForce RTX 4060 Ti 16 GB"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell"),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
        ("Strix Halo", "AMD Radeon 8060S"),
        ("DGX Spark", "NVIDIA GB10"),
        ("5090", "NVIDIA GeForce RTX 5090"),
    ],
)
def test_names_as_people_and_drivers_write_them(typed, meant):
    assert find_datasheet(typed).name == meant


def test_the_memory_picks_the_variant():
    assert find_datasheet("NVIDIA GeForce RTX 3060", memory_bytes=12 * GIB - 400 * 2**20).memory_bytes == 12 * GIB
    assert find_datasheet("NVIDIA GeForce RTX 3060", memory_bytes=8 * GIB - 300 * 2**20).memory_bytes == 8 * GIB


@pytest.mark.parametrize("typed", ["RTX 9999", "", "Radeon Graphics", "Voodoo 2"])
def test_unknown_accelerators_bring_the_nearest(typed):
    with pytest.raises(UnknownGpu) as caught:
        find_datasheet(typed)
    assert caught.value.exit_code == 4
    assert len(caught.value.nearest) == 5


def test_every_accelerator_finds_itself():
    for sheet in shipped.datasheets():
        assert find_datasheet(sheet.name).name == sheet.name


@given(st.text(max_size=40))
def test_any_text_finds_one_or_says_what_is_near(text):
    try:
        found = find_datasheet(text).name
    except UnknownGpu as error:
        found = error.nearest
    assert found
