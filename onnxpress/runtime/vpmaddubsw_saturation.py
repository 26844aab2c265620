"""Saturation of vpmaddubsw, which adds pairs of u8 x s8 products in 16 bits, and weights that avoid it.

x86 without VNNI or AMX multiplies with vpmaddubsw: two adjacent weights of a row share 16 bits, in the order in which
kernels read them: taps outermost, input channels innermost.  Weights of at most 64 never saturate.  Larger ones do not
either where their neighbours, or the largest observed activations, are small; the range of a row is limited by its
heaviest pair.

rows:  s8 weights [M, K], one row per output, in the order of the kernels
peaks: [K], the largest u8 code that each weight meets, in the same order
"""

from __future__ import annotations

import numpy as np

MAX_WEIGHT = 127
MAX_SAFE_WEIGHT = 64  # any pair of these fits
_UNLIMITED = 120  # a row that reaches this was not limited: rounding may have moved its largest weight from 127
_INT16_MAX, _INT16_MIN = 32767, -32768
_MAX_CODE = 255  # the largest u8 code


def kernel_order(shape: tuple[int, ...]) -> np.ndarray:
    """[K] positions of the kernels' columns in weights [M, channels, taps ...] seen as [M, K]."""
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1] if len(shape) > 1 else 1, -1).T.ravel()


def pair_load(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M]: the heaviest pair of each row, relative to the saturation limit (1)."""
    return np.asarray(_loads(rows, peaks).max(axis=1, initial=0.0))


def max_weight_codes(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M]: the largest weight code for each of these rows of 127 levels such that nearly all pairs fit."""
    heavy = pair_load(rows, peaks)
    return np.asarray(
        np.where(heavy > 1, np.maximum(np.floor(MAX_WEIGHT / np.maximum(heavy, 1)), MAX_SAFE_WEIGHT), MAX_WEIGHT)
    )


def clamp_pairs(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """The rows with weights of saturating pairs moved towards 0 until they fit.

    Of the two weights of a pair, the one with the larger product moves.
    """
    rows = rows.copy()
    while True:
        at, pair = np.nonzero(_loads(rows, peaks) > 1)
        if not at.size:
            return rows
        first, second = 2 * pair, np.minimum(2 * pair + 1, rows.shape[1] - 1)
        which = np.where(
            peaks[first] * np.abs(rows[at, first]) >= peaks[second] * np.abs(rows[at, second]), first, second
        )
        rows[at, which] -= np.sign(rows[at, which])


def weight_headroom(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far down and up, each [M, K], weights may move without saturation.

    No pair becomes heavier than fits any activations, or than it is.  Rows that were not limited may use all of int8.
    """
    peak = np.abs(rows.astype(np.int64)).max(axis=1, initial=0, keepdims=True)

    def one_way(parts: np.ndarray, most: int) -> np.ndarray:
        """parts: of weights in this direction, else 0."""
        odd = parts.shape[1] % 2
        two = np.pad(parts, [(0, 0), (0, odd)]).reshape(len(parts), -1, 2)
        slack = np.maximum(_INT16_MAX // _MAX_CODE - two.sum(axis=2, keepdims=True), 0) // 2
        held = np.minimum((two + slack).reshape(len(parts), -1)[:, : parts.shape[1]], MAX_WEIGHT)
        return np.asarray(np.where(peak >= _UNLIMITED, most, np.where(peak <= MAX_SAFE_WEIGHT, MAX_SAFE_WEIGHT, held)))

    return -one_way(np.maximum(-rows.astype(np.int64), 0), MAX_WEIGHT + 1), one_way(
        np.maximum(rows.astype(np.int64), 0), MAX_WEIGHT
    )


def _loads(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M, pairs]: over products of one sign only, since the codes of the others may be 0."""
    odd = rows.shape[1] % 2
    products = (np.pad(rows, [(0, 0), (0, odd)]) * np.pad(peaks, (0, odd))).astype(np.float64)
    up, down = np.maximum(products, 0), np.minimum(products, 0)
    return np.asarray(
        np.maximum((up[:, 0::2] + up[:, 1::2]) / _INT16_MAX, (down[:, 0::2] + down[:, 1::2]) / _INT16_MIN)
    )
