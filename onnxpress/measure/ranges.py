"""Ranges of activations, from a stream: exact extremes and a histogram of bounded size, and from those a clip range.

Extremes are of all values, histograms of some of those of large tensors.  One has 2,048 bins on [-R, R]; where a value falls outside,
R doubles and neighbouring bins merge, which is exact, so the memory of a tensor is 16 KB whatever the data.  (onnxruntime's histogram
calibrator keeps all values of all batches, and its bin count explodes when a late batch is wider.)
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
_PERCENTILE = 1e-4  # share of values that may be clipped at each end


@dataclass
class Histogram:
    """What was seen of one tensor. low, high: extremes; sums: of the extremes of each batch; batches: their number; radius: of the
    histogram; channel_low/high: along `axis`; channel_square: sums over batches of mean squares along it.

    finite: False where NaN or infinity was seen (a mask of -inf): such a tensor cannot be quantized.
    """

    low: float = 0.0
    high: float = 0.0
    radius: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    finite: bool = True
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    channel_square: np.ndarray | None = None
    sums: tuple[float, float] = (0.0, 0.0)
    batches: int = 0

    def add(self, x: np.ndarray, axis: int | None = None) -> None:
        """Add a batch of values; axis: keep extremes of each position of it as well."""
        if x.size:
            self.take(summarize(x, axis))

    def take(self, batch: TensorSummary) -> None:
        """Add what is known of a batch.  What is not finite is noted, not added."""
        low, high = float(batch.low.min()), float(batch.high.max())
        if not np.isfinite([low, high]).all() or not (np.isfinite(batch.some.sum()) or np.isfinite(batch.some).all()):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.sums, self.batches = (self.sums[0] + low, self.sums[1] + high), self.batches + 1
        self._widen(max(-low, high, 0.0))
        if self.radius > 0:
            scaled = np.floor(batch.some * np.float32(BINS / 2 / self.radius))  # exact, as the radius is a power of two
            scaled += np.float32(BINS / 2)
            counts = np.bincount(scaled.astype(np.int64), minlength=BINS + 1)
            counts[BINS - 1] += counts[BINS]  # what stands on the right edge
            self.counts += counts[:BINS]
        if batch.square is not None:
            self._add_channels(batch.low, batch.high, batch.square)

    def _add_channels(self, lows: np.ndarray, highs: np.ndarray, squares: np.ndarray) -> None:
        if self.channel_low is None or self.channel_high is None or self.channel_square is None:
            self.channel_low, self.channel_high, self.channel_square = lows, highs, squares
        elif self.channel_low.shape == lows.shape:  # a width that varies from sample to sample has no channels
            self.channel_low = np.minimum(self.channel_low, lows)
            self.channel_high = np.maximum(self.channel_high, highs)
            self.channel_square = self.channel_square + squares

    def __add__(self, other: Histogram) -> Histogram:
        """What was seen of both."""
        both = Histogram(self.low, self.high, self.radius, self.counts.copy(), self.finite and other.finite)
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        both.sums = self.sums[0] + other.sums[0], self.sums[1] + other.sums[1]
        both.batches = self.batches + other.batches
        both._widen(other.radius)
        again = Histogram(radius=other.radius, counts=other.counts.copy())
        again._widen(both.radius)
        both.counts += again.counts
        for one in (self, other):
            if one.channel_low is not None and one.channel_high is not None and one.channel_square is not None:
                both._add_channels(one.channel_low, one.channel_high, one.channel_square)
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
    def centres(self) -> np.ndarray:
        width = 2 * self.radius / BINS
        return (np.arange(BINS) + 0.5) * width - self.radius


def collect_histograms(
    evidence: Evidence, tensors: Sequence[str], axes: dict[str, int] | None = None, floors: Collection[str] = ()
) -> dict[str, Histogram]:
    """One pass over the samples; the spread of each named tensor. axes: tensors whose channel extremes are kept; floors: tensors with
    nothing below 0, whose lowest value is said to be 0 without a look."""
    return collect_histograms_by_part(evidence, tensors, axes or {}, [evidence.samples()], floors)[0]


def collect_histograms_by_part(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset],
    floors: Collection[str] = (),
) -> list[dict[str, Histogram]]:
    """The same for each of some parts of the samples, in one pass."""
    if not tensors:
        return [{} for _ in parts]
    what = f"spreads 7 {list(tensors)} {sorted(axes.items())} {sorted(floors)} {BINS} {[len(part) for part in parts]}"
    every = [f"{place} {name}" for place in range(len(parts)) for name in tensors]
    known = _unpacked(every, evidence.observed(what, lambda: _packed(_observe(evidence, tensors, axes, parts, floors))))
    return [{name: known[f"{place} {name}"] for name in tensors} for place in range(len(parts))]


def _packed(every: Sequence[Histogram]) -> Arrays:
    """One array a field; per-channel extremes under the spread's position."""
    arrays = {
        "ends": np.array([(s.low, s.high, s.radius, s.finite, *s.sums, s.batches) for s in every], np.float64),
        "counts": np.array([s.counts for s in every]),
    }
    for i, spread in enumerate(every):
        if spread.channel_low is not None and spread.channel_high is not None and spread.channel_square is not None:
            arrays[f"channels {i}"] = np.array([spread.channel_low, spread.channel_high], np.float32)
            arrays[f"squares {i}"] = spread.channel_square
    return arrays


def _unpacked(tensors: Sequence[str], arrays: Arrays) -> dict[str, Histogram]:
    found = {}
    for i, name in enumerate(tensors):
        low, high, radius, finite, *sums, batches = (float(v) for v in arrays["ends"][i])
        spread = Histogram(
            low, high, radius, arrays["counts"][i], bool(finite), sums=(sums[0], sums[1]), batches=int(batches)
        )
        if f"channels {i}" in arrays:
            spread.channel_low, spread.channel_high = arrays[f"channels {i}"]
            spread.channel_square = arrays[f"squares {i}"]
        found[name] = spread
    return found


def _observe(
    evidence: Evidence,
    tensors: Sequence[str],
    axes: Mapping[str, int],
    parts: Sequence[Dataset],
    floors: Collection[str],
) -> list[Histogram]:
    """Of every tensor of the first part, then of the next."""
    spreads = [{name: Histogram() for name in tensors} for _ in parts]
    for part, batch in summarize_tensors(evidence, tensors, axes, parts, floors):
        for name, digest in batch.items():
            spreads[part][name].take(digest)
    return [spread for found in spreads for spread in found.values()]


def clip_range(spread: Histogram, method: str = "auto") -> tuple[float, float]:
    """(low, high) to quantize to 256 levels; holds 0.  "auto" is mse here; `quantize` chooses by measured harm."""
    low, high = min(spread.low, 0.0), max(spread.high, 0.0)
    total = int(spread.counts.sum())
    if high - low <= 0 or total == 0:
        return low, high
    if method == "minmax":
        return low, high
    if method == "average":
        first, last = (total / max(spread.batches, 1) for total in spread.sums)
        return max(low, min(first, 0.0)), min(high, max(last, 0.0))
    if method == "percentile":
        return _percentile(spread, low, high)
    if method == "entropy":
        return _entropy(spread, low, high)
    if method in ("mse", "auto"):
        return _mse(spread, low, high)
    raise InputProblem("unknown range method", method, "", f"one of {', '.join(METHODS)}")


def _percentile(spread: Histogram, low: float, high: float) -> tuple[float, float]:
    share = np.cumsum(spread.counts) / spread.counts.sum()
    width = 2 * spread.radius / BINS
    first = int(np.searchsorted(share, _PERCENTILE, side="right"))
    last = int(np.searchsorted(share, 1 - _PERCENTILE))
    return max(low, min(0.0, -spread.radius + first * width)), min(high, max(0.0, -spread.radius + (last + 1) * width))


def _mse(spread: Histogram, low: float, high: float) -> tuple[float, float]:
    """The pair of shrinkages with the least expected squared error (rounding inside, clipping outside)."""
    x, n = spread.centres, spread.counts.astype(np.float64)
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
    best = int(np.argmin(error.T))  # the widest of equals
    return float(lows[best // len(highs)]), float(highs[best % len(highs)])


def _entropy(spread: Histogram, low: float, high: float) -> tuple[float, float]:
    """The threshold whose quantized version of |x| has the least KL divergence (TensorRT's calibration).

    p: counts up to the threshold, what is beyond it in the last bin; q: each of the levels' mean over its bins that are not empty.
    Sums over the bins of a level are differences of running sums, for all thresholds at once.
    """
    half = BINS // 2
    magnitude = (spread.counts[half:] + spread.counts[:half][::-1]).astype(np.float64)
    magnitude[0] = magnitude[1]  # the spike of exact zeros carries no information and would decide everything
    levels = _LEVELS // 2 if spread.low < 0 else _LEVELS
    stops = np.arange(levels, half + 1, 8)
    logs = np.log(np.maximum(magnitude, 1))
    masses, seen, products = (np.append(0, np.cumsum(v)) for v in (magnitude, magnitude > 0, magnitude * logs))
    ends = -(-np.arange(levels + 1) * stops[:, None] // levels)  # [stops, levels + 1]: where each level begins
    mass, number = np.diff(masses[ends]), np.diff(seen[ends])
    last, tail = magnitude[stops - 1], masses[-1] - masses[stops]
    inner, total = masses[stops], masses[-1]
    if not total:
        return low, high
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.log(np.maximum(np.where(number > 0, mass / number, 0) / inner[:, None], 1e-12))
        own = products[stops] - last * np.log(np.maximum(last, 1)) + (last + tail) * np.log(np.maximum(last + tail, 1))
        told = (mass * shares).sum(axis=1) + tail * np.where(last > 0, shares[:, -1], np.log(1e-12))
    divergence = np.where(inner > 0, (own - told) / total - np.log(total), np.inf)
    best = int(np.argmin(divergence))
    threshold = (stops[best] if np.isfinite(divergence[best]) else half) * spread.radius / half
    return max(low, -float(threshold)), min(high, float(threshold))
