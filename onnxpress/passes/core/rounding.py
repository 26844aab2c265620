"""Rounding that knows the inputs: values of a few that keep a layer's output, not its weights.

Minimises (v - w)^T H (v - w) for each output row, H the Gram matrix of the layer's inputs, where each v_j is one of the values a
row may take (an integer grid, the centres of a codebook).  `feedback` goes through the columns once and lets those still to
come take up the error so far (GPTQ, Frantar et al. 2023); `settle` then goes over them until nothing moves:
v_j <- the value nearest to w_j - sum_{k != j} H_jk (v_k - w_k) / H_jj, which can only lower the error.
Both work on blocks of columns, so that what is far away is brought up to date by matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from onnxpress.measure.gram import Moments

Snap = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # wishes [M, n] for some columns [n] -> the nearest allowed values

_SWEEPS = 4
_DAMP = 1e-2
_BLOCK = 64
_SHARES = (0.01, 0.1, 1.0)  # of the mean of the diagonal
_ROWS, _TOP = 32, 7.0  # that are looked at, in 4 bits


def damped(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix that also minds inputs the samples never showed."""
    return _raised(gram, _DAMP)


def minded(moments: Moments, weights: np.ndarray, centre: bool) -> np.ndarray:
    """The Gram matrix [K, K] of a layer's inputs, with as much added to its diagonal as makes rounding by it hold on other samples.

    How much is seen by rounding some rows of the weights [M, K] by one half of the samples and looking at them on the other: where
    samples are few beside K, errors are let cancel each other in ways that the next sample knows nothing of.
    """
    gram = moments.centred(centre)[0]
    if moments.parts is None or min(part.count for part in moments.parts) < 2:
        return gram
    first, second = (part.centred(centre)[0] for part in moments.parts)
    if not all(np.isfinite(g).all() and np.diag(g).max() > 0 for g in (first, second)):
        return gram
    rows = weights[np.linspace(0, len(weights) - 1, min(_ROWS, len(weights))).astype(int)].astype(np.float64)
    snap = grid(np.maximum(np.abs(rows).max(axis=1), 1e-12) / _TOP, np.full(len(rows), _TOP))

    def harm(share: float) -> float:
        """Of other samples, relative to what comes in."""
        total = 0.0
        for seen, other in ((first, second), (second, first)):
            gap = feedback(rows, _raised(seen, share), snap) - rows
            total += float(np.vdot(gap @ other, gap)) / float(np.trace(other))
        return total

    return _raised(gram, min(_SHARES, key=harm))


def _raised(gram: np.ndarray, share: float) -> np.ndarray:
    return np.asarray(gram + share * float(np.mean(np.diag(gram))) * np.eye(len(gram)))


def feedback(weights: np.ndarray, h: np.ndarray, snap: Snap) -> np.ndarray:
    """Values [M, K] for weights [M, K], column by column, the most used inputs first.  h: [K, K], positive definite."""
    order = np.argsort(-np.diag(h), kind="stable")
    back = np.argsort(order, kind="stable")
    inverse = scipy.linalg.inv(h[np.ix_(order, order)], check_finite=False)
    upper = scipy.linalg.cholesky((inverse + inverse.T) / 2, check_finite=False)
    left = weights[:, order].astype(np.float64)
    values = np.empty_like(left)
    columns = left.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((len(left), stop - start))
        for j in range(start, stop):
            values[:, j] = snap(left[:, j : j + 1], order[j : j + 1])[:, 0]
            error = (left[:, j] - values[:, j]) / upper[j, j]
            left[:, j:stop] -= np.outer(error, upper[j, j:stop])
            errors[:, j - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return values[:, back]


def settle(weights: np.ndarray, start: np.ndarray, h: np.ndarray, snap: Snap, sweeps: int = _SWEEPS) -> np.ndarray:
    """Better values [M, K] than those to start from, by coordinate descent.  h: [K, K]."""
    values = start.astype(np.float64)
    diagonal = np.maximum(np.diag(h), 1e-12)
    pull = (values - weights) @ h
    columns = weights.shape[1]
    for _ in range(sweeps):
        changed = False
        for begin in range(0, columns, _BLOCK):
            block = np.arange(begin, min(begin + _BLOCK, columns))
            near = pull[:, block]
            wished = snap(values[:, block] - near / diagonal[block], block)
            movable = block[(wished != values[:, block]).any(axis=0)]
            if not movable.size:
                continue
            before = values[:, block].copy()
            for j in movable:
                pick = np.array([j])
                new = snap(values[:, pick] - near[:, pick - begin] / diagonal[j], pick)[:, 0]
                step = new - values[:, j]
                if step.any():
                    values[:, j] = new
                    near += np.outer(step, h[j, block])
            moved = values[:, block] - before
            if moved.any():
                changed = True
                pull += moved @ h[block]
        if not changed:
            break
    return values


def descend(
    weights: np.ndarray, scale: np.ndarray, levels: np.ndarray, gram: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Integers [M, K] near weights / scale within +-levels that keep the output.

    weights: [M, K]; scale, levels: [M]; gram: [K, K] of the inputs; start: integers to improve on.
    """
    values = settle(weights, start * scale[:, None], damped(gram), grid(scale, levels))
    return np.asarray(np.rint(values / scale[:, None]))


def grid(scale: np.ndarray, levels: np.ndarray) -> Snap:
    """Whole multiples of a row's scale, at most so many either way."""
    each, most = scale[:, None], levels[:, None]
    return lambda wish, _: np.clip(np.rint(wish / each), -most, most) * each
