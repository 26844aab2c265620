"""Functions that test_isolate and test_profile run in child processes."""

from __future__ import annotations

import time


def forever() -> None:
    while True:
        time.sleep(0.05)


def peaks() -> None:
    """Prints the best float32 rates of onnxruntime and numpy in GFLOP/s, measured alternately."""
    import numpy as np

    from onnxpress.runtime.builtin_models import measured_peak

    side = 1024
    one, two = np.random.default_rng(0).standard_normal((2, side, side)).astype(np.float32)
    own = other = 0.0
    for _ in range(12):
        own = max(own, measured_peak(seconds=0.2).gflops)
        for _ in range(4):
            start = time.perf_counter()
            one @ two
            other = max(other, 2e-9 * side**3 / (time.perf_counter() - start))
    print(own, other)


def nothing() -> None:
    """Nothing."""
