"""The machine that llama.cpp's planner is asked about: equal GPUs without limits, and a host."""

from __future__ import annotations

from willitrun_estimator.device import Backend, Device, Devices, Host


def machine(gpus: int, backend: Backend = "cuda") -> Devices:
    gpu = Device(
        name="GPU",
        backend=backend,
        family="ampere",
        memory_total_bytes=1 << 40,
        memory_free_bytes=1 << 40,
        bandwidth_bytes_per_s=None,
        multiprocessors=82,
    )
    host = Host(ram_total_bytes=1 << 40, ram_available_bytes=1 << 40, bandwidth_bytes_per_s=None, threads=8)
    return Devices(name="m", gpus=(gpu,) * gpus, host=host)
