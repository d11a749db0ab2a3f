"""The speed of one found plan as the answer shows it: rates and waits with intervals, and the serving curve."""

from __future__ import annotations

from willitrun_estimator.interval import Spread, interval, spread, time_interval, widest
from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import Interval, Serving, Speed
from willitrun_estimator.score import Purpose
from willitrun_estimator.throughput import LOAD_SPREAD, SpeedModel
from willitrun_estimator.throughput.groups import basis, decode_spread, prefill_spread

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)


def decode(model: SpeedModel, placement: Placement, *, depth_tokens: float, short_bytes: int = 0) -> Interval | None:
    """Return the decode rate of one stream; with `short_bytes`, while that much is read from disk again and again."""
    around = decode_spread(model, placement)
    if not short_bytes:
        rate = model.decode_rate(placement, depth_tokens=depth_tokens)
        return None if rate is None else interval(rate, around, basis=basis(model, placement))
    bounds = model.paged_decode_s(placement, short_bytes, depth_tokens)
    if bounds is None:
        return None
    least, most = bounds
    return Interval(
        expected=(least * most) ** -0.5, low=min(1.0, around.low) / most, high=max(1.0, around.high) / least
    )


def prefill(
    model: SpeedModel, placement: Placement, *, prompt_tokens: int, depth_tokens: float, short_bytes: int = 0
) -> Interval | None:
    """Return the rate at which a prompt is read; with `short_bytes`, while that much is read from disk."""
    if short_bytes:
        bounds = model.paged_prefill_s(placement, short_bytes, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
        if bounds is None:
            return None
        around, (least, most) = prefill_spread(model, placement), bounds
        return Interval(
            expected=prompt_tokens * (least * most) ** -0.5,
            low=prompt_tokens * min(1.0, around.low) / most,
            high=prompt_tokens * max(1.0, around.high) / least,
        )
    rate = model.prefill_rate(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
    if rate is None:
        return None
    return interval(rate, prefill_spread(model, placement), basis=basis(model, placement))


def speed(model: SpeedModel, placement: Placement, *, prompt_tokens: int, depth_tokens: int, short_bytes: int) -> Speed:
    """Return every speed of a plan; None where a device's rates are unknown."""
    token = decode(model, placement, depth_tokens=depth_tokens, short_bytes=short_bytes)
    prompt = prefill(model, placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens, short_bytes=short_bytes)
    # An assumed disk is good enough to say how slow paging is, not to promise a loading time.
    seconds = None if model.devices.host.disk_basis == "assumed" else model.load_s(placement)
    load = None if seconds is None else interval(seconds, LOAD_SPREAD)
    warm = None
    if prompt is not None and token is not None:
        warm = time_interval(prompt_tokens, prompt, extra_s=1.0 / token.expected)
    cold = None
    if warm is not None and load is not None:
        cold = Interval(
            expected=warm.expected + load.expected,
            low=warm.low + load.low,
            high=warm.high + load.high,
            basis=warm.basis,
        )
    return Speed(decode_tokens_per_s=token, prefill_tokens_per_s=prompt, ttft_s=warm, ttft_cold_s=cold, load_s=load)


def serving(
    model: SpeedModel,
    placement: Placement,
    *,
    purpose: Purpose,
    context_tokens: int,
    min_decode: float | None,
    max_ttft_s: float | None,
) -> Serving | None:
    """Return llama-server's aggregate speed against concurrency, all slots sharing one unified cache.

    Each request holds the workload's prompt and half its answer on average, so `context_tokens` bounds how many run
    at once. A prompt waits for those before it, half of them on average.
    """
    held = purpose.prompt_tokens + purpose.output_tokens // 2
    room = max(1, context_tokens // (purpose.prompt_tokens + purpose.output_tokens))
    alone = model.ttft_s(placement, prompt_tokens=purpose.prompt_tokens)
    around = slots_spread(model, placement)
    totals, waits, steps, kept = [], [], [], 0
    counts = [count for count in CONCURRENCIES if count <= room] or [1]
    for count in counts:
        step = model.step_s(placement, count, held)
        if step is None or alone is None:
            return None
        wait = alone * (count + 1) / 2
        # While one prompt is read nobody decodes: a request's share of the time is its steps and everyone's prompts.
        request_s = purpose.output_tokens * step + count * alone
        totals.append(count * purpose.output_tokens / request_s)
        waits.append(wait)
        steps.append(step)
        if (min_decode is None or 1.0 / step >= min_decode) and (max_ttft_s is None or wait <= max_ttft_s):
            kept = count
    return Serving(
        concurrency=tuple(counts),
        output_tokens_per_s=tuple(totals),
        ttft_s=tuple(waits),
        time_per_token_s=tuple(steps),
        low_tokens_per_s=tuple(total * min(1.0, around.low) for total in totals),
        high_tokens_per_s=tuple(total * max(1.0, around.high) for total in totals),
        max_concurrency=kept,
    )


def slots_spread(model: SpeedModel, placement: Placement) -> Spread:
    """Return the spread of aggregate rates: the single stream's, widened by what slots add."""
    alone = decode_spread(model, placement)
    return widest((alone, spread(model.constants.decode_spread, ("slots",))))
