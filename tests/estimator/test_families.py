from __future__ import annotations

import pytest

from willitrun_estimator.families import FAMILIES, family
from willitrun_estimator.throughput.constants import shipped


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"compute_capability": "3.7"}, "kepler"),
        ({"compute_capability": "5.2"}, "maxwell"),
        ({"compute_capability": "6.0"}, "gp100"),
        ({"compute_capability": "6.1"}, "pascal"),
        ({"compute_capability": "7.0"}, "volta"),
        ({"compute_capability": "7.5"}, "turing"),
        ({"compute_capability": "7.5", "name": "Tesla T4"}, "turing"),
        ({"compute_capability": "7.5", "name": "Quadro RTX 4000"}, "turing"),
        ({"compute_capability": "7.5", "name": "NVIDIA GeForce GTX 1660 Ti"}, "turing16"),
        ({"compute_capability": "7.5", "name": "NVIDIA T1000 8GB"}, "turing16"),
        ({"compute_capability": "7.5", "name": "NVIDIA GeForce MX450"}, "turing16"),
        ({"compute_capability": "8.0"}, "a100"),
        ({"compute_capability": "8.6"}, "ampere"),
        ({"compute_capability": "8.7"}, "ampere"),
        ({"compute_capability": "8.9"}, "ada"),
        ({"compute_capability": "9.0"}, "hopper"),
        ({"compute_capability": "10.3"}, "blackwell-dc"),
        ({"compute_capability": "12.1"}, "blackwell"),
        ({"compute_capability": "99.0"}, "unknown"),
        ({"compute_capability": "new"}, "unknown"),
        ({"gfx_target": "gfx90a"}, "cdna"),
        ({"gfx_target": "gfx906:sramecc+:xnack-"}, "gcn5"),
        ({"gfx_target": "gfx942"}, "cdna3"),
        ({"gfx_target": "gfx1100"}, "rdna3"),
        ({"gfx_target": "gfx1151"}, "rdna35"),
        ({"gfx_target": "gfx1201"}, "rdna4"),
        ({"gfx_target": "gfx9999x"}, "gcn"),
        ({"gfx_target": "gfx700"}, "unknown"),
        ({"vendor": "apple", "name": "Apple M4 Pro"}, "apple"),
        ({"name": "Apple M5 Max (40-core GPU)"}, "apple5"),
        ({"vendor": "apple", "name": "virtual"}, "apple"),
        ({"vendor": "intel", "name": "Intel Arc B580"}, "xe2"),
        ({"name": "Intel Arc A770"}, "xe"),
        ({"name": "Something else"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_family(known, expected):
    assert family(**known) == expected


def test_every_family_has_constants():
    assert set(FAMILIES) | {"unknown"} == set(shipped().families)
