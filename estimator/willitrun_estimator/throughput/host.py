"""What a span of blocks costs on the host: the matrix products by weight type, the cache, and what threads wait.

Threads meet after every product, and the more of them there are the longer that takes; experts in host memory add a
crossing from the GPU and back for each block. A few tokens at once are multiplied one after the other while the
weights are in the caches; from `GEMM_TOKENS` on kernels take tiles of `TILE_TOKENS` (seen with llama-bench and prompts
of 1 to 32 tokens, `benchmarks/serving.py` for slots).
"""

from __future__ import annotations

from willitrun_estimator.device import Host
from willitrun_estimator.throughput.constants import Constants
from willitrun_estimator.throughput.products import mixes, of_type, products_of
from willitrun_estimator.throughput.rates import host_bytes_per_s
from willitrun_estimator.throughput.work import Work

REARRANGED = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Types that are interleaved for AVX2 and AVX-512 while a model loads (ggml-cpu/repack.cpp)."""
GEMM_TOKENS = 8
TILE_TOKENS = 16
MATRICES = 7
"""Matrices of a dense block: four of attention, three of the feed-forward part."""
EXPERT_MATRICES = 3


class HostCost:
    """Seconds per unit of work on the CPU, and sums of them over spans of blocks."""

    def __init__(self, work: Work, host: Host, constants: Constants, bytes_per_s: float) -> None:
        costs = constants.host
        self.work, self.costs = work, costs
        products = products_of(host, costs, bytes_per_s)
        experts, rest = mixes(work.weights)
        self.rest, self.expert = products.of(rest), products.of(experts)
        self.byte_s = self.rest.byte_s
        self.expert_byte_s = self.expert.byte_s * costs.expert
        self.block_s = costs.block_s * max(1, host.threads) if host.block_s is None else host.block_s
        self.row_s = 1.0 / min(bytes_per_s, products.decode_cores * of_type(costs.core_bytes_per_s, "F16"))
        self.operation_s = products.operation_s("F16")
        hidden = work.weights.spec.hidden_size
        moe = work.moe
        self.side_s = products.side_s
        self.product_s = self.rest.product_s + self.rest.elements_per_byte / hidden * self.side_s
        self.expert_product_s = self.expert.product_s + self.expert.elements_per_byte / hidden * self.side_s
        self.again_s = max(self.product_s, self.rest.again_s)
        self.expert_again_s = max(self.expert_product_s, self.expert.again_s)
        self.token_block_s = (MATRICES if moe is None else MATRICES - EXPERT_MATRICES) * hidden * self.side_s
        self.token_moe_s = EXPERT_MATRICES * (moe.experts_used if moe else 0) * hidden * self.side_s

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
        work = self.work
        resident = work.resident_bytes[blocks] + (work.weights.output_bytes if head else 0)
        return (
            self.byte_s * self._slow(blocks) * resident
            + self.expert_byte_s * work.active_bytes[blocks]
            + self.row_s * work.state_bytes[blocks]
            + self.cache_s(0, blocks, depth_tokens)
            + self.block_s * blocks
            + self.costs.split_s * work.moe_blocks[blocks]
        )

    def rearranged_bytes(self, blocks: int) -> float:
        """Return the bytes of so many blocks that kernels want in another order."""
        types = self.work.weights.type_bytes
        moved = sum(amount for kind, amount in types if kind in REARRANGED)
        share = moved / max(1, sum(amount for _, amount in types))
        return share * (self.work.resident_bytes[blocks] + self.work.expert_bytes[blocks])

    def _slow(self, blocks: int) -> float:
        """Return what the recurrent mixers among the blocks make of the time for everything but experts."""
        mixers = self.work.attention_mixers[blocks] + self.work.recurrent_mixers[blocks]
        share = self.work.recurrent_mixers[blocks] / mixers if mixers else 0.0
        return 1.0 + (self.costs.recurrent - 1.0) * share

    def batch_s(self, blocks: int, tokens: int, *, head: bool) -> float:
        """Return what the further tokens of a step cost, beside what one alone does; caches apart."""
        work = self.work
        resident = work.resident_bytes[blocks] + (work.weights.output_bytes if head else 0)
        return self._rest_s(blocks, tokens, resident) + self.more_experts_s(0, blocks, tokens)

    def more_experts_s(self, first: int, last: int, tokens: int) -> float:
        """Return what the experts of further tokens cost: those nobody used yet are read, the others multiplied."""
        work = self.work
        read = work.touched_share(tokens) / max(work.touched_share(1), 1e-9)
        seconds = (read - 1.0) * self.expert_byte_s + (tokens - read) * self.expert_again_s
        return seconds * (work.active_bytes[last] - work.active_bytes[first])

    def _rest_s(self, blocks: int, tokens: int, resident_bytes: float) -> float:
        """Return what tokens beyond the first cost in everything but experts."""
        each = (tokens - 1) * self.again_s
        if tokens >= GEMM_TOKENS:
            each = min(each, max(tokens, TILE_TOKENS) * self.product_s)
        return each * self._slow(blocks) * resident_bytes + (tokens - 1) * self.token_block_s * blocks

    def prefill_s(self, blocks: int, tokens: int, *, head: bool) -> float:
        """Return the seconds of one micro-batch through the first blocks; the head sees the last token alone."""
        work = self.work
        first = self.blocks_s(blocks, 0, head=head) - self.expert_byte_s * work.active_bytes[blocks]
        return (
            first
            + self._rest_s(blocks, tokens, work.resident_bytes[blocks])
            + self._prompt_experts_s(0, blocks, tokens)
        )

    def _prompt_experts_s(self, first: int, last: int, tokens: int) -> float:
        """Return what the experts of a micro-batch cost."""
        work = self.work
        active = work.active_bytes[last] - work.active_bytes[first]
        one = self.expert_byte_s * active
        read = self.expert_byte_s * work.touched_share(tokens) * (work.expert_bytes[last] - work.expert_bytes[first])
        sides = tokens * self.token_moe_s * (work.moe_blocks[last] - work.moe_blocks[first])
        tiled = read + tokens * self.expert_product_s * active
        return sides + min(one + self.more_experts_s(first, last, tokens), tiled)

    def prefill_experts_s(self, first: int, last: int, tokens: int) -> float:
        """Return the seconds of one micro-batch through experts that stay on the host."""
        return self._prompt_experts_s(first, last, tokens) + self.costs.split_s * (last - first)

    def attention_s(self, first: int, last: int, depth_tokens: float) -> float:
        """Return what attention over the context costs one token of a prompt."""
        return self.operation_s * self.work.context_operations(first, last, depth_tokens)
