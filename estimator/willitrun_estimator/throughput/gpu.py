"""What a span of blocks costs on one GPU, per token and per micro-batch."""

from __future__ import annotations

import math

from willitrun_estimator.device import Device
from willitrun_estimator.throughput.constants import Constants
from willitrun_estimator.throughput.rates import Rates, rates, type_class
from willitrun_estimator.throughput.work import Work

SAME_KERNEL = {"mamba1": "mamba2"}
"""Kinds of recurrent mixers that llama.cpp computes with another's operation (ggml.h, `ggml_ssm_scan`)."""


class GpuCost:
    """Seconds per unit of work on one GPU, and sums of them over spans of blocks."""

    def __init__(self, work: Work, device: Device, constants: Constants, speed: Rates, *, before_2025: bool) -> None:
        family, shared = constants.family(device.family), constants.shared
        decode, prefill = family.decode, family.prefill
        self.work = work
        kind = type_class(work.weights.matmul_type)
        vulkan = device.backend == "vulkan"
        mixer = SAME_KERNEL.get(work.recurrent_kind, work.recurrent_kind)
        late = decode.early if before_2025 else 1.0
        read = shared.formats[kind] * (shared.inline_ecc if device.inline_ecc else 1.0) / speed.bytes_per_s
        latency = late * (decode.vulkan_block if vulkan else 1.0)
        multiply = work.elements_per_byte * decode.compute / (speed.vector_per_s * math.pow(speed.power, shared.power))
        if vulkan:
            read *= decode.vulkan_weight
        self.multiply_s = multiply
        self.resident_s = decode.weight * read + multiply
        self.active_s = decode.expert * read + multiply
        self.row_s = decode.cache / speed.bytes_per_s
        self.operation_s = decode.attention / speed.vector_per_s
        self.state_s = decode.weight / speed.bytes_per_s
        self.mixer_s = decode.block_s * latency
        self.recurrent_s = decode.recurrent_s * shared.recurrent.get(mixer, shared.recurrent["other"]) * latency
        self.moe_s = decode.moe_s * latency
        slow = (prefill.early if before_2025 else 1.0) * (prefill.vulkan if vulkan else 1.0)
        works = slow / math.pow(speed.power, shared.prefill_power)
        product = prefill.half if kind == "half" else prefill.quantized * shared.prefill_formats[kind]
        if vulkan and kind == "half":
            product *= shared.vulkan_half
        self.product_s = works * 2 * work.elements_per_byte * product / speed.matrix_per_s
        self.expert_product_s = self.product_s * prefill.expert
        self.once_s = prefill.weight / speed.bytes_per_s
        self.prefill_operation_s = works * prefill.attention / speed.vector_per_s
        self.prefill_state_s = (
            slow
            * prefill.recurrent
            * shared.prefill_recurrent.get(mixer, shared.prefill_recurrent["other"])
            / speed.vector_per_s
            / 8
        )
        self.value_s = slow * prefill.activation * work.weights.spec.hidden_size / speed.bytes_per_s
        self.prefill_mixer_s = prefill.block_s * slow
        self.prefill_recurrent_s = prefill.recurrent_s * slow
        self.prefill_moe_s = prefill.moe_s * slow
        link = device.link_bytes_per_s
        self.link_s = (
            1.0 / min(link * constants.host.link, constants.host.copy_bytes_per_s) if link else 1.0 / speed.bytes_per_s
        )

    @classmethod
    def of(cls, device: Device, work: Work, constants: Constants, *, before_2025: bool = False) -> GpuCost | None:
        """Return the costs on a device, None where its bandwidth is unknown."""
        speed = rates(device, constants.family(device.family))
        return None if speed is None else cls(work, device, constants, speed, before_2025=before_2025)

    def cache_s(self, first: int, last: int, depth_tokens: float) -> float:
        """Return what attention over the context costs one token."""
        if not depth_tokens:
            return 0.0
        work = self.work
        return self.row_s * work.context_bytes(first, last, depth_tokens) + self.operation_s * work.context_operations(
            first, last, depth_tokens
        )

    def experts_s(self, first: int, last: int) -> float:
        """Return what the routed experts of a span cost one token."""
        active = self.work.active_bytes
        return self.active_s * (active[last] - active[first])

    def decode_s(self, first: int, last: int, depth_tokens: float, *, head: bool, experts_from: int) -> float:
        """Return the seconds of one token; blocks before `experts_from` leave their experts to the host."""
        work = self.work
        resident = work.resident_bytes[last] - work.resident_bytes[first]
        if head:
            resident += work.weights.output_bytes
        return (
            self.resident_s * resident
            + self.experts_s(experts_from, last)
            + self.cache_s(first, last, depth_tokens)
            + self.state_s * (work.state_bytes[last] - work.state_bytes[first])
            + self.mixer_s * (work.attention_mixers[last] - work.attention_mixers[first])
            + self.recurrent_s * (work.recurrent_mixers[last] - work.recurrent_mixers[first])
            + self.moe_s * (work.moe_blocks[last] - work.moe_blocks[first])
        )

    def batch_s(self, first: int, last: int, *, head: bool) -> float:
        """Return what each further token of a step costs: multiply-adds and state; the weights are read already."""
        work = self.work
        resident = work.resident_bytes[last] - work.resident_bytes[first]
        if head:
            resident += work.weights.output_bytes
        active = work.active_bytes[last] - work.active_bytes[first]
        return self.multiply_s * (resident + active) + self.state_s * (work.state_bytes[last] - work.state_bytes[first])

    def prefill_s(self, first: int, last: int, tokens: int, *, head: bool, experts_from: int) -> float:
        """Return the seconds of one micro-batch without attention over the context."""
        work = self.work
        resident = work.resident_bytes[last] - work.resident_bytes[first]
        active = work.active_bytes[last] - work.active_bytes[experts_from]
        read = resident + work.touched_share(tokens) * (work.expert_bytes[last] - work.expert_bytes[experts_from])
        if head:  # logits are wanted for the last token alone
            read += work.weights.output_bytes
        attention = work.attention_mixers[last] - work.attention_mixers[first]
        recurrent = work.recurrent_mixers[last] - work.recurrent_mixers[first]
        return (
            self.product_s * resident * tokens
            + self.expert_product_s * active * tokens
            + self.once_s * read
            + self.prefill_state_s * (work.state_bytes[last] - work.state_bytes[first]) * tokens
            + self.value_s * (attention + recurrent) * tokens
            + self.prefill_mixer_s * attention
            + self.prefill_recurrent_s * recurrent
            + self.prefill_moe_s * (work.moe_blocks[last] - work.moe_blocks[first])
        )

    def attention_s(self, first: int, last: int, depth_tokens: float) -> float:
        """Return what attention over the context costs one token of a prompt."""
        return self.prefill_operation_s * self.work.context_operations(first, last, depth_tokens)

    def copy_experts_s(self, first: int, last: int, tokens: int) -> float:
        """Return the seconds to bring the experts that a micro-batch uses from host memory."""
        work = self.work
        return self.link_s * work.touched_share(tokens) * (work.expert_bytes[last] - work.expert_bytes[first])

    def copy_blocks_s(self, first: int, last: int, tokens: int) -> float:
        """Return the seconds to bring whole blocks from host memory."""
        work = self.work
        resident = work.resident_bytes[last] - work.resident_bytes[first]
        return self.link_s * resident + self.copy_experts_s(first, last, tokens)

    def upload_s(self, first: int, last: int, *, head: bool) -> float:
        """Return the seconds to fill the GPU with a span at load time."""
        work = self.work
        size = work.resident_bytes[last] - work.resident_bytes[first]
        size += work.expert_bytes[last] - work.expert_bytes[first]
        return self.link_s * (size + (work.weights.output_bytes if head else 0))
