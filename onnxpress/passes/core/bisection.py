"""Bisection over integers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count


def largest_allowed(low: int, high: int, allowed: Callable[[int], bool], tries: int | None = None) -> int:
    """Find the largest integer in [low, high] that a monotone condition allows.

    Args:
        low: a value that is allowed; the condition is not evaluated for it.
        high: upper end, inclusive.
        allowed: the condition: true up to some value and false above it.
        tries: how often the condition is evaluated at most, where it is costly; None: as often as needed.

    Returns:
        The largest allowed value. If the condition is not monotone, a value that is allowed (or `low`) whose successor
        is not (or which is `high`). Where the tries run out, the largest value that was found to be allowed.
    """
    for _ in range(tries) if tries is not None else count():
        if low >= high:
            break
        middle = (low + high + 1) // 2
        if allowed(middle):
            low = middle
        else:
            high = middle - 1
    return low
