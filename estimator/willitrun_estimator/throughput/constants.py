"""The speed model's constants, as fitted by `scripts/fit_speed.py` and kept in `data/speed_constants.json`.

Times are linear in what a device does, so a constant is the cost of one unit of work: seconds per byte relative to the
data sheet's bandwidth, operations relative to its rate, seconds per block. There is none for a single GPU model.
"""

from __future__ import annotations

import os
from functools import cache

import msgspec
from msgspec import Struct

from willitrun_estimator.families import UNKNOWN
from willitrun_estimator.interval import Spread


class DecodeCosts(Struct, frozen=True, kw_only=True):
    """Cost of one token on one GPU of a family."""

    weight: float
    """Bytes of resident weights, relative to peak bandwidth: 1.2 reads at five sixths of it."""
    expert: float
    """Bytes of active experts, likewise."""
    cache: float
    """Bytes of the KV cache, likewise."""
    compute: float
    """Weights multiplied, relative to the FP32 rate: unpacking and multiplying are not free."""
    attention: float
    """Operations of attention over the context, relative to the FP32 rate."""
    block_s: float
    """Seconds per attention mixer and what comes with it: kernels that wait for each other."""
    recurrent_s: float
    """Seconds per recurrent mixer, a gated delta net."""
    moe_s: float
    """Seconds per block with routed experts: the router and its gather."""
    early: float
    """What the latencies were multiplied by in builds before 2025."""
    vulkan_weight: float
    """What reading weights is multiplied by under Vulkan."""
    vulkan_block: float
    """What the latencies are multiplied by under Vulkan."""


class PrefillCosts(Struct, frozen=True, kw_only=True):
    """Cost of one micro-batch on one GPU of a family."""

    quantized: float
    """Multiply-adds with quantized weights, relative to the matrix rate."""
    half: float
    """Multiply-adds with 16-bit weights, likewise."""
    expert: float
    """Multiply-adds in routed experts, relative to the dense ones of the same type."""
    weight: float
    """Bytes of weights read once per micro-batch, relative to peak bandwidth."""
    activation: float
    """Bytes moved per token, mixer and hidden value between kernels, relative to peak bandwidth."""
    attention: float
    """Operations of attention, relative to the FP32 rate."""
    recurrent: float
    """State updates of recurrent mixers, relative to the FP32 rate."""
    block_s: float
    """Seconds per attention mixer and micro-batch."""
    recurrent_s: float
    """Seconds per recurrent mixer and micro-batch."""
    moe_s: float
    """Seconds per block with routed experts and micro-batch."""
    early: float
    """What all but reading weights was multiplied by in builds before 2025."""
    vulkan: float
    """What all but reading weights is multiplied by under Vulkan."""


class Family(Struct, frozen=True, kw_only=True):
    """The constants of one architecture family, with what they rest on."""

    decode: DecodeCosts
    prefill: PrefillCosts
    decode_rows: int = 0
    prefill_rows: int = 0
    gpus: int = 0
    """Different GPU models among the rows; with 0, the constants are those of all families together."""
    fp32_per_byte: float = 30.0
    """Typical FP32 operations per byte of bandwidth, for a GPU whose FP32 rate is unknown."""
    vector_per_fp32: float = 1.0
    """Operations that are issued one by one, over the sheet's FP32 rate: half where sheets count dual issue."""
    matrix_per_fp32: float = 2.0
    """16-bit matrix rate over the sheet's FP32 rate, by the instruction set."""
    watts_per_tflops: float = 0.0
    """Typical power per FP32 rate; 0 where none is known."""


class Shared(Struct, frozen=True, kw_only=True):
    """Costs that are the same everywhere."""

    token_s: float
    """Per token: sampling, launching the graph, copying the logits."""
    device_s: float
    """Per further GPU of a layer split and token."""
    formats: dict[str, float]
    """Reading a weight type, relative to Q4_0."""
    prefill_formats: dict[str, float]
    """Multiplying a weight type, relative to Q4_0."""
    recurrent: dict[str, float]
    """A recurrent mixer by kind, relative to a gated delta net. `other` is any kind without rows, whose kernels may be
    new: the geometric mean of what gated delta nets cost now and what they cost before they had a kernel of their own.
    """
    prefill_recurrent: dict[str, float]
    """State updates by kind, likewise."""
    inline_ecc: float
    """What reading weights is multiplied by where error correction shares the memory."""
    power: float
    """Exponent of the power per operation in what decode computes."""
    prefill_power: float
    """Exponent of the power per operation in what a prompt computes."""
    vulkan_half: float
    """What multiply-adds with 16-bit weights are further multiplied by under Vulkan."""
    pipeline: float
    """How much of a perfect pipeline several GPUs reach over the micro-batches of a prompt, 0..1."""


class HostCosts(Struct, frozen=True, kw_only=True):
    """Costs of the part on the CPU."""

    bandwidth: dict[str, float]
    """Share of the given bandwidth that matrix products reach, by where the figure is from."""
    core_bytes_per_s: dict[str, float]
    """Weight bytes that one AVX-512 core unpacks and multiplies per second for one token, by weight type."""
    core_ops_per_s: dict[str, float]
    """Operations per second of one AVX-512 core in the products of a prompt, by weight type."""
    decode_cores: dict[str, float]
    """What a core of another instruction set takes for one token, relative to AVX-512."""
    prefill_cores: dict[str, float]
    """The same for a prompt."""
    side_s: float
    """Per row and column of a matrix, prompt token and core: inputs are quantized, outputs written."""
    expert: float
    """Reading experts, relative to dense weights."""
    recurrent: float
    """Blocks with a recurrent mixer, relative to attention blocks."""
    split_s: float
    """Per block whose experts the host computes: router, gather, and the crossing from the GPU and back."""
    block_s: float
    """Per block computed on the host and thread: threads wait for each other after every product."""
    link: float
    """Share of the link that copies of weights reach."""
    copy_bytes_per_s: float
    """What copies from pageable memory reach at most, however wide the link."""
    disk: float
    """Share of the disk's rate that page faults reach."""
    start_s: float
    """Until a server answers, the weights apart: the program, its vocabulary, its buffers, a first pass."""
    rearranged_bytes_per_s: float
    """Weights that the processor's kernels want in another order are copied while a model loads."""


class Constants(Struct, frozen=True, kw_only=True):
    """All constants of the speed model."""

    fit_date: str
    source: str
    families: dict[str, Family]
    shared: Shared
    host: HostCosts
    decode_spread: dict[str, Spread]
    prefill_spread: dict[str, Spread]

    def family(self, name: str) -> Family:
        """Return a family's constants, those of an average GPU for one without."""
        return self.families.get(name) or self.families[UNKNOWN]


@cache
def shipped() -> Constants:
    """Return the constants that came with the product."""
    folder = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    with open(os.path.join(folder, "data", "speed_constants.json"), "rb") as file:  # noqa: PTH118,PTH123
        return msgspec.json.decode(file.read(), type=Constants)
