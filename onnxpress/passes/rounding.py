"""Rounding that knows the inputs: integers that keep a layer's output, not its weights.

Minimises (q s - w)^T H (q s - w) for each output row, H the Gram matrix of the layer's inputs, by coordinate descent from
the nearest integers: q_j <- round((w_j - sum_{k != j} H_jk d_k / H_jj) / s) with d = q s - w.  Each step can only lower the
error.  (The greedy single pass of GPTQ, Frantar et al. 2023, is the first sweep of this with another order.)
"""

from __future__ import annotations

import numpy as np

_SWEEPS = 4
_DAMP = 1e-2


def descend(
    weights: np.ndarray, scale: np.ndarray, levels: np.ndarray, gram: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Integers [M, K] near weights / scale within +-levels that keep the output.

    weights: [M, K]; scale, levels: [M]; gram: [K, K] of the inputs; start: integers to improve on.
    """
    codes = start.astype(np.float64)
    h = gram + _DAMP * float(np.mean(np.diag(gram))) * np.eye(len(gram))
    diagonal = np.maximum(np.diag(h), 1e-12)
    gap = codes * scale[:, None] - weights
    pull = gap @ h
    for _ in range(_SWEEPS):
        changed = False
        for j in range(weights.shape[1]):
            wish = weights[:, j] - (pull[:, j] - gap[:, j] * h[j, j]) / diagonal[j]
            new = np.clip(np.rint(wish / scale), -levels, levels)
            step = (new - codes[:, j]) * scale
            moved = step != 0
            if not moved.any():
                continue
            changed = True
            codes[:, j] = new
            gap[:, j] += step
            pull[moved] += step[moved, None] * h[j]
        if not changed:
            break
    return codes
