"""A time limit for long computations that cannot say beforehand how long they take.

    with time_limit(seconds):
        ...  # raises OutOfTime soon after the limit

The limit is checked where time is spent: before every run of a model, and in the loops of the numerical methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float] = ContextVar("end", default=math.inf)


class OutOfTime(BaseException):
    """The time limit is over. Like KeyboardInterrupt not an Exception: no handler of failures may take it for one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the time of what runs within, in this thread; an outer limit that ends earlier holds."""
    token = _END.set(min(_END.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _END.reset(token)


def check_time() -> None:
    """Raise OutOfTime once the limit is over."""
    if time.monotonic() > _END.get():
        raise OutOfTime
