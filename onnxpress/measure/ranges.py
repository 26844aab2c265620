"""Activation ranges: streaming histograms with exact extremes, and clip ranges computed from them.

Extremes cover all values; histograms cover a sample of the values of large tensors.  A histogram has 2,048 bins on [-R,
R].  Where a value lies outside, R doubles and neighbouring bins merge, which is exact, so a tensor takes 16 KB whatever
the data.  (onnxruntime's histogram calibrator keeps all values of all batches, and its number of bins grows without
bound when a late batch has a wider range.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.cache import Arrays
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.tensor_summary import TensorSummary, summarize, summarize_tensors

BINS = 2048
METHODS = ("auto", "minmax", "average", "percentile", "entropy", "mse")
_LEVELS = 256
_PERCENTILE = 1e-4  # fraction of values that may be clipped at each end


@dataclass
class Histogram:
    """Extremes and a histogram of one tensor over all batches.

    low, high:                 extremes, 0 included
    radius:                    the histogram covers [-radius, radius]
    counts:                    [BINS]
    finite:                    False where a value is NaN or infinite (a mask of -inf): such a tensor cannot be
                               quantized
    channel_low, channel_high: [channels] extremes, where an axis is kept
    channel_square_sums:       [channels] sum over batches of the mean squares
    extreme_sums:              sums over batches of the minimum and of the maximum
    batches:                   number of batches
    """

    low: float = 0.0
    high: float = 0.0
    radius: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    finite: bool = True
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    channel_square_sums: np.ndarray | None = None
    extreme_sums: tuple[float, float] = (0.0, 0.0)
    batches: int = 0

    def add(self, x: np.ndarray, axis: int | None = None) -> None:
        """Add a batch of values.  axis: extremes are kept along it as well."""
        if x.size:
            self.add_summary(summarize(x, axis))

    def add_summary(self, batch: TensorSummary) -> None:
        """Add the summary of a batch.  A batch with values that are not finite only clears `finite`."""
        low, high = float(batch.low.min()), float(batch.high.max())
        if not np.isfinite([low, high]).all() or not (
            np.isfinite(batch.values.sum(dtype=np.float64)) or np.isfinite(batch.values).all()
        ):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.extreme_sums, self.batches = (self.extreme_sums[0] + low, self.extreme_sums[1] + high), self.batches + 1
        self._widen(max(-low, high, 0.0))
        if self.radius > 0:
            scaled = np.floor(batch.values * np.float32(BINS / 2 / self.radius))  # exact: the radius is a power of two
            scaled += np.float32(BINS / 2)
            counts = np.bincount(scaled.astype(np.int64), minlength=BINS + 1)
            counts[BINS - 1] += counts[BINS]  # values on the right edge
            self.counts += counts[:BINS]
        if batch.mean_square is not None:
            self._add_channels(batch.low, batch.high, batch.mean_square)

    def _add_channels(self, lows: np.ndarray, highs: np.ndarray, squares: np.ndarray) -> None:
        if self.channel_low is None or self.channel_high is None or self.channel_square_sums is None:
            self.channel_low, self.channel_high, self.channel_square_sums = lows, highs, squares
        elif self.channel_low.shape == lows.shape:  # a width that differs between samples has no channels
            self.channel_low = np.minimum(self.channel_low, lows)
            self.channel_high = np.maximum(self.channel_high, highs)
            self.channel_square_sums = self.channel_square_sums + squares

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both sets of batches."""
        both = Histogram(self.low, self.high, self.radius, self.counts.copy(), self.finite and other.finite)
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        both.extreme_sums = self.extreme_sums[0] + other.extreme_sums[0], self.extreme_sums[1] + other.extreme_sums[1]
        both.batches = self.batches + other.batches
        both._widen(other.radius)
        again = Histogram(radius=other.radius, counts=other.counts.copy())
        again._widen(both.radius)
        both.counts += again.counts
        for one in (self, other):
            if one.channel_low is not None and one.channel_high is not None and one.channel_square_sums is not None:
                both._add_channels(one.channel_low, one.channel_high, one.channel_square_sums)
        return both

    def _widen(self, peak: float) -> None:
        if peak <= self.radius or peak == 0 or not np.isfinite(peak):
            return
        if self.radius == 0:
            self.radius = float(2.0 ** np.ceil(np.log2(peak)))
            return
        while self.radius < peak:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[quarter : quarter + BINS // 2] = merged
            self.radius *= 2

    @property
    def bin_centers(self) -> np.ndarray:
        width = 2 * self.radius / BINS
        return (np.arange(BINS) + 0.5) * width - self.radius


def collect_histograms(
    evidence: Evidence, tensors: Sequence[str], axes: dict[str, int] | None = None, nonnegative: Collection[str] = ()
) -> dict[str, Histogram]:
    """The histogram of each named tensor, in one pass over the samples.

    axes:        by tensor, the axis that extremes are kept along
    nonnegative: tensors without negative values, whose minimum is set to 0 without a reduction
    """
    return collect_histograms_by_part(evidence, tensors, axes or {}, [evidence.samples()], nonnegative)[0]


def collect_histograms_by_part(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset],
    nonnegative: Collection[str] = (),
) -> list[dict[str, Histogram]]:
    """The same for each of several parts of the samples, in one pass."""
    if not tensors:
        return [{} for _ in parts]
    settings = f"{sorted(axes.items())} {sorted(nonnegative)} {BINS} {[len(part) for part in parts]}"
    what = f"histograms 7 {list(tensors)} {settings}"
    keys = [f"{place} {name}" for place in range(len(parts)) for name in tensors]
    known = _unpack(keys, evidence.observed(what, lambda: _pack(_collect(evidence, tensors, axes, parts, nonnegative))))
    return [{name: known[f"{place} {name}"] for name in tensors} for place in range(len(parts))]


def _pack(histograms: Sequence[Histogram]) -> Arrays:
    """One array per field; arrays by channel under the position of the histogram."""
    arrays = {
        "ends": np.array(
            [(s.low, s.high, s.radius, s.finite, *s.extreme_sums, s.batches) for s in histograms], np.float64
        ),
        "counts": np.array([s.counts for s in histograms]),
    }
    for i, histogram in enumerate(histograms):
        if (
            histogram.channel_low is not None
            and histogram.channel_high is not None
            and histogram.channel_square_sums is not None
        ):
            arrays[f"channels {i}"] = np.array([histogram.channel_low, histogram.channel_high], np.float32)
            arrays[f"squares {i}"] = histogram.channel_square_sums
    return arrays


def _unpack(tensors: Sequence[str], arrays: Arrays) -> dict[str, Histogram]:
    found = {}
    for i, name in enumerate(tensors):
        low, high, radius, finite, *extreme_sums, batches = (float(v) for v in arrays["ends"][i])
        histogram = Histogram(
            low,
            high,
            radius,
            arrays["counts"][i],
            bool(finite),
            extreme_sums=(extreme_sums[0], extreme_sums[1]),
            batches=int(batches),
        )
        if f"channels {i}" in arrays:
            histogram.channel_low, histogram.channel_high = arrays[f"channels {i}"]
            histogram.channel_square_sums = arrays[f"squares {i}"]
        found[name] = histogram
    return found


def _collect(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset],
    nonnegative: Collection[str],
) -> list[Histogram]:
    """Histograms of every tensor of the first part, then of the next part, and so on."""
    histograms = [{name: Histogram() for name in tensors} for _ in parts]
    for part, batch in summarize_tensors(evidence, tensors, axes, parts, nonnegative):
        for name, summary in batch.items():
            histograms[part][name].add_summary(summary)
    return [histogram for found in histograms for histogram in found.values()]


def clip_range(histogram: Histogram, method: str = "auto") -> tuple[float, float]:
    """(low, high) for quantization to 256 levels, with 0 inside.  method: one of METHODS; "auto" is mse here.

    Raises InputProblem for another method.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    total = int(histogram.counts.sum())
    if high - low <= 0 or total == 0:
        return low, high
    if method == "minmax":
        return low, high
    if method == "average":
        first, last = (total / max(histogram.batches, 1) for total in histogram.extreme_sums)
        return max(low, min(first, 0.0)), min(high, max(last, 0.0))
    if method == "percentile":
        return _percentile(histogram, low, high)
    if method == "entropy":
        return _entropy(histogram, low, high)
    if method in ("mse", "auto"):
        return _mse(histogram, low, high)
    raise InputProblem("unknown range method", method, "", f"one of {', '.join(METHODS)}")


def _percentile(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
    width = 2 * histogram.radius / BINS
    first = int(np.searchsorted(cumulative, _PERCENTILE, side="right"))
    last = int(np.searchsorted(cumulative, 1 - _PERCENTILE))
    return max(low, min(0.0, -histogram.radius + first * width)), min(
        high, max(0.0, -histogram.radius + (last + 1) * width)
    )


def _mse(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The pair of shrunken ends with the least expected squared error (rounding inside, clipping outside)."""
    x, n = histogram.bin_centers, histogram.counts.astype(np.float64)
    x, n = x[n > 0], n[n > 0]
    steps = np.linspace(1.0, 0.3, 36)
    lows, highs = (steps * end if end else np.zeros(1) for end in (low, high))
    below, above = np.maximum(lows[:, None] - x, 0), np.maximum(x - highs[:, None], 0)
    inside = n.sum() - (below > 0) @ n - ((above > 0) @ n)[:, None]  # [highs, lows]
    width = (highs[:, None] - lows) / (_LEVELS - 1)
    error = (below**2) @ n + ((above**2) @ n)[:, None] + inside * width**2 / 12
    apart = 0.0 if low == 0 or high == 0 else np.abs(steps[:, None] - steps)
    error[(apart >= 0.25) | (width <= 0)] = np.inf
    if not np.isfinite(error).any():
        return low, high
    best = int(np.argmin(error.T))  # the widest range among equals
    return float(lows[best // len(highs)]), float(highs[best % len(highs)])


def _entropy(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The threshold with the least KL divergence of the quantized distribution of |x| (TensorRT's calibration).

    p: counts up to the threshold, with all counts beyond it in the last bin; q: for each level its mean count over its
       bins that are not empty.  Sums over the bins of a level are differences of cumulative sums, computed for all
       thresholds at once.
    """
    half = BINS // 2
    magnitude = (histogram.counts[half:] + histogram.counts[:half][::-1]).astype(np.float64)
    magnitude[0] = magnitude[1]  # the count of exact zeros carries no information and would dominate
    levels = _LEVELS // 2 if histogram.low < 0 else _LEVELS
    stops = np.arange(levels, half + 1, 8)
    logs = np.log(np.maximum(magnitude, 1))
    masses, nonempty, products = (np.append(0, np.cumsum(v)) for v in (magnitude, magnitude > 0, magnitude * logs))
    ends = -(-np.arange(levels + 1) * stops[:, None] // levels)  # [stops, levels + 1]: first bin of each level
    mass, number = np.diff(masses[ends]), np.diff(nonempty[ends])
    last, tail = magnitude[stops - 1], masses[-1] - masses[stops]
    inner, total = masses[stops], masses[-1]
    if not total:
        return low, high
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(np.maximum(np.where(number > 0, mass / number, 0) / inner[:, None], 1e-12))
        entropy = (
            products[stops] - last * np.log(np.maximum(last, 1)) + (last + tail) * np.log(np.maximum(last + tail, 1))
        )
        cross_entropy = (mass * log_q).sum(axis=1) + tail * np.where(last > 0, log_q[:, -1], np.log(1e-12))
    divergence = np.where(inner > 0, (entropy - cross_entropy) / total - np.log(total), np.inf)
    best = int(np.argmin(divergence))
    threshold = (stops[best] if np.isfinite(divergence[best]) else half) * histogram.radius / half
    return max(low, -float(threshold)), min(high, float(threshold))
