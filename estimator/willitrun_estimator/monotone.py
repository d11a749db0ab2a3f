"""The border of a monotone test over whole numbers."""

from __future__ import annotations

from collections.abc import Callable


def largest(low: int, high: int, holds: Callable[[int], bool], guess: int | None = None) -> int | None:
    """Return the largest n in low..high for which the monotone test holds (true first), None if it never does.

    By bisection, or from a guess in steps that double: a good one costs two tests.
    """
    holding, failing = low - 1, high + 1
    probe, step = (low, max(1, high - low)) if guess is None else (min(max(guess, low), high), 1)
    while failing - holding > 1:
        if holds(probe):
            holding = probe
        else:
            failing = probe
        if holding < low:
            probe = max(failing - step, low)
        elif failing > high:
            probe = min(holding + step, high)
        else:
            probe = (holding + failing) // 2
        step *= 2
    return None if holding < low else holding


def smallest(low: int, high: int, holds: Callable[[int], bool], guess: int | None = None) -> int | None:
    """Return the smallest n in low..high for which the monotone test holds (false first), None if it never does."""
    found = largest(-high, -low, lambda n: holds(-n), None if guess is None else -guess)
    return None if found is None else -found
