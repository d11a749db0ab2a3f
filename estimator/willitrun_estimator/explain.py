"""Why the answer is what it is: status, tags, limits and messages, each with the numbers behind it."""

from __future__ import annotations

from willitrun_estimator.device import Devices
from willitrun_estimator.found import Found
from willitrun_estimator.plan import Alternative, DeviceUse, Fit, Limit, Plan, Speed, Status, Tag, Tags
from willitrun_estimator.score import Purpose
from willitrun_probe.units import format_bytes, format_rate, format_seconds, format_tokens

COMFORTABLE_FRACTION = 0.10
TIGHT_FRACTION = 0.03
"""Room left on the tightest device, as a share: above the first `comfortable`, below the second `tight`."""

HIGH_BANDWIDTH = 700e9
MEDIUM_BANDWIDTH = 250e9
"""GDDR6X and HBM cards are above the first, laptops and CPUs below the second."""


def status(plan: Plan, short_bytes: int) -> Status:
    """Return the fit status of a plan that was laid out."""
    if short_bytes > 0:
        return "paging"
    if plan.offloaded_fraction > 0:
        return "offload"
    share = min((use.free_bytes - use.total_bytes) / max(use.free_bytes, 1) for use in relevant(plan.devices))
    if share >= COMFORTABLE_FRACTION:
        return "comfortable"
    return "fits" if share >= TIGHT_FRACTION else "tight"


def relevant(devices: tuple[DeviceUse, ...]) -> tuple[DeviceUse, ...]:
    """Return the devices whose room decides: the GPUs that hold something, else the host."""
    gpus = tuple(use for use in devices if use.kind == "gpu" and use.weights_bytes)
    return gpus or devices[-1:]


def headroom(plan: Plan) -> int:
    """Return the free memory left on the tightest device."""
    return min(use.free_bytes - use.total_bytes for use in relevant(plan.devices))


def fit(plan: Plan, found: Found, title: str) -> Fit:
    """Say in one sentence how the plan fits, with the numbers."""
    state = status(plan, found.short_bytes)
    host = plan.devices[-1]
    room = headroom(plan)
    where = place(plan)
    size = format_bytes(sum(use.total_bytes for use in plan.devices if use.kind == "gpu") or plan.memory_bytes)
    message = {
        "comfortable": f"{title} {plan.quant} fits {where} with {format_bytes(room)} to spare.",
        "fits": f"{title} {plan.quant} fits {where}, {format_bytes(room)} stay free.",
        "tight": f"{title} {plan.quant} just fits {where}: {format_bytes(room)} stay free.",
        "offload": (
            f"{title} {plan.quant} runs with {plan.offloaded_fraction:.0%} of its weights in host memory: "
            f"{size} on the GPU, {format_bytes(host.total_bytes)} of RAM."
        ),
        "paging": (
            f"{title} {plan.quant} needs {format_bytes(found.short_bytes)} more memory than there is: "
            "the engine reads weights from disk as it goes, slowly."
        ),
        "too-large": "",
    }[state]
    return Fit(status=state, headroom_bytes=room, host_ram_needed_bytes=host.total_bytes, message=message)


def place(plan: Plan) -> str:
    """Say where the model is: `on NVIDIA GeForce RTX 3090`, `on 2 GPUs`, `in RAM`."""
    gpus = [use.name for use in plan.devices if use.kind == "gpu" and use.weights_bytes]
    if not gpus:
        return "in RAM"
    return f"on {gpus[0]}" if len(gpus) == 1 else f"on {len(gpus)} GPUs"


def refusal(uses: tuple[DeviceUse, ...], budgets: tuple[int, ...], host_short: int) -> str:
    """Name the device that lacks room, with the two numbers; '' when none does."""
    for use, budget in zip(uses, budgets, strict=False):
        if use.total_bytes > budget:
            return (
                f"{use.name} would need {format_bytes(use.total_bytes)} and {format_bytes(max(0, budget))} can be used"
            )
    if host_short > 0:
        use = uses[-1]
        return f"RAM would need {format_bytes(use.total_bytes)} and {format_bytes(use.free_bytes)} are available"
    return ""


def tags(plan: Plan, devices: Devices, state: Status, speed: Speed | None) -> Tags:
    """Return the five words of the headline, each with its inequality."""
    gpus = [gpu for gpu, use in zip(devices.gpus, plan.devices, strict=False) if use.weights_bytes]
    return Tags(
        runtime=Tag(value=plan.engine, reason=f"{plan.engine} on {plan.backend}"),
        capacity=capacity_tag(plan, state),
        bandwidth=bandwidth_tag(plan, devices),
        stack=stack_tag(plan.backend, gpus[0].family if gpus else None),
        bottleneck=bottleneck_tag(plan, speed),
    )


def capacity_tag(plan: Plan, state: Status) -> Tag:
    """Return how the memory suffices."""
    tightest = min(relevant(plan.devices), key=lambda use: use.free_bytes - use.total_bytes)
    words = {"comfortable": "Ample", "fits": "Good", "tight": "Tight", "offload": "Exceeded", "paging": "Exceeded"}
    return Tag(
        value=words.get(state, "Exceeded"),
        reason=f"{format_bytes(tightest.total_bytes)} of {format_bytes(tightest.free_bytes)} free on {tightest.name}",
    )


def bandwidth_tag(plan: Plan, devices: Devices) -> Tag:
    """Return how fast the memory is that the weights are read from."""
    known = [
        gpu.bandwidth_bytes_per_s
        for gpu, use in zip(devices.gpus, plan.devices, strict=False)
        if use.weights_bytes and gpu.bandwidth_bytes_per_s
    ]
    rate = min(known) if known else devices.host.bandwidth_bytes_per_s
    if rate is None:
        return Tag(value="Unknown", reason="no source gives a bandwidth")
    shown = format_rate(rate)
    if rate >= HIGH_BANDWIDTH:
        return Tag(value="High", reason=f"{shown} >= {format_rate(HIGH_BANDWIDTH)}")
    if rate >= MEDIUM_BANDWIDTH:
        return Tag(value="Medium", reason=f"{shown} >= {format_rate(MEDIUM_BANDWIDTH)}")
    return Tag(value="Low", reason=f"{shown} < {format_rate(MEDIUM_BANDWIDTH)}")


def stack_tag(backend: str, family: str | None) -> Tag:
    """Return how well engines support the hardware."""
    if family == "unknown":
        return Tag(value="Unproven", reason="no published measurement covers this GPU family")
    words = {"cuda": "Optimized", "metal": "Optimized", "rocm": "Supported", "vulkan": "Generic", "cpu": "Generic"}
    return Tag(value=words[backend], reason=f"{backend} back end" + (f", {family} family" if family else ""))


def bottleneck_tag(plan: Plan, speed: Speed | None) -> Tag:
    """Return what to improve first."""
    if plan.offloaded_fraction > 0:
        return Tag(
            value="Capacity",
            reason=f"{plan.offloaded_fraction:.0%} of the weights are read from host memory for every token",
        )
    if speed is None or speed.decode_tokens_per_s is None or speed.ttft_s is None:
        return Tag(value="Unknown", reason="no speed is known for this hardware")
    decode, wait = speed.decode_tokens_per_s.expected, speed.ttft_s.expected
    if decode < SLOW_DECODE:
        return Tag(value="Bandwidth", reason=f"{decode:.0f} tokens/s < {SLOW_DECODE:.0f}, reading speed with ease")
    if wait > SLOW_TTFT_S:
        return Tag(value="Compute", reason=f"{format_seconds(wait)} to the first token > {SLOW_TTFT_S:.0f} s")
    return Tag(value="Balanced", reason=f"{decode:.0f} tokens/s and {format_seconds(wait)} to the first token")


SLOW_DECODE = 10.0
SLOW_TTFT_S = 5.0


def limits(
    plan: Plan, found: Found, devices: Devices, speed: Speed | None, purpose: Purpose, *, longest_tokens: int
) -> tuple[Limit, ...]:
    """Return what holds this setup back, worst first; `longest_tokens` is the context the model is made for."""
    out: list[Limit] = []
    if devices.gpus and not found.gpus:
        out.append(
            Limit(
                code="gpus-left-out",
                message=(
                    f"No layout of {plan.quant} with {format_tokens(plan.context_tokens)} of context starts on "
                    f"{devices.gpus[0].name}: it all runs in RAM."
                ),
            )
        )
    if plan.context_tokens > longest_tokens * plan.parallel:
        out.append(
            Limit(
                code="context-beyond-model",
                message=(
                    f"The engine caps every slot at the {format_tokens(longest_tokens)} the model is made for; of "
                    f"{format_tokens(plan.context_tokens)} the rest is never used."
                ),
            )
        )
    if found.short_bytes:
        out.append(
            Limit(
                code="paging",
                message=f"{format_bytes(found.short_bytes)} of weights are read from disk again and again.",
            )
        )
        if devices.host.disk_basis == "assumed":
            rate = format_rate(devices.host.disk_read_bytes_per_s)
            out.append(
                Limit(
                    code="disk-rate-assumed",
                    message=f"The disk is assumed to read {rate}, a SATA SSD; `willitrun-here calibrate` measures it.",
                )
            )
    if plan.offloaded_fraction > 0 and devices.gpus:
        rate = format_rate(devices.host.bandwidth_bytes_per_s)
        out.append(
            Limit(
                code="offload",
                message=f"{plan.offloaded_fraction:.0%} of the weights are in host memory, read at {rate} at best.",
            )
        )
    if not found.short_bytes and headroom(plan) < TIGHT_FRACTION * relevant(plan.devices)[0].free_bytes:
        out.append(
            Limit(code="little-headroom", message=f"Only {format_bytes(headroom(plan))} stay free beside the plan.")
        )
    if plan.context_tokens < purpose.context_tokens:
        out.append(
            Limit(
                code="short-context",
                message=(
                    f"{format_tokens(plan.context_tokens)} of context; this workload wants "
                    f"{format_tokens(purpose.context_tokens)}."
                ),
            )
        )
    out += speed_limits(speed)
    if devices.host.bandwidth_basis == "assumed" and (plan.offloaded_fraction > 0 or not found.gpus):
        out.append(
            Limit(
                code="ram-bandwidth-assumed",
                message=(
                    f"RAM bandwidth is assumed to be {format_rate(devices.host.bandwidth_bytes_per_s)}; "
                    "`willitrun-here calibrate` measures it."
                ),
            )
        )
    return tuple(out)


def speed_limits(speed: Speed | None) -> list[Limit]:
    """Return the limits that the speed shows."""
    if speed is None or speed.decode_tokens_per_s is None:
        return [Limit(code="speed-unknown", message="Nothing is known that a speed could be derived from.")]
    out = []
    if speed.decode_tokens_per_s.expected < SLOW_DECODE:
        out.append(
            Limit(
                code="slow-decode",
                message=f"{speed.decode_tokens_per_s.expected:.1f} tokens/s is slower than comfortable reading.",
            )
        )
    if speed.ttft_s is not None and speed.ttft_s.expected > SLOW_TTFT_S:
        out.append(
            Limit(
                code="slow-first-token", message=f"The first token comes after {format_seconds(speed.ttft_s.expected)}."
            )
        )
    return out


def runner_up(best: Found, others: list[Found]) -> Alternative | None:
    """Return the best plan that differs in quantization, cache type or context, and why it lost."""
    rest = [
        one
        for one in others
        if (one.quant, one.kv_type, one.context_tokens) != (best.quant, best.kv_type, best.context_tokens)
    ]
    if not rest:
        return None
    other = max(rest, key=lambda one: one.score)
    return Alternative(
        quant=other.quant,
        context_tokens=other.context_tokens,
        kv_type=other.kv_type,
        gpu_layers=other.placement.gpu_layers,
        cpu_moe_layers=other.placement.cpu_moe_layers,
        score=other.score,
        decode_tokens_per_s=other.rate,
        reason=why_lost(best, other),
    )


def why_lost(best: Found, other: Found) -> str:
    """Name the factor in which the runner-up is weakest against the winner, with both numbers."""
    if other.score > best.score and best.whole and not other.whole:
        return "scores less than a point more and leaves weights in host memory"
    reasons: list[tuple[float, str, str, str]] = []
    if best.rate and other.rate and other.rate < best.rate:
        reasons.append(
            (best.rate / other.rate, f"{other.rate:.1f}", f"{best.rate:.1f}", "decodes at {} against {} tokens/s")
        )
    if other.quality < best.quality:
        kept = f"{other.quality:.1%}", f"{best.quality:.1%}"
        reasons.append((best.quality / other.quality, *kept, "keeps {} of the quality against {}"))
    if other.context_tokens < best.context_tokens:
        held = format_tokens(other.context_tokens), format_tokens(best.context_tokens)
        reasons.append((best.context_tokens / other.context_tokens, *held, "holds {} of context against {}"))
    if best.ttft_s and other.ttft_s and other.ttft_s > best.ttft_s:
        waits = format_seconds(other.ttft_s), format_seconds(best.ttft_s)
        reasons.append((other.ttft_s / best.ttft_s, *waits, "answers after {} against {}"))
    # Two numbers that look alike explain nothing.
    told = [(ratio, words.format(lost, won)) for ratio, lost, won, words in reasons if lost != won]
    return max(told)[1] if told else "scores the same; the winner needs less memory"
