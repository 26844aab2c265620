"""Histograms of values, and the ranges that calibration methods take from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.ranges import METHODS, Histogram, clip_range, collect_histograms
from tests import nets

pytestmark = pytest.mark.unit


@settings(max_examples=40, deadline=None)
@example([1.0, 1.0, 0.01171875, 203.0], 22)  # a number just below 0
@given(st.lists(st.floats(0.01, 300), min_size=1, max_size=6), st.integers(0, 99))
def test_histogram_is_independent_of_batching(scales: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal(50) * s).astype(np.float32) for s in scales]
    apart, together = Histogram(), Histogram()
    for part in parts:
        apart.add(part)
    together.add(np.concatenate(parts))
    assert (apart.low, apart.high, apart.radius) == (together.low, together.high, together.radius)
    np.testing.assert_array_equal(apart.counts, together.counts)
    assert apart.counts.sum() == 50 * len(scales)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_contain_zero_and_stay_inside(method: str) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal(9999), np.abs(rng.standard_normal(9999)), -rng.random(999), np.full(9, 3.0)):
        histogram = Histogram()
        histogram.add(values.astype(np.float32))
        low, high = clip_range(histogram, method)
        assert min(histogram.low, 0) <= low <= 0 <= high <= max(histogram.high, 0)


def test_mse_clips_an_outlier_and_minmax_does_not() -> None:
    values = np.concatenate([np.random.default_rng(0).standard_normal(200_000), [30.0]]).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    assert clip_range(histogram, "minmax")[1] == 30.0
    assert clip_range(histogram, "mse")[1] < 25.0


@pytest.mark.parametrize("axis", [1, -1])
def test_values_of_every_channel_of_a_large_tensor_are_sampled(axis: int) -> None:
    """Extremes are of all values; mean squares and histogram of a sample, whose stride meets all channels equally
    often.
    """
    rng = np.random.default_rng(0)
    wide = 10.0 ** np.arange(-2, 2, 0.125)
    x = np.moveaxis(rng.standard_normal((4, 128, 128, 32)) * wide, -1, axis).astype(np.float32)
    histogram = Histogram()
    histogram.add(x, axis)
    histogram.add(x, axis)
    others = tuple(a for a in range(4) if a != axis % 4)
    assert (
        histogram.channel_low is not None
        and histogram.channel_high is not None
        and histogram.channel_square_sums is not None
    )
    np.testing.assert_array_equal(histogram.channel_low, x.min(axis=others))
    np.testing.assert_array_equal(histogram.channel_high, x.max(axis=others))
    np.testing.assert_allclose(histogram.channel_square_sums / histogram.batches, wide**2, rtol=0.3)
    assert 2e4 < histogram.counts.sum() < 2e5, "a sample of four million"
    assert np.sum(histogram.counts * histogram.bin_centers**2) / histogram.counts.sum() == pytest.approx(
        float(np.mean(x**2)), rel=0.15
    )


def test_the_sum_of_histograms_is_the_histogram_of_both() -> None:
    rng = np.random.default_rng(0)
    first, second, both = Histogram(), Histogram(), Histogram()
    for histogram, scale in ((first, 1.0), (second, 100.0)):
        x = (rng.standard_normal((8, 6)) * scale).astype(np.float32)
        for one in (histogram, both):
            one.add(x, -1)
    for one, other in ((first + second, both), (second + first, both)):
        assert (one.low, one.high, one.radius, one.batches) == (other.low, other.high, other.radius, other.batches)
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.channel_low, other.channel_low)
        np.testing.assert_allclose(one.channel_square_sums, other.channel_square_sums)
    first.add(np.full((1, 6), np.nan, np.float32), -1)
    assert not (first + second).finite


def test_memory_of_a_histogram_is_bounded() -> None:
    histogram = Histogram()
    for scale in (1e-3, 1.0, 1e6):
        histogram.add(np.linspace(-scale, scale, 1000, dtype=np.float32))
    assert histogram.counts.nbytes == 2048 * 8


def test_masks_of_the_most_negative_number_are_finite() -> None:
    """As exporters of attention write them: their sum overflows in float32."""
    histogram = Histogram()
    histogram.add(np.where(np.arange(64) % 2, np.finfo(np.float32).min, 0).astype(np.float32))
    assert histogram.finite
    assert histogram.low == np.finfo(np.float32).min


def test_values_that_are_not_finite_are_marked() -> None:
    net = nets.image_net()
    x = net.op("Log", [net.conv("image", 8)], 8)
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 4))
    assert not collect_histograms(evidence, [x])[x].finite


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0), (-1.0, 6.0)]))
def test_mse_range_has_the_least_squared_error(seed: int, ends: tuple[float, float]) -> None:
    """By brute force: rounding to 256 levels inside, clipping outside."""
    histogram = Histogram()
    histogram.add(np.clip(np.random.default_rng(seed).standard_t(3, 3000), *ends).astype(np.float32))
    x, n = histogram.bin_centers, histogram.counts

    def error(low: float, high: float) -> float:
        inside = n[(x >= low) & (x <= high)].sum()
        return float(
            (n * (np.maximum(low - x, 0) + np.maximum(x - high, 0)) ** 2).sum()
            + inside * ((high - low) / 255) ** 2 / 12
        )

    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    found = clip_range(histogram, "mse")
    assert low <= found[0] <= 0 <= found[1] <= high
    steps = np.linspace(1.0, 0.3, 36)
    near = [(a, b) for a in steps for b in steps if abs(a - b) < 0.25 or not low or not high]
    assert error(*found) <= min(error(a * low, b * high) for a, b in near) * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 9999), st.sampled_from([(-np.inf, np.inf), (0.0, np.inf), (-1.0, 6.0)]), st.sampled_from([60, 3000])
)
def test_entropy_threshold_has_the_least_divergence(seed: int, ends: tuple[float, float], count: int) -> None:
    """By brute force: KL divergence of |x| and of its quantized version, one threshold after the other."""
    histogram = Histogram()
    histogram.add(np.clip(np.random.default_rng(seed).standard_t(3, count), *ends).astype(np.float32))
    half, levels = len(histogram.counts) // 2, 128 if histogram.low < 0 else 256
    counts = (histogram.counts[half:] + histogram.counts[:half][::-1]).astype(float)
    counts[0] = counts[1]
    found = {}
    for stop in range(levels, half + 1, 8):
        p, q = counts[:stop].copy(), np.zeros(stop)
        p[-1] += counts[stop:].sum()
        for level in range(levels):
            near = range(level * stop // levels, min((level + 2) * stop // levels, stop))
            bins = [i for i in near if i * levels // stop == level and counts[i]]
            q[bins] = counts[bins].mean() if bins else 0
        if q.any():
            p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
            found[stop] = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
    best = min(found.values())
    threshold = max(-min(clip_range(histogram, "entropy")[0], 0), clip_range(histogram, "entropy")[1])
    allowed = [
        min(stop * histogram.radius / half, max(-histogram.low, histogram.high))
        for stop, kl in found.items()
        if kl <= best + 1e-9
    ]
    assert any(threshold == pytest.approx(a) for a in allowed)
