"""How a model is laid over devices, and the engine settings that change what it needs. Values only."""

from __future__ import annotations

from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True):
    """llama.cpp settings that change bytes or speed; defaults are llama-server's for one user."""

    context_tokens: int
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    ubatch: int = 512
    batch: int = 2048
    parallel: int = 1
    """Slots (sequences)."""
    kv_unified: bool = False
    swa_full: bool = False
    logit_rows: int | None = None
    """Rows of logits kept: None is llama-server's rule (one per slot); llama-bench keeps `ubatch` rows."""
    op_offload: bool = True
    repack: bool = True


class Placement(Struct, frozen=True, kw_only=True):
    """Which blocks live where.

    llama.cpp counts from the back and the output head is one unit: `gpu_layers` = blocks + 1 puts everything on
    GPUs, 1 the head alone. `split` gives each GPU its number of units, in device order (blocks front to back, the
    head after the last block, on the last GPU that has a unit); it sums to `gpu_layers`.
    """

    gpu_layers: int
    split: tuple[int, ...] = ()
    cpu_moe_layers: int = 0
    """The first N blocks keep their routed experts in host memory (`--n-cpu-moe N`)."""
    kv_on_host: bool = False
    """`--no-kv-offload`."""
