"""Closed-form speed of a placement: `SpeedModel`, made once per weights, devices and settings.

One token costs, on every GPU in turn (a layer split adds memory and no speed),

    bytes / bandwidth + weights / FP32 rate + cache(depth) / bandwidth + seconds per mixer and per routed block

and on the host the bytes over what its memory and cores deliver, with a price for every crossing. All terms are linear,
so a placement costs differences of sums over blocks. The form follows from how llama.cpp decodes: each weight is read
once, and each block is a chain of small kernels (ggml/src/ggml-cuda/mmvq.cu).
"""

from __future__ import annotations

from willitrun_estimator.device import Device, Devices
from willitrun_estimator.families import UNKNOWN
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.throughput.constants import Constants, shipped
from willitrun_estimator.throughput.gpu import GpuCost
from willitrun_estimator.throughput.host import HostCost
from willitrun_estimator.throughput.work import Work
from willitrun_estimator.weights import WeightProfile

MIN_OFFLOAD_TOKENS = 32
"""llama.cpp computes a host tensor's product on the GPU from this many tokens on (ggml-cuda.cu, `min_batch_size`)."""


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


class SpeedModel:
    """Speed of one model in one quantization on given devices with fixed settings, for any placement.

    Methods return None where a device's bandwidth is unknown: no number instead of an invented one.
    `before_2025` predicts builds of that time, whose kernels waited longer for each other.
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
    ) -> None:
        self.constants = shipped() if constants is None else constants
        self.weights, self.devices, self.settings, self.engine = weights, devices, settings, engine
        self.work = Work(weights, settings)
        self.gpus = [GpuCost.of(device, self.work, self.constants, before_2025=before_2025) for device in devices.gpus]
        self.host = HostCost.of(devices.host, self.work, self.constants)
        self.token_s = self.constants.shared.token_s
        self.device_s = self.constants.shared.device_s

    def spans(self, placement: Placement) -> Spans:
        """Return who computes which blocks."""
        return Spans(placement, self.work.blocks, len(self.gpus))

    def decode_s(self, placement: Placement, depth_tokens: float = 0) -> float | None:
        """Return the seconds of one token of one stream at a depth."""
        spans = self.spans(placement)
        host = self.host
        total = self.token_s + self.device_s * max(0, len(spans.gpus) - 1)
        for gpu, first, last, head in spans.gpus:
            cost = self.gpus[gpu]
            if cost is None:
                return None
            moved = min(max(spans.expert_blocks, first), last)
            total += cost.decode_s(first, last, depth_tokens, head=head, experts_from=moved)
            if self.settings.flash_attention is False:
                total += cost.cache_s(first, last, depth_tokens)
            if placement.kv_on_host:
                if host is None:
                    return None
                total += host.cache_s(first, last, depth_tokens) - cost.cache_s(first, last, depth_tokens)
            if moved > first:
                if host is None:
                    return None
                total += host.experts_s(first, moved)
        if spans.host_blocks or spans.head_on_host:
            if host is None:
                return None
            total += host.blocks_s(spans.host_blocks, depth_tokens, head=spans.head_on_host)
            if spans.gpus:
                total += self.constants.host.split_s
        return total

    def decode_rate(self, placement: Placement, *, depth_tokens: float = 0) -> float | None:
        """Return tokens per second of one stream."""
        seconds = self.decode_s(placement, depth_tokens)
        return None if seconds is None else 1.0 / seconds

    def prefill_s(self, placement: Placement, *, prompt_tokens: int = 512, depth_tokens: float = 0) -> float | None:
        """Return the seconds a prompt takes: whole micro-batches and a rest, each reading its weights once."""
        whole, rest = divmod(max(1, prompt_tokens), self.settings.ubatch)
        total = 0.0
        for count, tokens in ((whole, self.settings.ubatch), (1, rest)):
            if count and tokens:
                stages = self._stages_s(placement, tokens)
                if stages is None:
                    return None
                total += self._pipelined(stages, count)
        attention = self._attention_s(placement, prompt_tokens, depth_tokens)
        return None if attention is None else total + attention

    def _pipelined(self, stages: list[float], count: int) -> float:
        """Return the time of so many micro-batches through the stages, which overlap in part on several GPUs."""
        alone = count * sum(stages)
        overlapped = sum(stages) + (count - 1) * max(stages)
        share = self.constants.shared.pipeline if self.settings.batch > self.settings.ubatch else 0.0
        return alone + share * (overlapped - alone)

    def _stages_s(self, placement: Placement, tokens: int) -> list[float] | None:
        """Return the seconds of one micro-batch per device, attention over the context apart."""
        spans = self.spans(placement)
        lead = self.gpus[spans.gpus[0][0] if spans.gpus else 0] if self.gpus else None
        offload = lead is not None and self.settings.op_offload and tokens >= MIN_OFFLOAD_TOKENS
        stages = []
        for gpu, first, last, head in spans.gpus:
            cost = self.gpus[gpu]
            if cost is None:
                return None
            moved = min(max(spans.expert_blocks, first), last)
            if moved > first and not offload:
                if self.host is None:
                    return None
                stage = cost.prefill_s(first, last, tokens, head=head, experts_from=moved)
                stage += self.host.prefill_experts_s(first, moved, tokens)
            else:
                stage = cost.prefill_s(first, last, tokens, head=head, experts_from=first)
                stage += cost.copy_experts_s(first, moved, tokens)
            stages.append(stage)
        if spans.host_blocks or spans.head_on_host:
            if offload and lead is not None:
                last = spans.host_blocks
                front = lead.prefill_s(0, last, tokens, head=False, experts_from=0)
                stages.append(front + lead.copy_blocks_s(0, last, tokens))
            elif self.host is None:
                return None
            else:
                stages.append(self.host.prefill_s(spans.host_blocks, tokens, head=spans.head_on_host))
        return stages

    def _attention_s(self, placement: Placement, prompt_tokens: int, depth_tokens: float) -> float | None:
        """Return the seconds of attention of a whole prompt, on whoever has the blocks."""
        spans = self.spans(placement)
        middle = depth_tokens + prompt_tokens / 2
        total = 0.0
        for gpu, first, last, _ in spans.gpus:
            cost = self.gpus[gpu]
            if cost is None:
                return None
            total += cost.attention_s(first, last, middle) * prompt_tokens
        if spans.host_blocks:
            if self.host is None:
                return None
            total += self.host.attention_s(0, spans.host_blocks, middle) * prompt_tokens
        return total

    def prefill_rate(self, placement: Placement, *, prompt_tokens: int = 512, depth_tokens: float = 0) -> float | None:
        """Return prompt tokens per second."""
        seconds = self.prefill_s(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        return None if seconds is None else prompt_tokens / seconds

    def ttft_s(self, placement: Placement, *, prompt_tokens: int, depth_tokens: float = 0) -> float | None:
        """Return the seconds to the first token with the model loaded: the prompt, and one decoded token."""
        prompt = self.prefill_s(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        token = self.decode_s(placement, depth_tokens + prompt_tokens)
        return None if prompt is None or token is None else prompt + token

    def load_s(self, placement: Placement) -> float | None:
        """Return the seconds to load the model: its file from disk, then what belongs on GPUs over their links."""
        disk = self.devices.host.disk_read_bytes_per_s
        if not disk:
            return None
        total = self.weights.file_bytes / (disk * self.constants.host.disk)
        for gpu, first, last, head in self.spans(placement).gpus:
            cost = self.gpus[gpu]
            if cost is None:
                return None
            total += cost.upload_s(first, last, head=head)
        return total

    def aggregate(self, placement: Placement, concurrency: int, *, depth_tokens: float = 0) -> float | None:
        """Return output tokens per second of all slots together, each at the given depth.

        A step reads the resident weights once for all, the experts that any of the tokens uses, and every slot's own
        cache; multiply-adds grow with the tokens.
        """
        step = self.step_s(placement, concurrency, depth_tokens)
        return None if step is None else concurrency / step

    def step_s(self, placement: Placement, concurrency: int, depth_tokens: float = 0) -> float | None:
        """Return the seconds of one step that gives every one of so many slots a token."""
        single = self.decode_s(placement, depth_tokens)
        if single is None or concurrency <= 1:
            return single
        bare = self.decode_s(placement, 0)
        assert bare is not None  # noqa: S101 the same devices answered above
        more = concurrency - 1
        touched = self.work.touched_share(concurrency) / max(self.work.touched_share(1), 1e-9)
        extra = (single - bare) * more
        for gpu, first, last, head in self.spans(placement).gpus:
            cost = self.gpus[gpu]
            assert cost is not None  # noqa: S101 likewise
            extra += cost.batch_s(first, last, head=head) * more
            extra += cost.experts_s(first, last) * (touched - 1)
        spans = self.spans(placement)
        if self.host is not None:
            extra += self.host.batch_s(spans.host_blocks, head=spans.head_on_host) * more
            moved = max(spans.expert_blocks - spans.host_blocks, 0)
            extra += self.host.experts_s(spans.host_blocks, spans.host_blocks + moved) * (touched - 1)
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
        token = self.decode_s(placement, depth_tokens)
        disk = self.devices.host.disk_read_bytes_per_s
        if token is None or not disk:
            return None
        spans, work = self.spans(placement), self.work
        experts_last = max(spans.expert_blocks, spans.host_blocks)
        dense = float(work.resident_bytes[spans.host_blocks])
        if spans.head_on_host:
            dense += self.weights.output_bytes
        experts, active = float(work.expert_bytes[experts_last]), float(work.active_bytes[experts_last])
        missing = min(1.0, short_bytes / max(dense + experts, 1.0))
        rate = disk * self.constants.host.disk
        best = missing * (dense + active) / rate
        worst = (dense * (missing > 0) + missing * active) / rate
        return token + best, token + max(best, worst)


def is_known(device: Device, constants: Constants) -> bool:
    """Tell whether the device's family has constants of its own."""
    return device.family != UNKNOWN and device.family in constants.families
