"""Rate limits in memory: one bucket of tokens per caller, the longest unused forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """Lets each key through `per_s` times a second on average, `burst` times at once."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float], *, keys: int = 50_000) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._keys = keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """Take one token for `key`: 0 when it may pass, else the seconds until the next one."""
        now = self._clock()
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - since) * self._per_s)
        passed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if passed else tokens, now)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return 0.0 if passed else (1.0 - tokens) / self._per_s
