"""95 % confidence intervals of a median of times: correlated sequences, few values, independent repetitions."""

from __future__ import annotations

import math

import numpy as np

MIN_BOOTSTRAP_VALUES = 12  # number of values below which a bootstrap interval is too narrow
MIN_GROUPS = 5  # fewer groups do not show the variance between groups
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)  # 97.5 %, 1 to 11 degrees
_CHUNK = 4_000_000  # numbers resampled at once


def median_interval(
    values: np.ndarray, resamples: int, seed: int, groups: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(median, low, high) of a serially correlated sequence; by Student's t with few values.

    groups: by value, the number of its group.  An effect that is drawn once per group (where a session's weights lie in
            memory) is invisible within a group, so with five groups or more the interval is at least as wide as the
            variance of their medians implies.

    A single value has an unbounded interval.
    """
    middle, low, high = (
        block_bootstrap(values, resamples, seed) if len(values) >= MIN_BOOTSTRAP_VALUES else student_interval(values)
    )
    names = np.unique(groups) if groups is not None else np.zeros(0)
    if len(names) < MIN_GROUPS:
        return middle, low, high
    centre, least, most = student_interval(np.array([np.median(values[groups == name]) for name in names]))
    return middle, min(low, middle - (centre - least)), max(high, middle + (most - centre))


def block_bootstrap(values: np.ndarray, resamples: int, seed: int, block: int = 10) -> tuple[float, float, float]:
    """(median, 2.5 %, 97.5 %) of a serially correlated sequence, by the moving-block bootstrap."""
    size = len(values)
    block = max(1, min(block, size // 4))
    rng = np.random.default_rng(seed)
    count = -(-size // block)
    starts = rng.integers(0, size - block + 1, (resamples, count))
    step = max(1, _CHUNK // (count * block))
    medians = np.concatenate([_medians(values, starts[i : i + step], block) for i in range(0, resamples, step)])
    return float(np.median(values)), float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def _medians(values: np.ndarray, starts: np.ndarray, block: int) -> np.ndarray:
    index = (starts[:, :, None] + np.arange(block)).reshape(len(starts), -1)[:, : len(values)]
    return np.asarray(np.median(values[index], axis=1))


def student_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(median, low, high) of at most 12 values, assuming a normal distribution."""
    middle = float(np.median(values))
    if len(values) < 2:
        return middle, -math.inf, math.inf
    reach = _STUDENT[min(len(values) - 2, len(_STUDENT) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return middle, middle - reach, middle + reach


def order_statistic_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(median, low, high) of independent repetitions of any distribution, by order statistics.

    Fewer than 6 values cannot bound a median at 95 %: Student's t is used.
    """
    size = len(values)
    if size < 6:
        return student_interval(values)
    below, rank = 0.0, 0  # the rank-th smallest lies below the median unless fewer than `rank` values do
    while below + math.comb(size, rank) * 0.5**size <= 0.025:
        below += math.comb(size, rank) * 0.5**size
        rank += 1
    ordered = np.sort(values)
    return float(np.median(values)), float(ordered[rank - 1]), float(ordered[size - rank])
