"""Saturation of pairs of products in 16 bits, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.runtime import vpmaddubsw_saturation

pytestmark = pytest.mark.unit


def worst(row: np.ndarray, peaks: np.ndarray) -> int:
    """Largest excess over 16 bits of a pair of products with codes from 0 to the peaks; 0 or less: none saturates."""
    row, peaks = np.pad(row, (0, len(row) % 2)).astype(int), np.pad(peaks, (0, len(peaks) % 2)).astype(int)
    found = -32768
    for i in range(0, len(row), 2):
        for a in (0, peaks[i]):
            for b in (0, peaks[i + 1]):
                total = a * row[i] + b * row[i + 1]
                found = max(found, total - 32767, -32768 - total)
    return int(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(1, 12))
def test_exactly_the_heavy_rows_could_saturate(seed: int, columns: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows, peaks = rng.integers(-127, 128, (count, columns)), rng.integers(0, 256, columns)
    for row, heavy in zip(rows, vpmaddubsw_saturation.pair_load(rows, peaks) > 1, strict=True):
        assert heavy == (worst(row, peaks) > 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(1, 12))
def test_rows_use_the_largest_possible_range(seed: int, columns: int, count: int) -> None:
    """None saturates after rounding; a scale that is a few steps finer would."""
    rng = np.random.default_rng(seed)
    real, peaks = rng.standard_normal((count, columns)), rng.integers(0, 256, columns)
    top = np.abs(real).max(axis=1, keepdims=True)
    levels = vpmaddubsw_saturation.max_weight_codes(np.rint(real / top * vpmaddubsw_saturation.MAX_WEIGHT), peaks)[
        :, None
    ]
    rounded = np.rint(real / top * levels)
    rows = vpmaddubsw_saturation.clamp_pairs(rounded, peaks)
    assert (vpmaddubsw_saturation.pair_load(rows, peaks) <= 1).all() and np.abs(rows - rounded).max() <= 1
    finer = vpmaddubsw_saturation.pair_load(real / top * (levels + 3), peaks) > 1
    assert (
        finer
        | (levels[:, 0] == vpmaddubsw_saturation.MAX_WEIGHT)
        | (levels[:, 0] == vpmaddubsw_saturation.MAX_SAFE_WEIGHT)
    ).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 20), st.sampled_from([40, 64, 100, 119, 122, 127]))
def test_limited_rows_have_headroom_without_saturation(seed: int, columns: int, peak: int) -> None:
    """The headroom includes the weights themselves, and reaches no saturation where they did not."""
    rng = np.random.default_rng(seed)
    full = np.full(columns, 255)
    row = vpmaddubsw_saturation.clamp_pairs(rng.integers(-peak, peak + 1, (1, columns)), full)
    row[0, 0] = peak
    row[0, 1:2] = 0
    low, high = vpmaddubsw_saturation.weight_headroom(row)
    assert (low <= row).all() and (row <= high).all()
    if peak < 120:
        for _ in range(20):
            assert vpmaddubsw_saturation.pair_load(rng.integers(low, high + 1), full)[0] <= 1
    else:
        assert (low == -128).all() and (high == 127).all()


def test_kernels_read_taps_outermost_and_channels_innermost() -> None:
    weights = np.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    seen = weights.reshape(2, -1)[:, vpmaddubsw_saturation.kernel_order(weights.shape)]
    assert seen[0].tolist() == [weights[0, c, y, x] for y in range(2) for x in range(2) for c in range(3)]
    assert vpmaddubsw_saturation.kernel_order((5, 4)).tolist() == [0, 1, 2, 3]
