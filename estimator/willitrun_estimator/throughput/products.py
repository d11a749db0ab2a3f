"""What matrix products cost on a host's cores, by weight type: bytes over memory bandwidth or over what cores unpack.

While one token is computed each core takes weights at a rate that depends on their type, until all of them together
take what memory delivers; i-quants with lookup tables never get there. For a prompt operations count. What `calibrate`
measured with the installed engine replaces the model, and corrects it for the types that were not measured.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from willitrun_catalog.block_types import BLOCK_TYPES
from willitrun_estimator.device import Host
from willitrun_estimator.throughput.constants import HostCosts
from willitrun_estimator.throughput.rates import instruction_set
from willitrun_estimator.weights import WeightProfile

ALIKE = {
    "F32": "F16", "Q4_1": "Q4_0", "Q5_1": "Q5_0", "Q8_1": "Q8_0", "Q8_K": "Q8_0", "NVFP4": "MXFP4", "IQ2_XXS": "IQ2_XS",
    "IQ2_S": "IQ2_XS", "IQ1_S": "IQ2_XS", "IQ1_M": "IQ2_XS", "IQ3_XXS": "IQ3_S", "TQ1_0": "Q2_K", "TQ2_0": "Q2_K",
    "Q1_0": "Q2_K", "Q2_0": "Q2_K",
}  # fmt: skip
"""Types without measurements of their own, and those whose kernels are built the same way (ggml-cpu/quants.c)."""
USUAL = "Q4_0"
"""Stands in for formats that llama.cpp does not have."""
SATURATION = 12.0
"""How sharply cores run into the limit of memory: 1 adds both times, infinity takes the longer."""

SINGLE = 1.4
"""Operations of a few tokens at once, relative to those of a tile: kernels of vectors keep less in registers."""
LOOKED_UP = 0.6
"""What of an i-quant's seconds per byte a further token costs: its tables are looked up for every token."""

Mix = Mapping[str, float]
"""Bytes by weight type."""


def mixes(weights: WeightProfile) -> tuple[Mix, Mix]:
    """Return the types of the routed experts and of everything else.

    Experts are nearly all of a routed model, so they have its most frequent types.
    """
    left = float(weights.cumulative_expert_bytes[-1])
    experts: dict[str, float] = {}
    rest: dict[str, float] = {}
    for kind, amount in weights.type_bytes or ((weights.matmul_type, 1),):
        taken = min(left, amount)
        left -= taken
        if taken:
            experts[kind] = taken
        if amount > taken:
            rest[kind] = amount - taken
    return experts or rest, rest or experts


def elements_per_byte(kind: str) -> float:
    """Return how many weights a byte holds."""
    block = BLOCK_TYPES.get(kind, BLOCK_TYPES[USUAL])
    return block.block_elements / block.block_bytes


class MixCost(NamedTuple):
    """Seconds per byte of a mix of weight types."""

    byte_s: float
    """For one token."""
    product_s: float
    """For every token of a prompt."""
    again_s: float
    """For a second token at once, while the weights are in the caches."""
    elements_per_byte: float


class KindCost(NamedTuple):
    """Seconds per byte of one weight type, as in `MixCost`, and per operation of a prompt."""

    byte_s: float
    operation_s: float
    again_s: float
    elements_per_byte: float


class Products:
    """Seconds per byte of weights on one host."""

    def __init__(self, host: Host, costs: HostCosts, bytes_per_s: float) -> None:
        self.costs, self.bytes_per_s = costs, bytes_per_s
        threads = max(1, host.threads)
        self.decode_cores = threads * costs.decode_cores[instruction_set(host, costs.decode_cores)]
        self.prefill_cores = threads * costs.prefill_cores[instruction_set(host, costs.prefill_cores)]
        self.side_s = costs.side_s / self.prefill_cores if host.side_s is None else host.side_s
        self._kinds: dict[str, KindCost] = {}
        self.measured = {rate.weight_type: rate for rate in host.product_rates}
        self.slower = self.slower_prompt = 1.0
        if host.product_rates:
            decode = [self.modelled_s(rate.weight_type) * rate.decode_bytes_per_s for rate in host.product_rates]
            prefill = [
                self.modelled_operation_s(rate.weight_type) * rate.prefill_ops_per_s for rate in host.product_rates
            ]
            self.slower = 1.0 / geometric_mean(decode)
            self.slower_prompt = 1.0 / geometric_mean(prefill)

    def modelled_s(self, kind: str) -> float:
        """Return the seconds of a byte of weights for one token as the constants have it."""
        memory, cores = 1.0 / self.bytes_per_s, 1.0 / (self.decode_cores * of_type(self.costs.core_bytes_per_s, kind))
        return float((memory**SATURATION + cores**SATURATION) ** (1 / SATURATION))

    def modelled_operation_s(self, kind: str) -> float:
        """Return the seconds of one operation of a prompt as the constants have it."""
        return 1.0 / (self.prefill_cores * of_type(self.costs.core_ops_per_s, kind))

    def byte_s(self, kind: str) -> float:
        """Return the seconds of a byte of weights for one token."""
        rate = self.measured.get(kind)
        return self.slower * self.modelled_s(kind) if rate is None else 1.0 / rate.decode_bytes_per_s

    def operation_s(self, kind: str) -> float:
        """Return the seconds of one operation of a prompt."""
        rate = self.measured.get(kind)
        if rate is None:
            return self.slower_prompt * self.modelled_operation_s(kind)
        return 1.0 / rate.prefill_ops_per_s

    def again_s(self, kind: str) -> float:
        """Return the seconds of a byte for a second token at once: products of vectors, looked up once more or not."""
        again = SINGLE * 2 * elements_per_byte(kind) * self.operation_s(kind)
        if kind.startswith("IQ"):
            cores = self.decode_cores * of_type(self.costs.core_bytes_per_s, kind)
            again = max(again, self.slower * LOOKED_UP / cores)
        return again

    def kind(self, kind: str) -> KindCost:
        """Return the costs of one type, worked out once."""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = KindCost(
                self.byte_s(kind), self.operation_s(kind), self.again_s(kind), elements_per_byte(kind)
            )
        return known

    def of(self, mix: Mix) -> MixCost:
        """Return the costs of a mix: the mean over its bytes."""
        total = byte_s = product_s = again_s = elements = 0.0
        for kind, amount in mix.items():
            cost = self.kind(kind)
            held = amount * cost.elements_per_byte
            total += amount
            elements += held
            byte_s += amount * cost.byte_s
            product_s += 2 * held * cost.operation_s
            again_s += amount * cost.again_s
        return MixCost(byte_s / total, product_s / total, again_s / total, elements / total)


_RECENT: OrderedDict[int, tuple[Host, HostCosts, float, Products]] = OrderedDict()
_RECENT_LIMIT = 64


def products_of(host: Host, costs: HostCosts, bytes_per_s: float) -> Products:
    """Return the costs on a host; the latest are kept, because a question looks at many models on one."""
    held = _RECENT.get(id(host))
    if held is not None and held[0] is host and held[1] is costs and held[2] == bytes_per_s:
        return held[3]
    made = Products(host, costs, bytes_per_s)
    _RECENT[id(host)] = (host, costs, bytes_per_s, made)
    while len(_RECENT) > _RECENT_LIMIT:
        _RECENT.popitem(last=False)
    return made


def of_type(table: Mapping[str, float], kind: str) -> float:
    """Look a weight type up, or the one it is like."""
    return table.get(kind) or table.get(ALIKE.get(kind, USUAL)) or table[USUAL]


def geometric_mean(values: list[float]) -> float:
    """Return the mean of the logarithms, as a value."""
    return math.exp(sum(map(math.log, values)) / len(values))
