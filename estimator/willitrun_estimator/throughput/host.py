"""What a span of blocks costs on the host: the matrix products by weight type, the cache, and what threads wait.

Threads meet after every product, and the more of them there are the longer that takes; experts in host memory add a
crossing from the GPU and back for each block.
"""

from __future__ import annotations

from willitrun_estimator.device import Host
from willitrun_estimator.throughput.constants import Constants
from willitrun_estimator.throughput.products import Products, mixes, of_type
from willitrun_estimator.throughput.rates import host_bytes_per_s
from willitrun_estimator.throughput.work import Work


class HostCost:
    """Seconds per unit of work on the CPU, and sums of them over spans of blocks."""

    def __init__(self, work: Work, host: Host, constants: Constants, bytes_per_s: float) -> None:
        costs = constants.host
        self.work, self.costs = work, costs
        products = Products(host, costs, bytes_per_s)
        experts, rest = mixes(work.weights)
        self.byte_s, self.product_s = products.of(rest)
        self.expert_byte_s, self.expert_product_s = products.of(experts)
        self.expert_byte_s *= costs.expert
        self.block_s = costs.block_s * max(1, host.threads) if host.block_s is None else host.block_s
        self.row_s = 1.0 / min(bytes_per_s, products.decode_cores * of_type(costs.core_bytes_per_s, "F16"))
        self.operation_s = products.operation_s("F16")

    @classmethod
    def of(cls, host: Host, work: Work, constants: Constants) -> HostCost | None:
        """Return the costs on a host, None when nothing is known of its memory."""
        rate = host_bytes_per_s(host, constants)
        return None if rate is None else cls(work, host, constants, rate)

    def cache_s(self, first: int, last: int, depth_tokens: float) -> float:
        """Return what attention over the context costs one token."""
        return self.row_s * self.work.context_bytes(first, last, depth_tokens)

    def experts_s(self, first: int, last: int) -> float:
        """Return what the experts of a span cost one token, the crossings to and from the GPU included."""
        work = self.work
        read = self.expert_byte_s * (work.active_bytes[last] - work.active_bytes[first])
        return read + self.costs.split_s * (work.moe_blocks[last] - work.moe_blocks[first])

    def blocks_s(self, blocks: int, depth_tokens: float, *, head: bool) -> float:
        """Return the seconds of one token through the first blocks, and the head where no GPU has it."""
        work, costs = self.work, self.costs
        resident = work.resident_bytes[blocks] + (work.weights.output_bytes if head else 0)
        mixers = work.attention_mixers[blocks] + work.recurrent_mixers[blocks]
        slow = 1.0 + (costs.recurrent - 1.0) * (work.recurrent_mixers[blocks] / mixers if mixers else 0.0)
        return (
            self.byte_s * slow * resident
            + self.expert_byte_s * work.active_bytes[blocks]
            + self.row_s * work.state_bytes[blocks]
            + self.cache_s(0, blocks, depth_tokens)
            + self.block_s * blocks
        )

    def batch_s(self, blocks: int, *, head: bool) -> float:
        """Return what each further token of a step costs the cores."""
        work = self.work
        resident = work.resident_bytes[blocks] + (work.weights.output_bytes if head else 0)
        return self.product_s * resident + self.expert_product_s * work.active_bytes[blocks]

    def prefill_s(self, blocks: int, tokens: int, *, head: bool) -> float:
        """Return the seconds of one micro-batch through the first blocks."""
        work = self.work
        read = self.byte_s * (work.resident_bytes[blocks] + (work.weights.output_bytes if head else 0))
        read += self.expert_byte_s * work.touched_share(tokens) * work.expert_bytes[blocks]
        products = self.product_s * work.resident_bytes[blocks] + self.expert_product_s * work.active_bytes[blocks]
        return tokens * products + read + self.block_s * blocks

    def prefill_experts_s(self, first: int, last: int, tokens: int) -> float:
        """Return the seconds of one micro-batch through experts that stay on the host."""
        work = self.work
        active = work.active_bytes[last] - work.active_bytes[first]
        read = work.touched_share(tokens) * (work.expert_bytes[last] - work.expert_bytes[first])
        products = self.expert_product_s * tokens * active
        return products + self.expert_byte_s * read + self.costs.split_s * (last - first)

    def attention_s(self, first: int, last: int, depth_tokens: float) -> float:
        """Return what attention over the context costs one token of a prompt."""
        return self.operation_s * self.work.context_operations(first, last, depth_tokens)
