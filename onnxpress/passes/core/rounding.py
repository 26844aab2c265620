"""Output-aware rounding: choose quantized weights that preserve a layer's output instead of the weights themselves.

Minimizes (v - w)^T H (v - w) for each output row w, where H [K, K] is the Gram matrix of the layer's inputs and each
v_j is one of the values allowed for the row (an integer grid, or the centroids of a codebook). `gptq_error_feedback`
visits the columns once and compensates the error of each column in the remaining ones (GPTQ, Frantar et al. 2023).
`coordinate_descent` then repeats v_j <- nearest allowed value to w_j - sum_{k != j} H_jk (v_k - w_k) / H_jj until no
value changes; each step can only lower the error. Both work on blocks of columns, so that distant columns are updated
by matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from onnxpress.measure.gram import Moments
from onnxpress.runtime.time_limit import check_time

# (values [M, n], their column indices [n]) -> the nearest allowed values [M, n]
Quantizer = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SWEEPS = 4
_DAMPING = 1e-2
_BLOCK = 64
_DAMPING_CANDIDATES = (0.01, 0.1, 1.0)  # relative to the mean of the diagonal
_TRIAL_ROWS, _TRIAL_MAX_CODE = 32, 7.0  # rows rounded to 4 bits to compare damping factors


def add_damping(gram: np.ndarray) -> np.ndarray:
    """Return a Gram matrix [K, K] with 1% of its mean diagonal added to the diagonal.

    Without damping, input directions that do not occur in the samples would have no weight.
    """
    return add_to_diagonal(gram, _DAMPING)


def add_cross_validated_damping(moments: Moments, weights: np.ndarray, centre: bool) -> np.ndarray:
    """Return the Gram matrix of a layer's inputs with the damping that generalizes best to held-out samples.

    Some rows of the weights are rounded to 4 bits with the statistics of one half of the samples and evaluated on the
    other half, for each candidate factor. With few samples relative to K, undamped rounding lets errors cancel in ways
    that do not carry over to other samples.

    Args:
        moments: second moments of the inputs, K columns, with their halves in `parts`.
        weights: weights of the layer, [M, K].
        centre: whether to use moments about the mean (the bias can compensate the mean error).

    Returns:
        The damped Gram matrix, [K, K]; undamped where the halves are missing or unusable.
    """
    gram, factor = moments.centred(centre)[0], cross_validated_damping(moments, weights, centre)
    return gram if factor is None else add_to_diagonal(gram, factor)


def cross_validated_damping(moments: Moments, weights: np.ndarray, centre: bool) -> float | None:
    """Return the factor of `add_cross_validated_damping`, relative to the mean of the diagonal; None: no damping."""
    if moments.parts is None or min(part.count for part in moments.parts) < 2:
        return None
    first, second = (part.centred(centre)[0] for part in moments.parts)
    if not all(np.isfinite(g).all() and np.diag(g).max() > 0 for g in (first, second)):
        return None
    rows = weights[np.linspace(0, len(weights) - 1, min(_TRIAL_ROWS, len(weights))).astype(int)].astype(np.float64)
    quantize = integer_grid(
        np.maximum(np.abs(rows).max(axis=1), 1e-12) / _TRIAL_MAX_CODE, np.full(len(rows), _TRIAL_MAX_CODE)
    )

    folds = ((first, second), (second, first))
    damped = [add_to_diagonal(train, factor) for factor in _DAMPING_CANDIDATES for train, _ in folds]
    errors = []  # of the output on the other half of the samples, relative to the power of the inputs
    for number, values in enumerate(_error_feedback(rows, damped, quantize)):
        change, held_out = values - rows, folds[number % 2][1]
        errors.append(float(np.vdot(change @ held_out, change)) / float(np.trace(held_out)))
    totals = [sum(errors[place : place + 2]) for place in range(0, len(errors), 2)]
    return _DAMPING_CANDIDATES[int(np.argmin(totals))]


def add_to_diagonal(gram: np.ndarray, factor: float) -> np.ndarray:
    """A matrix with a multiple of its mean diagonal added to the diagonal."""
    return np.asarray(gram + factor * float(np.mean(np.diag(gram))) * np.eye(len(gram)))


def gptq_error_feedback(weights: np.ndarray, h: np.ndarray, quantize: Quantizer) -> np.ndarray:
    """Quantize weights column by column and compensate each column's error in the columns that follow.

    Columns are visited by decreasing diagonal of `h`.

    Args:
        weights: [M, K].
        h: positive definite Gram matrix of the inputs, [K, K].
        quantize: maps values to the nearest allowed values.

    Returns:
        The quantized values, [M, K], in float64.

    Source: Frantar et al., GPTQ (2023), with activation order; Hassibi and Stork, Optimal Brain Surgeon (1993).
    """
    return _error_feedback(weights, [h], quantize)[0]


def _error_feedback(weights: np.ndarray, grams: Sequence[np.ndarray], quantize: Quantizer) -> list[np.ndarray]:
    """`gptq_error_feedback` of the same weights for several Gram matrices at once: the loop over columns costs much
    more than its arithmetic where there are few rows.

    With several matrices `quantize` gets values [B, M, 1] and column indices [B], and may not depend on the columns.
    """
    orders = np.stack([np.argsort(-np.diag(h), kind="stable") for h in grams])  # [B, K]
    uppers = np.stack([_inverse_factor(h[np.ix_(o, o)]) for h, o in zip(grams, orders, strict=True)])  # [B, K, K]
    remaining = np.stack([weights[:, o].astype(np.float64) for o in orders])  # [B, M, K]
    values = np.empty_like(remaining)
    columns = remaining.shape[2]
    for start in range(0, columns, _BLOCK):
        check_time()
        stop = min(start + _BLOCK, columns)
        errors = np.empty((*remaining.shape[:2], stop - start))
        for j in range(start, stop):
            values[:, :, j] = _quantized_column(remaining[:, :, j], orders[:, j], quantize)
            error = (remaining[:, :, j] - values[:, :, j]) / uppers[:, j, j, None]
            remaining[:, :, j:stop] -= error[:, :, None] * uppers[:, None, j, j:stop]
            errors[:, :, j - start] = error
        for left, own, upper in zip(remaining, errors, uppers, strict=True):
            left[:, stop:] -= own @ upper[start:stop, stop:]
    return [v[:, np.argsort(o, kind="stable")] for v, o in zip(values, orders, strict=True)]


def _quantized_column(column: np.ndarray, index: np.ndarray, quantize: Quantizer) -> np.ndarray:
    """One column of each of B matrices, [B, M], quantized. index: of the column in each, [B]."""
    if len(column) == 1:
        return quantize(column[0][:, None], index)[:, 0][None]
    return quantize(column[:, :, None], index)[:, :, 0]


def _inverse_factor(h: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse of a positive definite matrix [K, K].

    Of inputs that hardly vary, the moments about the mean are what rounding errors left, and may have negative
    eigenvalues: those are raised to the smallest that can be told from zero.

    With h = U U^T, U upper triangular (the Cholesky factor of h with rows and columns reversed), it is the inverse of
    U: a third of the work of inverting h first.
    """
    turned = h[::-1, ::-1]
    try:
        factor = scipy.linalg.cholesky(turned, lower=True, check_finite=False)[::-1, ::-1]
    except scipy.linalg.LinAlgError:
        factor = scipy.linalg.cholesky(_positive(turned), lower=True)[::-1, ::-1]
    return np.asarray(scipy.linalg.lapack.dtrtri(np.asfortranarray(factor))[0])


def _positive(h: np.ndarray) -> np.ndarray:
    """The nearest symmetric matrix whose eigenvalues are positive."""
    values, vectors = scipy.linalg.eigh(h)
    least = 1e-6 * max(float(np.abs(values).max()), 1e-12)
    return np.asarray((vectors * np.maximum(values, least)) @ vectors.T)


def coordinate_descent(
    weights: np.ndarray, start: np.ndarray, h: np.ndarray, quantize: Quantizer, sweeps: int = _SWEEPS
) -> np.ndarray:
    """Improve quantized weights by coordinate descent on (v - w)^T H (v - w).

    Args:
        weights: [M, K].
        start: quantized values to start from, [M, K].
        h: Gram matrix of the inputs, [K, K].
        quantize: maps values to the nearest allowed values.
        sweeps: maximum number of passes over all columns, 4 by default.

    Returns:
        The quantized values, [M, K], in float64.
    """
    values = start.astype(np.float64)
    diagonal = np.maximum(np.diag(h), 1e-12)
    gradient = (values - weights) @ h
    columns = weights.shape[1]
    for _ in range(sweeps):
        changed = False
        for first in range(0, columns, _BLOCK):
            check_time()
            block = np.arange(first, min(first + _BLOCK, columns))
            block_gradient = gradient[:, block]
            proposed = quantize(values[:, block] - block_gradient / diagonal[block], block)
            active = block[(proposed != values[:, block]).any(axis=0)]
            if not active.size:
                continue
            before = values[:, block].copy()
            for j in active:
                pick = np.array([j])
                new = quantize(values[:, pick] - block_gradient[:, pick - first] / diagonal[j], pick)[:, 0]
                step = new - values[:, j]
                if step.any():
                    values[:, j] = new
                    block_gradient += np.outer(step, h[j, block])
            change = values[:, block] - before
            if change.any():
                changed = True
                gradient += change @ h[block]
        if not changed:
            break
    return values


def refine_integers(
    weights: np.ndarray, scale: np.ndarray, max_code: np.ndarray, gram: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Improve integer weights by coordinate descent, so that the layer's output is preserved.

    Args:
        weights: [M, K].
        scale: scale of each row, [M].
        max_code: largest absolute integer of each row, [M].
        gram: Gram matrix of the inputs, [K, K]; damped here.
        start: integers to start from, [M, K].

    Returns:
        Integers, [M, K], in float64.
    """
    values = coordinate_descent(weights, start * scale[:, None], add_damping(gram), integer_grid(scale, max_code))
    return np.asarray(np.rint(values / scale[:, None]))


def integer_grid(scale: np.ndarray, max_code: np.ndarray) -> Quantizer:
    """Return the quantizer to integer multiples of each row's scale.

    Args:
        scale: [M].
        max_code: largest absolute integer of each row, [M].
    """
    return lambda values, _: symmetric_integers(values, scale[:, None], max_code[:, None]) * scale[:, None]


def symmetric_integers(values: np.ndarray, scale: np.ndarray, max_code: np.ndarray | float) -> np.ndarray:
    """Round values to the nearest integer multiples of a scale, without a zero point.

    Args:
        values: any shape.
        scale: broadcastable to `values`.
        max_code: largest absolute integer, broadcastable to `values`.

    Returns:
        The integers, in the type of `values / scale`; ties are rounded to even.
    """
    return np.asarray(np.clip(np.rint(values / scale), -max_code, max_code))
