"""Coverage and width of confidence intervals of a median."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.runtime.intervals import block_bootstrap, median_interval, order_statistic_interval

pytestmark = pytest.mark.unit


def test_bootstrap_covers_a_correlated_median() -> None:
    """Coverage of the interval on AR(1) noise; the i.i.d. bootstrap would cover far less."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(400)
        for i in range(1, 400):
            noise[i] += 0.6 * noise[i - 1]
        _, low, high = block_bootstrap(noise, 300, seed)
        covered += low <= 0 <= high
    assert covered >= 84


def test_intervals_widen_with_few_values() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    assert order_statistic_interval(values) == (3.5, 1.0, 6.0)
    assert order_statistic_interval(np.arange(12.0))[1:] == (2.0, 9.0)
    middle, low, high = median_interval(np.array([1.0, 2.0, 3.0]), 100, 0)
    assert (middle, round(high - low, 2)) == (2.0, round(2 * 4.303 / np.sqrt(3), 2))
    assert median_interval(np.array([1.0]), 100, 0)[1:] == (-np.inf, np.inf)


def test_order_statistics_cover_the_median() -> None:
    draws = np.random.default_rng(0).exponential(size=(600, 9))
    hits = [low <= np.log(2) <= high for _, low, high in map(order_statistic_interval, draws)]
    assert np.mean(hits) > 0.93


def test_variance_between_sessions_counts() -> None:
    """Each of 6 sessions is off by 2 %, its rounds by far less.

    Intervals from the rounds alone mostly miss the truth.
    """
    alone = together = 0
    groups = np.repeat(np.arange(6), 40)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = 0.02 * rng.standard_normal(6)[groups] + 0.002 * rng.standard_normal(240)
        _, low, high = median_interval(values, 100, seed)
        alone += low <= 0 <= high
        _, low, high = median_interval(values, 100, seed, groups)
        together += low <= 0 <= high
    assert together >= 27
    assert alone < together
