from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_catalog import shipped
from willitrun_catalog.find import UnknownGpu, find_datasheet
from willitrun_catalog.find_gpu import memory_in

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
        ("A40", "NVIDIA A40 PCIe"),
        ("NVIDIA A40", "NVIDIA A40 PCIe"),
        ("Arc Pro A40", "Intel Arc Pro A40"),
        ("Intel Arc A40", "Intel Arc Pro A40"),
        ("RTX 3080", "NVIDIA GeForce RTX 3080"),
        ("3080", "NVIDIA GeForce RTX 3080"),
        ("RTX 3080 12GB", "NVIDIA GeForce RTX 3080 12 GB"),
        ("RTX 3080 Ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", "NVIDIA GeForce RTX 3080 Laptop"),
        ("Apple M2", "Apple M2 (8-core GPU)"),
        ("Apple M2 Pro", "Apple M2 Pro (16-core GPU)"),
        ("Apple M1 Max 32c", "Apple M1 Max (32-core GPU)"),
        ("M2 Ultra 76c", "Apple M2 Ultra (76-core GPU)"),
        ("M3 Ultra", "Apple M3 Ultra (80-core GPU)"),
        ("H100", "NVIDIA H100 SXM5 80 GB"),
        ("H100 SXM 80GB", "NVIDIA H100 SXM5 80 GB"),
        ("H100 SXM", "NVIDIA H100 SXM5 80 GB"),
        ("A100 SXM 40GB", "NVIDIA A100 SXM4 40 GB"),
        ("V100 SXM", "NVIDIA Tesla V100 SXM2 32 GB"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL 94 GB"),
        ("GB10", "NVIDIA GB10"),
        ("NVIDIA GB10", "NVIDIA GB10"),
        ("A100 80GB", "NVIDIA A100 SXM4 80 GB"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 SXM4 40 GB"),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100 PCIe 40 GB"),
        ("A10", "NVIDIA A10 PCIe"),
        ("A10G", "NVIDIA A10G"),
        ("L4", "NVIDIA L4"),
        ("L40", "NVIDIA L40"),
        ("L40S", "NVIDIA L40S"),
        ("MI300X", "AMD Instinct MI300X"),
        ("MI250", "AMD Instinct MI250"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("4070 super", "NVIDIA GeForce RTX 4070 SUPER"),
        ("4070 Ti Super", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("Radeon 8060S", "AMD Radeon 8060S"),
        ("Ryzen AI Max+ 395", "AMD Radeon 8060S"),
        ("T4", "NVIDIA Tesla T4"),
        ("T400", "NVIDIA T400"),
        ("V100 32GB", "NVIDIA Tesla V100 SXM2 32 GB"),
        ("Tesla V100-PCIE-16GB", "NVIDIA Tesla V100 PCIe 16 GB"),
        ("H200", "NVIDIA H200 SXM 141 GB"),
        ("B200", "NVIDIA B200 SXM"),
        ("NVIDIA RTX A6000", "NVIDIA RTX A6000"),
        ("A6000", "NVIDIA RTX A6000"),
        ("Quadro RTX 6000", "NVIDIA Quadro RTX 6000"),
        ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA RTX PRO 6000 Blackwell Server"),
        ("RTX A2000", "NVIDIA RTX A2000"),
        ("RTX A2000 12GB", "NVIDIA RTX A2000 12 GB"),
        ("Tesla P40", "NVIDIA Tesla P40"),
        ("GTX 1080 Ti", "NVIDIA GeForce GTX 1080 Ti"),
        ("RX 7900 XT", "AMD Radeon RX 7900 XT"),
        ("9070", "AMD Radeon RX 9070"),
        ("Vega 64", "AMD Radeon RX Vega 64"),
        ("B580", "Intel Arc B580"),
        ("780M", "AMD Radeon 780M"),
        ("rtx3080ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("4060ti 16gb", "NVIDIA GeForce RTX 4060 Ti 16 GB"),
        ("1080ti", "NVIDIA GeForce GTX 1080 Ti"),
        ("7900xtx", "AMD Radeon RX 7900 XTX"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 SXM5 80 GB"),
        ("3090 24GB", "NVIDIA GeForce RTX 3090"),
        ("H100 80GB PCIe", "NVIDIA H100 PCIe 80 GB"),
        ("MacBook Air M2", "Apple M2 (8-core GPU)"),
        ("GTX 1060 3GB", "NVIDIA GeForce GTX 1060 3 GB"),
    ],
)
def test_names_as_people_and_drivers_write_them(typed, meant):
    assert find_datasheet(typed).name == meant


def test_the_memory_picks_the_variant():
    assert find_datasheet("NVIDIA GeForce RTX 3060", memory_bytes=12 * GIB - 400 * 2**20).memory_bytes == 12 * GIB
    assert find_datasheet("NVIDIA GeForce RTX 3060", memory_bytes=8 * GIB - 300 * 2**20).memory_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("reported", "gib", "meant"),
    [
        ("NVIDIA A40", 44.98, "NVIDIA A40 PCIe"),
        # A slice of a card keeps the card's name.
        ("A40", 6, "NVIDIA A40 PCIe"),
        ("NVIDIA GeForce RTX 3080", 10, "NVIDIA GeForce RTX 3080"),
        ("NVIDIA GeForce RTX 3080", 12, "NVIDIA GeForce RTX 3080 12 GB"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 16, "NVIDIA GeForce RTX 3080 Laptop"),
        # The part that the driver lets a GPU use is no size that is sold.
        ("Apple M2", 10.67, "Apple M2 (8-core GPU)"),
        ("Apple M2", 16, "Apple M2 (8-core GPU)"),
        ("NVIDIA A100-SXM4-80GB", 79.25, "NVIDIA A100 SXM4 80 GB"),
        ("NVIDIA GB10", 119.7, "NVIDIA GB10"),
    ],
)
def test_a_size_that_was_read_leaves_the_product(reported, gib, meant):
    assert find_datasheet(reported, memory_bytes=int(gib * GIB)).name == meant


def test_a_vendor_that_is_named_is_kept_to():
    with pytest.raises(UnknownGpu):
        find_datasheet("Radeon 4090")
    assert find_datasheet("GeForce 3090").vendor == "nvidia"


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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("DGX Spark GB10", "NVIDIA GB10"),
        ("Strix Halo 8060S", "AMD Radeon 8060S"),
        ("H200 NVL PCIe", "NVIDIA H200 NVL"),
        ("GTX 1660 Ti Mobile", "NVIDIA GeForce GTX 1660 Ti Laptop"),
        ("GTX 1070 with Max-Q Design", "NVIDIA GeForce GTX 1070 Laptop"),
        ("Apple M1 7c", "Apple M1"),
        ("NVIDIA A40-48Q", "NVIDIA A40 PCIe"),
        ("MI50 32GB", "AMD Instinct MI50"),
    ],
)
def test_what_fits_no_name_is_read_more_loosely(typed, meant):
    assert find_datasheet(typed).name == meant


@pytest.mark.parametrize("typed", ["RTX A1000 Laptop GPU", "H300 PCIe", "RTX 4055 Mobile"])
def test_a_model_number_is_never_dropped(typed):
    with pytest.raises(UnknownGpu):
        find_datasheet(typed)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("MI50 32GB", 32),
        ("L40S-8Q", 8),
        ("RTX 3090", None),
        ("GPU 1.5 GiB", 1.5),
        ("H100 80GB MIG 1g.10gb", 10),
        ("A100 MIG", None),
    ],
)
def test_the_memory_that_a_name_states(name, gib):
    assert memory_in(name) == (None if gib is None else gib * GIB)
