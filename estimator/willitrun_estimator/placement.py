"""How a model is laid over devices, and the engine settings that change what it needs. Values only."""

from __future__ import annotations

from typing import Literal

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


class Override(Struct, frozen=True, kw_only=True):
    """Routed experts of one block that live apart from it (`--override-tensor`)."""

    block: int
    tensors: tuple[str, ...]
    """Their names without a suffix, as `ffn_down_exps`."""
    device: int | None
    """The GPU, counted as in the split; None is the host."""
    bytes: int
    """What they take."""


Kind = Literal["whole", "front", "scattered"]
"""What is on the host: nothing that a GPU could hold, the front of the model, or experts of blocks here and there."""


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
    overrides: tuple[Override, ...] = ()
    """Experts of single blocks, from `cpu_moe_layers` on, that are elsewhere: a block cut in two fills a GPU up."""

    def kind(self, blocks: int) -> Kind:
        """Return what is on the host; compute buffers of one kind follow one rule."""
        if any(one.device is None and one.block > self.cpu_moe_layers for one in self.overrides):
            return "scattered"
        whole = self.gpu_layers > blocks and not self.cpu_moe_layers
        return "whole" if whole and all(one.device is not None for one in self.overrides) else "front"

    def home(self, block: int, blocks: int) -> int | None:
        """Return the GPU of a block, counted as in the split; None is the host."""
        unit = block - (blocks + 1 - self.gpu_layers)
        for gpu, count in enumerate(self.split or (self.gpu_layers,)):
            if 0 <= unit < count:
                return gpu
            unit -= count
        return None

    def shifts(self, blocks: int, gpus: int) -> list[int]:
        """Return the bytes that overrides bring to each GPU and, last, to the host; what they take away is below 0."""
        out = [0] * (gpus + 1)
        for one in self.overrides:
            home = self.home(one.block, blocks)
            out[gpus if home is None else home] -= one.bytes
            out[gpus if one.device is None else one.device] += one.bytes
        return out
