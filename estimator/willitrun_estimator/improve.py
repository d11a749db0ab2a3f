"""What would help, each worked out by the same search on changed devices or a changed request, with its gain."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from willitrun_estimator import hardware
from willitrun_estimator.device import Devices
from willitrun_estimator.found import Found
from willitrun_estimator.plan import Improvement
from willitrun_estimator.question import Question
from willitrun_estimator.sweep import best_of
from willitrun_probe.units import format_bytes, format_seconds, format_tokens

LEAST_GAIN = 0.05
"""Smaller gains are not worth a sentence."""
LEAST_COST = 0.005
"""A smaller share would be printed as 0 %."""
BUSY_BYTES = 512 * 1024**2
"""GPU memory in use by others below which closing programs is not worth mentioning."""


def improvements(question: Question, best: Found | None, per_quant: dict[str, list[Found]]) -> tuple[Improvement, ...]:
    """Return the changes that help, in order of gain."""
    found = [
        close_programs(question, best, per_quant),
        smaller_quant(best, per_quant),
        second_gpu(question, best, per_quant),
        quantized_cache(question, best),
        more_ram(question, best),
    ]
    kept = [one for one in found if one is not None and one.gain >= LEAST_GAIN]
    return tuple(sorted(kept, key=lambda one: -one.gain))


def again(question: Question, devices: Devices, quants: Iterable[str]) -> Found | None:
    """Return the best plan on changed devices."""
    return best_of(Question(question.spec, devices, question.request, prepared=question.prepared), quants)


def gain(after: Found, before: Found | None) -> float:
    """Return the relative gain in score; something instead of nothing counts as the whole score."""
    if before is None or before.score <= 0:
        return after.score / 100
    return after.score / before.score - 1


def close_programs(question: Question, best: Found | None, quants: Iterable[str]) -> Improvement | None:
    """Plan on idle GPUs: what closing the programs that hold memory would bring."""
    held = sum(gpu.memory_total_bytes - gpu.memory_free_bytes for gpu in question.devices.gpus)
    if held < BUSY_BYTES * max(1, len(question.devices.gpus)):
        return None
    after = again(question, hardware.idle(question.devices), quants)
    if after is None:
        return None
    better, grown = described(after, best)
    return Improvement(
        code="close-programs",
        message=f"Close what holds {format_bytes(held)} of GPU memory and {better}.",
        gain=grown,
    )


def described(after: Found, before: Found | None) -> tuple[str, float]:
    """Say what a better plan has over the present one, and by how much: the gain in just that."""
    if before is None:
        return f"{after.quant} runs", gain(after, before)
    if after.quant != before.quant:
        return f"{after.quant} fits instead of {before.quant}", gain(after, before)
    if after.rate and before.rate and after.rate > before.rate * (1 + LEAST_GAIN):
        text = f"decoding rises from {rate(before.rate)} to {rate(after.rate)} tokens/s"
        return text, after.rate / before.rate - 1
    if after.context_tokens > before.context_tokens:
        lengths = format_tokens(before.context_tokens), format_tokens(after.context_tokens)
        return f"the context grows from {lengths[0]} to {lengths[1]}", after.context_tokens / before.context_tokens - 1
    if after.ttft_s and before.ttft_s and after.ttft_s < before.ttft_s * (1 - LEAST_GAIN):
        waits = format_seconds(after.ttft_s), format_seconds(before.ttft_s)
        return f"the first token comes after {waits[0]} instead of {waits[1]}", before.ttft_s / after.ttft_s - 1
    return f"the score rises from {before.score:.0f} to {after.score:.0f}", gain(after, before)


def rate(tokens_per_s: float) -> str:
    """Write a rate with the digits that differ: 19.6, 0.11."""
    return f"{tokens_per_s:.1f}" if tokens_per_s >= 1 else f"{tokens_per_s:.2f}"


def smaller_quant(best: Found | None, per_quant: dict[str, list[Found]]) -> Improvement | None:
    """Look for a quantization that would be read without host memory, or simply faster, at some cost in quality."""
    if best is None or best.rate is None:
        return None
    faster = [
        found[0]
        for quant, found in per_quant.items()
        if quant != best.quant and found and found[0].rate and found[0].rate > best.rate * 1.2
    ]
    if not faster:
        return None
    after = max(faster, key=lambda one: one.quality)
    assert after.rate is not None  # noqa: S101 - filtered above; tells the type checker
    cost = 1 - after.quality / best.quality
    return Improvement(
        code="smaller-quant",
        message=f"{after.quant} decodes {after.rate / best.rate:.1f}x as fast and keeps {1 - cost:.0%} of the quality.",
        gain=after.rate / best.rate - 1,
    )


def second_gpu(question: Question, best: Found | None, quants: Iterable[str]) -> Improvement | None:
    """Add a second card like the one with most memory."""
    gpus = question.devices.gpus
    if not gpus or gpus[0].unified:
        return None
    twin = max(gpus, key=lambda gpu: gpu.memory_total_bytes)
    more = structs.replace(twin, memory_free_bytes=twin.memory_total_bytes, uuid=None, index=None)
    after = again(question, structs.replace(question.devices, gpus=(*gpus, more)), quants)
    if after is None:
        return None
    better, grown = described(after, best)
    return Improvement(code="second-gpu", message=f"With a second {twin.name}, {better}.", gain=grown)


def quantized_cache(question: Question, best: Found | None) -> Improvement | None:
    """Compare the longest context of an f16 cache with that of a q8_0 one, on the same layout."""
    if best is None or best.kv_type != "f16" or best.short_bytes:
        return None
    if not question.settings("f16", best.ubatch).flash_attention:
        return None
    limit = question.spec.max_context_tokens
    now = question.setup(best.quant, "f16", best.ubatch, best.gpus)
    then = question.setup(best.quant, "q8_0", best.ubatch, best.gpus)
    bounds = (*now.budgets, now.host_budget)
    before = now.needs.safe_tokens(best.placement, bounds, limit)
    after = then.needs.safe_tokens(best.placement, bounds, limit)
    if before <= 0 or after <= before:
        return None
    speeds = now.rate(best.placement), then.rate(best.placement)
    return Improvement(
        code="quantized-cache",
        message=(
            f"A q8_0 KV cache raises the longest context from {format_tokens(before)} to {format_tokens(after)} "
            f"{at_what_cost(*speeds)}."
        ),
        gain=after / before - 1,
    )


def at_what_cost(before: float | None, after: float | None) -> str:
    """Say how much speed something costs: `at no cost in speed` below half a percent."""
    if not before or not after:
        return "at some cost in speed"
    cost = 1 - after / before
    return f"for {cost:.0%} of the speed" if cost >= LEAST_COST else "at no cost in speed"


def more_ram(question: Question, best: Found | None) -> Improvement | None:
    """Say how much RAM is missing when weights are read from disk or nothing starts."""
    if best is None or not best.short_bytes:
        return None
    host = structs.replace(
        question.devices.host, ram_available_bytes=question.devices.host.ram_available_bytes + best.short_bytes
    )
    after = again(question, structs.replace(question.devices, host=host), (best.quant,))
    if after is None:
        return None
    better, grown = described(after, best)
    return Improvement(
        code="more-ram", message=f"With {format_bytes(best.short_bytes)} more free RAM, {better}.", gain=grown
    )
