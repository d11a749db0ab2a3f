from __future__ import annotations

import pytest

from willitrun_catalog.find import find_datasheet, find_model
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.families import family
from willitrun_probe.units import GIB, MIB


@pytest.fixture
def model():
    return lambda name: find_model(name).spec


@pytest.fixture
def gpu():
    def build(name, **changes):
        sheet = find_datasheet(name)
        total = sheet.memory_usable_bytes or sheet.memory_bytes
        values = {
            "name": sheet.name,
            "backend": "cuda" if sheet.vendor == "nvidia" else "rocm",
            "family": family(
                vendor=sheet.vendor,
                compute_capability=sheet.compute_capability,
                gfx_target=sheet.gfx_target,
                name=sheet.name,
            ),
            "memory_total_bytes": total,
            "memory_free_bytes": total - 500 * MIB,
            "bandwidth_bytes_per_s": sheet.bandwidth_bytes_per_s,
            "flops_per_s": sheet.fp16_flops_per_s,
            "compute_capability": sheet.compute_capability,
            "gfx_target": sheet.gfx_target,
            "unified": sheet.unified,
            "uuid": "GPU-0",
            "index": 0,
        }
        return Device(**(values | changes))

    return build


@pytest.fixture
def machine(gpu):
    def build(name, count=1, **changes):
        gpus = tuple(gpu(name, **({"uuid": f"GPU-{i}", "index": i} | changes)) for i in range(count))
        host = Host(ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB, bandwidth_bytes_per_s=5e10, threads=16)
        return Devices(name="machine", gpus=gpus, host=host)

    return build
