"""Signal-to-quantization-noise ratio."""

from __future__ import annotations

import numpy as np


def sqnr_db(signal: float, noise: float, floor: float = 0.0) -> float:
    """10 log10(signal / noise), in dB; infinity where the noise is 0.

    signal: power, or sum of squares, of the original values
    noise:  power, or sum of squares, of the differences, over the same values
    floor:  lower bound of both; above 0 the ratio is finite
    """
    signal, noise = max(signal, floor), max(noise, floor)
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))


def sqnr(values: np.ndarray, rounded: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio in dB; infinite without noise."""
    noise = float(np.square(values - rounded, dtype=np.float64).sum())
    power = float(np.square(values, dtype=np.float64).sum())
    return sqnr_db(power, noise)
