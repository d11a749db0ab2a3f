"""What is published about an accelerator: memory, bandwidth, matrix rates, identifiers."""

from __future__ import annotations

from msgspec import Struct


class Datasheet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One accelerator as its vendor (or a derivation from its clocks) describes it. Rates are dense, never sparse."""

    name: str
    vendor: str
    """`nvidia`, `amd`, `intel` or `apple`."""
    family: str
    """Architecture family of the speed constants (`ada`, `ampere`, `a100`, `hopper`, `rdna3`, `cdna1`, `apple` …)."""
    chip: str | None = None
    memory_bytes: int | None = None
    """Nominal, the largest option; `memory_options_bytes` lists all. None where it is the RAM that is fitted."""
    memory_options_bytes: tuple[int, ...] = ()
    memory_usable_bytes: int | None = None
    """What software sees, where a log or a driver gave it; the default working-set limit on Apple."""
    memory_type: str | None = None
    memory_bus_bits: int | None = None
    bandwidth_bytes_per_s: float | None = None
    fp32_flops_per_s: float | None = None
    fp16_flops_per_s: float | None = None
    """16-bit matrix rate with 32-bit accumulation; the vector rate where there are no matrix units."""
    fp16_fast_flops_per_s: float | None = None
    """With 16-bit accumulation, where it differs (GeForce)."""
    bf16_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None
    fp8_flops_per_s: float | None = None
    fp4_flops_per_s: float | None = None
    rate_basis: str | None = None
    """Where the matrix rates come from: `vendor data sheet`, or how they are derived."""
    compute_capability: str | None = None
    gfx_target: str | None = None
    multiprocessors: int | None = None
    """SMs, compute units or Xe cores, where the sheet's figures give them."""
    dies: int = 1
    """GPUs that the card shows to software, each with its share of the card's figures (CDNA 2's accelerators: 2)."""
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    link: str | None = None
    """`NVLink`, `xGMI`, `NVLink-C2C` …"""
    link_bytes_per_s: float | None = None
    """Both directions together, as vendors print it."""
    power_watts: float | None = None
    released: str | None = None
    also_known_as: tuple[str, ...] = ()
    """Products and code names that people call it by."""
    pci_ids: tuple[str, ...] = ()
    """`10de:2204`. One id can mean several memory sizes."""
    unified: bool = False
    sources: tuple[str, ...] = ()
