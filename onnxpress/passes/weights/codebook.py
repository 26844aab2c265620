"""Codebooks: a few centroids that represent all weights of a tensor, times a scale per row.

Centroids are either free or the levels of an integer grid. Free centroids come from one-dimensional k-means weighted by
the mean squares of the inputs. The assignment is then improved against the whole Gram matrix (`core/rounding.py`),
alternating with least-squares refits of scales and centroids. An iteration is kept only where it lowers the error of
the layer's output.

Source: Han, Mao and Dally, Deep Compression (2016), for codebooks; Frantar et al., GPTQ (2023), for the assignment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from onnxpress.passes.core.rounding import Quantizer, add_damping, coordinate_descent, gptq_error_feedback

_LLOYD_ITERATIONS = 60
_REFIT_ROUNDS = 3
_MAX_OUTPUT_AWARE = 16  # centroids; with 256 the remaining error is about 300 times smaller and not worth the time
_CHUNK_BYTES = 64 * 2**20  # size of the indicator matrices held at once
_CLIP_SHARES = np.linspace(0.3, 1.0, 36)  # candidates of the grid's range, relative to the largest weight
_TINY = 1e-12


@dataclass(frozen=True)
class Codebook:
    """Weights [M, K] as codes of centroids and scales.

    Attributes:
        centroids: ascending, [C].
        codes: index of the centroid of each weight, [M, K].
        scale: factor of each of S equal blocks of a row, [M, S].
    """

    centroids: np.ndarray
    codes: np.ndarray
    scale: np.ndarray

    def compact(self) -> Codebook:
        """The codebook with codes of one byte, and with centroids and scales in float16 where it represents them."""
        centroids, scale = (
            p if (half := to_float16(p)) is None else half.astype(np.float64) for p in (self.centroids, self.scale)
        )
        return Codebook(centroids, self.codes.astype(np.uint8), scale)

    @property
    def expanded_scale(self) -> np.ndarray:
        """The scale of every weight, [M, K], or [M, 1] where a row has one scale."""
        blocks = self.scale.shape[1]
        return self.scale if blocks == 1 else np.repeat(self.scale, self.codes.shape[1] // blocks, axis=1)

    @property
    def dequantized(self) -> np.ndarray:
        """The represented weights, [M, K]."""
        return np.asarray(self.centroids[self.codes] * self.expanded_scale)


def to_float16(numbers: np.ndarray) -> np.ndarray | None:
    """Convert numbers to float16.

    Returns:
        The float16 array, or None where a number would change by more than 0.05% of itself plus 1e-6 of the largest
        absolute value.
    """
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float16)
    largest = float(np.abs(numbers).max())
    change = np.abs(half.astype(np.float64) - numbers)
    representable = np.isfinite(half).all() and (change <= 5e-4 * np.abs(numbers) + 1e-6 * largest).all()
    return half if representable else None


def fit_centroids(
    weights: np.ndarray, gram: np.ndarray | None, count: int, row_scales: bool, output_aware: bool = True
) -> Codebook:
    """Fit a codebook of free centroids to weights.

    Args:
        weights: [M, K].
        gram: Gram matrix of the inputs, [K, K], its diagonal, [K], or None where unknown.
        count: maximum number of centroids.
        row_scales: whether each row has a scale; otherwise all scales are 1.
        output_aware: whether to use the whole Gram matrix, and not only its diagonal.

    Returns:
        The codebook, with at most `count` centroids.
    """
    weights = weights.astype(np.float64)
    importance, h = _column_weights(gram, weights.shape[1])
    scale = np.ones((len(weights), 1))
    if row_scales:
        scale = np.maximum(np.sqrt((weights**2).mean(axis=1, keepdims=True)), _TINY)
    codebook = _codebook_by_kmeans(weights, importance, scale, count, None)
    for _ in range(_REFIT_ROUNDS if row_scales else 0):
        codebook = _codebook_by_kmeans(
            weights, importance, _refit_scales(codebook, weights, importance), count, codebook.centroids
        )
    return (
        _output_aware(codebook, weights, h, row_scales, True)
        if output_aware and h is not None and count <= _MAX_OUTPUT_AWARE
        else codebook
    )


def fit_grid(
    weights: np.ndarray, gram: np.ndarray | None, levels: np.ndarray, block: int = 0, output_aware: bool = True
) -> Codebook:
    """Fit a codebook whose centroids are given; only the scales are free.

    Args:
        weights: [M, K].
        gram: as in `fit_centroids`.
        levels: the centroids, ascending.
        block: number of neighbouring weights of a row that share a scale; 0 for the whole row.
        output_aware: as in `fit_centroids`.
    """
    weights = weights.astype(np.float64)
    importance, h = _column_weights(gram, weights.shape[1])
    blocks = weights.shape[1] // block if block else 1
    parts = weights.reshape(len(weights), blocks, -1)
    scale = _search_scale(parts, importance.reshape(blocks, -1), levels)
    codebook = Codebook(levels, np.empty(weights.shape, np.int64), scale)
    codebook = replace(codebook, codes=nearest_centroid(levels, weights / codebook.expanded_scale))
    if h is None or not output_aware or len(levels) > _MAX_OUTPUT_AWARE:
        return codebook
    return _output_aware(codebook, weights, h, blocks == 1, False)


def _column_weights(gram: np.ndarray | None, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight of each column's error, [K], and the damped Gram matrix where a whole one is given."""
    if gram is None:
        return np.ones(columns), None
    if gram.ndim == 1:
        return np.asarray(gram + 1e-2 * gram.mean()), None
    h = add_damping(gram)
    return np.diag(h), h


def _search_scale(parts: np.ndarray, importance: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The scale [M, S] of least weighted rounding error of each block [M, S, K]; importance: [S, K]."""
    reach = np.maximum(np.abs(parts).max(axis=2), _TINY) / np.abs(levels).max()
    best, lowest = reach, np.full(reach.shape, np.inf)
    for share in _CLIP_SHARES[::-1]:
        scale = reach * share
        change = levels[nearest_centroid(levels, parts / scale[:, :, None])] * scale[:, :, None] - parts
        output_error = np.einsum("msk,sk->ms", change * change, importance)
        better = output_error < lowest
        best, lowest = np.where(better, scale, best), np.where(better, output_error, lowest)
    return np.asarray(best)


def _codebook_by_kmeans(
    weights: np.ndarray, importance: np.ndarray, scale: np.ndarray, count: int, start: np.ndarray | None
) -> Codebook:
    """A codebook for given scales, by weighted k-means."""
    unscaled = weights / scale
    centroids = kmeans(unscaled.ravel(), (importance * scale**2).ravel(), count, start)
    return Codebook(centroids, nearest_centroid(centroids, unscaled), scale)


def kmeans(values: np.ndarray, importance: np.ndarray, count: int, start: np.ndarray | None = None) -> np.ndarray:
    """Weighted one-dimensional k-means (Lloyd's algorithm).

    Args:
        values: numbers, [N].
        importance: weight of each number, [N].
        count: maximum number of centroids.
        start: initial centroids; None to start from quantiles of the cube root of the density.

    Returns:
        At most `count` centroids, ascending.
    """
    order = np.argsort(values, kind="stable")
    values, importance = values[order], importance[order]
    if start is None:
        distinct = values[np.concatenate([[True], np.diff(values) > 0])]
        if len(distinct) <= count:
            return np.asarray(distinct)
        start = np.unique(values[_initial_positions(values, importance, count)])
        others = np.setdiff1d(distinct, start)
        start = np.union1d(start, others[np.linspace(0, len(others) - 1, count - len(start)).astype(int)])
    weight = np.concatenate([[0.0], np.cumsum(importance)])
    moment = np.concatenate([[0.0], np.cumsum(importance * values)])
    centroids = start
    for _ in range(_LLOYD_ITERATIONS):
        cuts = np.concatenate([[0], np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2), [len(values)]])
        cluster_weight = np.diff(weight[cuts])
        new = np.where(
            cluster_weight > 0, np.diff(moment[cuts]) / np.where(cluster_weight > 0, cluster_weight, 1.0), centroids
        )
        if np.allclose(new, centroids, rtol=0, atol=1e-7 * max(abs(values[0]), abs(values[-1]))):
            break
        centroids = new
    return np.asarray(np.unique(centroids))


def _initial_positions(values: np.ndarray, importance: np.ndarray, count: int) -> np.ndarray:
    """Positions in sorted values at quantiles of the cube root of their density (Panter and Dite 1951)."""
    bins = np.linspace(values[0], values[-1], 513)
    dense = np.histogram(values, bins, weights=importance)[0]
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(dense))])
    wanted = (np.arange(count) + 0.5) / count * share[-1]
    return np.asarray(np.clip(np.searchsorted(values, np.interp(wanted, share, bins)), 0, len(values) - 1))


def nearest_centroid(centroids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid for each value; centroids are ascending."""
    return np.asarray(np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values))


def _output_aware(
    codebook: Codebook, weights: np.ndarray, h: np.ndarray, free_scales: bool, free_centroids: bool
) -> Codebook:
    """Improve codes, and scales and centroids where free, by the error of the layer's output."""
    best, lowest = codebook, output_error(codebook.dequantized - weights, h)
    for round_index in range(_REFIT_ROUNDS if free_scales or free_centroids else 1):
        quantize = _quantizer(codebook)
        start = gptq_error_feedback(weights, h, quantize) if round_index == 0 else codebook.dequantized
        codebook = replace(
            codebook,
            codes=nearest_centroid(
                codebook.centroids, coordinate_descent(weights, start, h, quantize) / codebook.expanded_scale
            ),
        )
        if free_scales:
            codebook = replace(codebook, scale=_refit_scales(codebook, weights, h))
        if free_centroids:
            codebook = _refit_centroids(codebook, weights, h)
        found = output_error(codebook.dequantized - weights, h)
        if not found < lowest * (1 - 1e-4):
            break
        best, lowest = codebook, found
    return best


def _quantizer(codebook: Codebook) -> Quantizer:
    """The quantizer that maps values to the nearest scaled centroid."""
    expanded_scale = codebook.expanded_scale
    single = expanded_scale.shape[1] == 1

    def quantize(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
        scale = expanded_scale if single else expanded_scale[:, columns]
        return np.asarray(codebook.centroids[nearest_centroid(codebook.centroids, values / scale)] * scale)

    return quantize


def output_error(change: np.ndarray, h: np.ndarray | None) -> float:
    """Squared error that a change of the weights adds to a layer's output, summed over outputs.

    Args:
        change: changed weights minus original weights, [M, K].
        h: Gram matrix of the inputs, [K, K], its diagonal, [K], or None for the identity.
    """
    if h is None:
        return float((change * change).sum())
    return float(((change * h if h.ndim == 1 else change @ h) * change).sum())


def lost_power(change: np.ndarray, weights: np.ndarray, gram: np.ndarray | None) -> float:
    """Error of a layer's output relative to its power.

    Args:
        change: changed weights minus original weights, [M, K].
        weights: original weights, [M, K].
        gram: as in `output_error`.
    """
    return output_error(change, gram) / max(output_error(weights, gram), _TINY**2)


def _refit_scales(codebook: Codebook, weights: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Each row's scale by least squares: w^T H v / v^T H v; h: [K, K], or [K] for a diagonal."""
    unscaled = codebook.centroids[codebook.codes]
    weighted = unscaled * h if h.ndim == 1 else unscaled @ h
    upper, lower = (weighted * weights).sum(axis=1), (weighted * unscaled).sum(axis=1)
    representable = (lower > 0) & (upper > 0)
    return np.where(representable, upper / np.where(representable, lower, 1.0), codebook.scale[:, 0])[:, None]


def _refit_centroids(codebook: Codebook, weights: np.ndarray, h: np.ndarray) -> Codebook:
    """Centroids by least squares over all rows: sum s^2 A^T H A c = sum s A^T H w, A the indicator matrix of a row."""
    count, columns = len(codebook.centroids), weights.shape[1]
    normal, target = np.zeros((count, count)), np.zeros(count)
    weighted = weights @ h
    step = max(1, _CHUNK_BYTES // (8 * count * columns))
    for begin in range(0, len(weights), step):
        codes, scale = codebook.codes[begin : begin + step], codebook.scale[begin : begin + step]
        indicators = (codes[:, None, :] == np.arange(count)[None, :, None]) * scale[:, :, None]
        flat = indicators.reshape(-1, columns)
        normal += np.matmul((flat @ h).reshape(indicators.shape), indicators.transpose(0, 2, 1)).sum(axis=0)
        target += np.matmul(indicators, weighted[begin : begin + step, :, None])[:, :, 0].sum(axis=0)
    ridge = 1e-8 * float(np.trace(normal)) / count
    if not ridge > 0:
        return codebook
    solved = scipy.linalg.solve(normal + ridge * np.eye(count), target + ridge * codebook.centroids, assume_a="pos")
    order = np.argsort(solved, kind="stable")
    return replace(codebook, centroids=solved[order], codes=np.argsort(order, kind="stable")[codebook.codes])
