"""Speed of a placement with llama.cpp and ollama: decode, prefill, first token, load, slots, paging. Closed form.

`SpeedModel` is the precomputed form for searches; the functions here add the interval. Ollama runs llama.cpp's
kernels: its measured rows lie within 1 % of llama.cpp's around the same fit, so both engines share all constants.
"""

from __future__ import annotations

from willitrun_estimator.device import Devices
from willitrun_estimator.interval import Spread, interval, spread, time_interval, widest
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.plan import Interval
from willitrun_estimator.throughput.constants import Constants, shipped
from willitrun_estimator.throughput.groups import basis, decode_spread, prefill_spread
from willitrun_estimator.throughput.model import SpeedModel
from willitrun_estimator.weights import WeightProfile

__all__ = ["SpeedModel", "decode", "load", "paged_decode", "prefill", "slots", "ttft"]

LOAD_SPREAD = Spread(low=0.6, high=1.3)
"""Around the measured read rate: caches make a load faster, file systems and decryption slower."""


def decode(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    *,
    depth_tokens: float = 0,
    engine: str = "llama.cpp",
    before_2025: bool = False,
    constants: Constants | None = None,
) -> Interval | None:
    """Return tokens per second of one stream with `depth_tokens` of context filled, None where nothing is known."""
    model = SpeedModel(
        weights, devices, settings, engine=engine, before_2025=before_2025, constants=constants or shipped()
    )
    rate = model.decode_rate(placement, depth_tokens=depth_tokens)
    if rate is None:
        return None
    return interval(rate, decode_spread(model, placement), basis=basis(model, placement))


def prefill(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    *,
    prompt_tokens: int = 512,
    depth_tokens: float = 0,
    engine: str = "llama.cpp",
    before_2025: bool = False,
    constants: Constants | None = None,
) -> Interval | None:
    """Return prompt tokens per second, None where nothing is known; `settings.ubatch` counts."""
    model = SpeedModel(
        weights, devices, settings, engine=engine, before_2025=before_2025, constants=constants or shipped()
    )
    rate = model.prefill_rate(placement, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
    if rate is None:
        return None
    return interval(rate, prefill_spread(model, placement), basis=basis(model, placement))


def ttft(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    *,
    prompt_tokens: int,
    depth_tokens: float = 0,
    cold: bool = False,
    engine: str = "llama.cpp",
) -> Interval | None:
    """Return seconds to the first token: warm, or `cold` with the load of the model before it."""
    speed = prefill(
        weights,
        devices,
        placement,
        settings,
        prompt_tokens=prompt_tokens,
        depth_tokens=depth_tokens,
        engine=engine,
    )
    token = decode(weights, devices, placement, settings, depth_tokens=depth_tokens + prompt_tokens, engine=engine)
    if speed is None or token is None:
        return None
    warm = time_interval(prompt_tokens, speed, extra_s=1.0 / token.expected)
    if not cold:
        return warm
    start = load(weights, devices, placement, settings)
    if start is None:
        return None
    return Interval(
        expected=warm.expected + start.expected, low=warm.low + start.low, high=warm.high + start.high, basis=warm.basis
    )


def load(
    weights: WeightProfile, devices: Devices, placement: Placement, settings: Settings | None = None
) -> Interval | None:
    """Return seconds to load the model from disk, None where the disk's rate is unknown."""
    model = SpeedModel(weights, devices, settings or Settings(context_tokens=4096))
    seconds = model.load_s(placement)
    return None if seconds is None else interval(seconds, LOAD_SPREAD)


def paged_decode(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    *,
    short_bytes: int,
    depth_tokens: float = 0,
) -> Interval | None:
    """Return tokens per second when `short_bytes` of the weights are read from disk as decoding goes.

    The bounds are those of the page cache (see `SpeedModel.paged_decode_s`), each with the model's own spread.
    """
    model = SpeedModel(weights, devices, settings)
    bounds = model.paged_decode_s(placement, short_bytes, depth_tokens)
    if bounds is None:
        return None
    around = decode_spread(model, placement)
    least, most = bounds
    return Interval(
        expected=(least * most) ** -0.5, low=min(1.0, around.low) / most, high=max(1.0, around.high) / least
    )


def slots(
    weights: WeightProfile,
    devices: Devices,
    placement: Placement,
    settings: Settings,
    *,
    concurrency: int,
    depth_tokens: float = 0,
) -> Interval | None:
    """Return output tokens per second of all of llama-server's slots together."""
    model = SpeedModel(weights, devices, settings)
    rate = model.aggregate(placement, concurrency, depth_tokens=depth_tokens)
    if rate is None:
        return None
    alone = decode_spread(model, placement)
    if concurrency > 1:
        alone = widest((alone, spread(model.constants.decode_spread, ("slots",))))
    return interval(rate, alone)
