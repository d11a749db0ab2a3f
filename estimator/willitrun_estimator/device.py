"""What the planner sees of a machine: devices with memory, rates and a family, already merged with the data sheets."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from willitrun_probe.machine import ProductRate

Backend = Literal["cuda", "rocm", "vulkan", "metal", "cpu"]


class Device(Struct, frozen=True, kw_only=True):
    """One GPU (or slice of one) that an engine can be given."""

    name: str
    backend: Backend
    family: str
    """Architecture family of the speed constants: `ada`, `ampere`, `a100`, `hopper`, `rdna3`, `cdna1`, `apple` …;
    `unknown` when nothing is known about it."""
    memory_total_bytes: int
    memory_free_bytes: int
    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None = None
    """Dense 16-bit matrix rate with the accumulation that llama.cpp uses; None when unknown."""
    int8_ops_per_s: float | None = None
    fp32_flops_per_s: float | None = None
    """Rate of the ordinary FP32 pipes: what unpacking weights costs; None when unknown."""
    power_watts: float | None = None
    """The limit the driver enforces, else the data sheet's; None when unknown."""
    inline_ecc: bool = False
    """Error correction takes its bits from the same GDDR and costs bandwidth."""
    multiprocessors: int | None = None
    link_bytes_per_s: float | None = None
    """Host to device, one direction, measured or from the PCIe link; None when unknown."""
    unified: bool = False
    """Its memory is the host's: both pools shrink together."""
    uuid: str | None = None
    index: int | None = None
    pci_address: str | None = None
    numa_node: int | None = None
    compute_capability: str | None = None
    gfx_target: str | None = None
    display_active: bool = False
    sheet: str | None = None
    """Name of its data sheet in the catalog, under which published measurements are kept."""
    peer_bytes_per_s: float | None = None
    """To the fastest other GPU of the machine, one direction."""
    driver_version: str | None = None
    """As the driver says it: `580.95.05`; None when unknown."""


class Host(Struct, frozen=True, kw_only=True):
    """CPU and RAM as the planner sees them."""

    ram_total_bytes: int
    ram_available_bytes: int
    bandwidth_bytes_per_s: float | None
    """Measured, given, or derived from what is known of the CPU; None when nothing is."""
    bandwidth_basis: str = "unknown"
    """`measured`, `given`, `data-sheet`, `assumed` or `unknown`."""
    threads: int
    """Physical cores an engine may use."""
    cpu_name: str | None = None
    flags: tuple[str, ...] = ()
    product_rates: tuple[ProductRate, ...] = ()
    """Measured on this host with all its threads, by weight type; empty where nothing was."""
    block_s: float | None = None
    """Seconds of a block beside reading its weights, measured likewise."""
    side_s: float | None = None
    """Seconds per row and column of a matrix and prompt token, measured likewise."""
    disk_read_bytes_per_s: float | None = None
    disk_basis: str = "unknown"
    """`measured` (also given), `assumed` or `unknown`."""


class Devices(Struct, frozen=True, kw_only=True):
    """Everything a plan may use. `gpus` is ordered as engines will see them (visible ones only)."""

    name: str
    gpus: tuple[Device, ...]
    host: Host
    vllm_version: str | None = None
    """Of the vLLM that is installed there; None without one, or when it did not say."""
