"""Closed-form speed of a placement: `SpeedModel`, made once per weights, devices and settings.

One token costs, on every GPU in turn (a layer split adds memory and no speed),

    bytes / bandwidth + weights / FP32 rate + cache(depth) / bandwidth + seconds per mixer and per routed block

and on the host the bytes over what its memory and cores deliver, with a price for every crossing. All terms are linear,
so a placement costs differences of sums over blocks. The form follows from how llama.cpp decodes: each weight is read
once, and each block is a chain of small kernels (ggml/src/ggml-cuda/mmvq.cu).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from willitrun_estimator.device import Device, Devices
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput.constants import Constants, shipped
from willitrun_estimator.throughput.gpu import GpuCost
from willitrun_estimator.throughput.host import HostCost
from willitrun_estimator.throughput.work import Work
from willitrun_estimator.weights import WeightProfile

MIN_OFFLOAD_TOKENS = 32
"""llama.cpp computes a host tensor's product on the GPU from this many tokens on (ggml-cuda.cu, `min_batch_size`)."""
SAMPLE_S = 20e-9
"""Per vocabulary entry and slot: llama-server looks at every candidate (llama-server against llama-bench with two
AVX-512 cores and vocabularies of 128,256 and 151,936; a processor alone, GPUs were not measured)."""


class Stage(NamedTuple):
    """A GPU's part of a placement: blocks first..last-1, perhaps the head; blocks before `moved` without experts."""

    cost: GpuCost
    first: int
    last: int
    head: bool
    moved: int


class Spans:
    """Who computes which blocks: `(gpu, first, last, head)` for every GPU that has a unit, and the host's front."""

    __slots__ = ("expert_blocks", "gpus", "head_on_host", "host_blocks")

    def __init__(self, placement: Placement, blocks: int, gpu_count: int) -> None:
        units = min(placement.gpu_layers, blocks + 1) if gpu_count else 0
        self.host_blocks = min(blocks, blocks + 1 - units)
        self.head_on_host = units == 0
        self.expert_blocks = min(placement.cpu_moe_layers, blocks)
        self.gpus: list[tuple[int, int, int, bool]] = []
        first, left = self.host_blocks, units
        for gpu, share in enumerate(placement.split or (units,)):
            taken = min(share, left)
            if taken <= 0:
                continue
            left -= taken
            last = first + taken - (left == 0)
            self.gpus.append((gpu, first, last, left == 0))
            first = last


def rate_facts(device: Device) -> tuple[object, ...]:
    """Return what `GpuCost` looks at: GPUs with equal facts cost the same."""
    return (
        device.family, device.backend, device.bandwidth_bytes_per_s, device.fp32_flops_per_s, device.power_watts,
        device.inline_ecc, device.link_bytes_per_s,
    )  # fmt: skip


class SpeedModel:
    """Speed of one model in one quantization on given devices with fixed settings, for any placement.

    Methods return None where a device's bandwidth is unknown: no number instead of an invented one.
    `before_2025` predicts builds of that time, whose kernels waited longer for each other.
    `work` is `Work(weights, settings)` where it is at hand: no device changes it.
    """

    def __init__(
        self,
        weights: WeightProfile,
        devices: Devices,
        settings: Settings,
        *,
        engine: str = "llama.cpp",
        constants: Constants | None = None,
        before_2025: bool = False,
        work: Work | None = None,
    ) -> None:
        self.constants = shipped() if constants is None else constants
        self.weights, self.devices, self.settings, self.engine = weights, devices, settings, engine
        self.work = Work(weights, settings) if work is None else work
        alike: dict[tuple[object, ...], GpuCost | None] = {}
        self.gpus: list[GpuCost | None] = []
        for device in devices.gpus:
            facts = rate_facts(device)
            if facts not in alike:
                alike[facts] = GpuCost.of(device, self.work, self.constants, before_2025=before_2025)
            self.gpus.append(alike[facts])
        self.token_s = self.constants.shared.token_s
        self.device_s = self.constants.shared.device_s

        self._latest: tuple[Placement, Spans, tuple[list[Stage], HostCost | None] | None] | None = None

    @cached_property
    def host(self) -> HostCost | None:
        """The costs on the host, which a model wholly on GPUs does not need."""
        return HostCost.of(self.devices.host, self.work, self.constants)

    def spans(self, placement: Placement) -> Spans:
        """Return who computes which blocks."""
        return self._shares(placement)[0]

    def _shares(self, placement: Placement) -> tuple[Spans, tuple[list[Stage], HostCost | None] | None]:
        """Return who computes which blocks at what costs; kept for the latest placement, which is asked several times.

        The costs are None when the rate of a device that takes part is unknown.
        """
        latest = self._latest
        if latest is None or latest[0] is not placement:
            spans = Spans(placement, self.work.blocks, len(self.gpus))
            latest = self._latest = (placement, spans, self._costs(placement, spans))
        return latest[1], latest[2]

    def _costs(self, placement: Placement, spans: Spans) -> tuple[list[Stage], HostCost | None] | None:
        """Return the stages on GPUs and the host's costs."""
        stages: list[Stage] = []
        moved_any = False
        for gpu, first, last, head in spans.gpus:
            cost = self.gpus[gpu]
            if cost is None:
                return None
            moved = min(max(spans.expert_blocks, first), last)
            moved_any = moved_any or moved > first
            stages.append(Stage(cost, first, last, head, moved))
        moved_any = moved_any or any(one.device is None for one in placement.overrides)
        if not (moved_any or spans.host_blocks > 0 or spans.head_on_host or placement.kv_on_host):
            return stages, None
        return None if self.host is None else (stages, self.host)

    def decode_s(self, placement: Placement, depth_tokens: float = 0) -> float | None:
        """Return the seconds of one token of one stream at a depth."""
        spans, found = self._shares(placement)
        if found is None:
            return None
        stages, host = found
        total = self.token_s + self.device_s * max(0, len(stages) - 1)
        for cost, first, last, head, moved in stages:
            total += cost.decode_s(first, last, depth_tokens, head=head, experts_from=moved)
            if host is not None:
                total += host.experts_s(first, moved)
                if placement.kv_on_host:
                    total += host.cache_s(first, last, depth_tokens) - cost.cache_s(first, last, depth_tokens)
        if host is not None and (spans.host_blocks or spans.head_on_host):
            total += host.blocks_s(spans.host_blocks, depth_tokens, head=spans.head_on_host)
            if stages:
                total += self.constants.host.split_s
        return total + self._apart_s(placement, host) if placement.overrides else total

    def _apart_s(self, placement: Placement, host: HostCost | None) -> float:
        """Return what one token takes longer because some experts are apart from their block."""
        total, expert_bytes = 0.0, self.work.expert_bytes
        for one in placement.overrides:
            block, after = one.block, one.block + 1
            share = one.bytes / (expert_bytes[after] - expert_bytes[block])
            home = self._experts_s(placement.home(block, self.work.blocks), block)
            if one.device is not None:
                # There and back again, which a block in one piece is spared.
                total += share * (self._experts_s(one.device, block) - home) + 2 * self.device_s
            elif host is not None:
                split_s = self.constants.host.split_s
                total += share * (host.experts_s(block, after) - split_s - home) + split_s
        return total

    def _experts_s(self, gpu: int | None, block: int) -> float:
        """Return the seconds of one token in the experts of a block on a GPU whose rates are known."""
        cost = None if gpu is None else self.gpus[gpu]
        return 0.0 if cost is None else cost.experts_s(block, block + 1)

    def decode_rate(self, placement: Placement, *, depth_tokens: float = 0) -> float | None:
        """Return tokens per second of one stream."""
        seconds = self.decode_s(placement, depth_tokens)
        return None if seconds is None else 1.0 / seconds

    def prefill_s(self, placement: Placement, *, prompt_tokens: int = 512, depth_tokens: float = 0) -> float | None:
        """Return the seconds a prompt takes: whole micro-batches and a rest, each reading its weights once."""
        spans, found = self._shares(placement)
        if found is None:
            return None
        stages, host = found
        whole, rest = divmod(max(1, prompt_tokens), self.settings.ubatch)
        middle = depth_tokens + prompt_tokens / 2
        total = sum(cost.attention_s(first, last, middle) for cost, first, last, _, _ in stages) * prompt_tokens
        if host is not None:
            total += host.attention_s(0, spans.host_blocks, middle) * prompt_tokens
        for count, tokens in ((whole, self.settings.ubatch), (1, rest)):
            if count and tokens:
                total += self._pipelined(self._batch_s(spans, stages, host, tokens), count)
                total += count * self._apart_batch_s(placement, stages, host, tokens)
        return total

    def _apart_batch_s(self, placement: Placement, stages: list[Stage], host: HostCost | None, tokens: int) -> float:
        """Return what a micro-batch takes longer because experts of single blocks are on the host."""
        total, expert_bytes = 0.0, self.work.expert_bytes
        for one in placement.overrides:
            if one.device is None and host is not None:
                block, after = one.block, one.block + 1
                share = one.bytes / (expert_bytes[after] - expert_bytes[block])
                if self.settings.op_offload and tokens >= MIN_OFFLOAD_TOKENS:
                    total += share * stages[0].cost.copy_experts_s(block, after, tokens)
                else:
                    total += share * host.prefill_experts_s(block, after, tokens)
        return total

    def _pipelined(self, parts: list[float], count: int) -> float:
        """Return the time of so many micro-batches through the devices, which overlap in part on several GPUs."""
        alone = count * sum(parts)
        overlapped = sum(parts) + (count - 1) * max(parts)
        share = self.constants.shared.pipeline if self.settings.batch > self.settings.ubatch else 0.0
        return alone + share * (overlapped - alone)

    def _batch_s(self, spans: Spans, stages: list[Stage], host: HostCost | None, tokens: int) -> list[float]:
        """Return the seconds of one micro-batch per device, attention over the context apart.

        From `MIN_OFFLOAD_TOKENS` on, weights of the host are copied to the first GPU and multiplied there.
        """
        lead = stages[0].cost if stages else next(iter(self.gpus), None)
        offload = lead is not None and self.settings.op_offload and tokens >= MIN_OFFLOAD_TOKENS
        parts = []
        for cost, first, last, head, moved in stages:
            if host is not None and moved > first and not offload:
                part = cost.prefill_s(first, last, tokens, head=head, experts_from=moved)
                part += host.prefill_experts_s(first, moved, tokens)
            else:
                part = cost.prefill_s(first, last, tokens, head=head, experts_from=first)
                part += cost.copy_experts_s(first, moved, tokens)
            parts.append(part)
        if host is not None and (spans.host_blocks or spans.head_on_host):
            if offload and lead is not None:
                front = lead.prefill_s(0, spans.host_blocks, tokens, head=False, experts_from=0)
                parts.append(front + lead.copy_blocks_s(0, spans.host_blocks, tokens))
            else:
                parts.append(host.prefill_s(spans.host_blocks, tokens, head=spans.head_on_host))
        return parts

    def prefill_rate(self, placement: Placement, *, prompt_tokens: int = 512, depth_tokens: float = 0) -> float | None:
        """Return prompt tokens per second."""
        seconds = self.prefill_s(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        return None if seconds is None else prompt_tokens / seconds

    def ttft_s(self, placement: Placement, *, prompt_tokens: int, depth_tokens: float = 0) -> float | None:
        """Return the seconds to the first token with the model loaded: the prompt, and one decoded token."""
        prompt = self.prefill_s(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        token = self.decode_s(placement, depth_tokens + prompt_tokens)
        return None if prompt is None or token is None else prompt + token

    def load_s(self, placement: Placement, *, cached: bool = False) -> float | None:
        """Return the seconds until a server answers: its start, the file, what kernels rearrange, copies to GPUs.

        The file is read from disk, or is in memory still where it is `cached`.
        """
        disk = self.devices.host.disk_read_bytes_per_s
        spans, found = self._shares(placement)
        if not disk or found is None:
            return None
        costs = self.constants.host
        total = costs.start_s + (0.0 if cached else self.weights.file_bytes / (disk * costs.disk))
        if self.host is not None and self.settings.repack:
            total += self.host.rearranged_bytes(spans.host_blocks) / costs.rearranged_bytes_per_s
        return total + sum(cost.upload_s(first, last, head=head) for cost, first, last, head, _ in found[0])

    def aggregate(self, placement: Placement, concurrency: int, *, depth_tokens: float = 0) -> float | None:
        """Return output tokens per second of all slots together, each at the given depth.

        A step reads the resident weights once for all, the experts that any of the tokens uses, and every slot's own
        cache; multiply-adds grow with the tokens.
        """
        step = self.step_s(placement, concurrency, depth_tokens)
        return None if step is None else concurrency / step

    def step_s(self, placement: Placement, concurrency: int, depth_tokens: float = 0) -> float | None:
        """Return the seconds of one step that gives every one of so many slots a token."""
        single, bare = self.decode_s(placement, depth_tokens), self.decode_s(placement, 0)
        spans, found = self._shares(placement)
        if single is None or bare is None or found is None:
            return None
        stages, host = found
        more = concurrency - 1
        again = self.work.touched_share(concurrency) / max(self.work.touched_share(1), 1e-9) - 1
        extra = (single - bare) * more
        for cost, first, last, head, moved in stages:
            extra += cost.batch_s(first, last, head=head) * more + cost.experts_s(moved, last) * again
            if host is not None:
                extra += host.more_experts_s(first, moved, concurrency)
        if host is not None:
            extra += host.batch_s(spans.host_blocks, concurrency, head=spans.head_on_host)
        for one in placement.overrides:
            if one.device is None and host is not None:
                share = one.bytes / (self.work.expert_bytes[one.block + 1] - self.work.expert_bytes[one.block])
                home = self._experts_s(placement.home(one.block, self.work.blocks), one.block)
                extra += share * (host.more_experts_s(one.block, one.block + 1, concurrency) - home * again)
        if spans.head_on_host:
            extra += SAMPLE_S * self.weights.spec.vocab_size * concurrency
        return single + extra

    def paged_decode_rate(self, placement: Placement, *, short_bytes: int, depth_tokens: float = 0) -> float | None:
        """Return tokens per second when `short_bytes` of the weights do not fit into memory."""
        bounds = self.paged_decode_s(placement, short_bytes, depth_tokens)
        return None if bounds is None else 1.0 / (bounds[0] * bounds[1]) ** 0.5

    def paged_decode_s(
        self, placement: Placement, short_bytes: int, depth_tokens: float = 0
    ) -> tuple[float, float] | None:
        """Return the least and the most seconds of one token while weights are read from disk.

        The page cache keeps at best the share that fits; at worst reading the blocks in order evicts every page just
        before it is needed again (a cyclic scan under LRU). Experts are drawn at random, so for them the share that
        fits is also the share that hits.
        """
        token, read = self.decode_s(placement, depth_tokens), self.reread_s(placement, short_bytes, 1)
        return None if token is None or read is None else (token + read[0], token + read[1])

    def paged_prefill_s(
        self, placement: Placement, short_bytes: int, *, prompt_tokens: int, depth_tokens: float = 0
    ) -> tuple[float, float] | None:
        """Return the least and the most seconds of a prompt while weights are read from disk, once a micro-batch."""
        prompt = self.prefill_s(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        whole, rest = divmod(prompt_tokens, self.settings.ubatch)
        each = self.reread_s(placement, short_bytes, self.settings.ubatch)
        last = self.reread_s(placement, short_bytes, rest) if rest else (0.0, 0.0)
        if prompt is None or each is None or last is None:
            return None
        return prompt + whole * each[0] + last[0], prompt + whole * each[1] + last[1]

    def paged_ttft_s(
        self, placement: Placement, short_bytes: int, *, prompt_tokens: int, depth_tokens: float = 0
    ) -> float | None:
        """Return the seconds to the first token while weights are read from disk: the geometric mean of the bounds."""
        prompt = self.paged_prefill_s(placement, short_bytes, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        token = self.paged_decode_s(placement, short_bytes, depth_tokens + prompt_tokens)
        if prompt is None or token is None:
            return None
        return math.sqrt((prompt[0] + token[0]) * (prompt[1] + token[1]))

    def reread_s(self, placement: Placement, short_bytes: int, tokens: int) -> tuple[float, float] | None:
        """Return the least and the most seconds of disk reading for a batch; None without a disk rate."""
        disk = self.devices.host.disk_read_bytes_per_s
        if not disk:
            return None
        spans, work = self.spans(placement), self.work
        experts_last = max(spans.expert_blocks, spans.host_blocks)
        dense = float(work.resident_bytes[spans.host_blocks])
        if spans.head_on_host:
            dense += self.weights.output_bytes
        experts = float(work.expert_bytes[experts_last])
        experts += sum(one.bytes for one in placement.overrides if one.device is None)
        touched = work.touched_share(tokens) * experts
        missing = min(1.0, short_bytes / max(dense + experts, 1.0))
        rate = disk * self.constants.host.disk
        best = missing * (dense + touched) / rate
        worst = (dense * (missing > 0) + missing * touched) / rate
        return best, max(best, worst)
