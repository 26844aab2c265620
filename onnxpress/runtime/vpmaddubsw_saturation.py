"""Products of u8 and s8 added in pairs into 16 bits that saturate, and weights that keep clear of it.

x86 without VNNI or AMX multiplies so (vpmaddubsw): two neighbours of a row of weights share 16 bits, in the order in which kernels go
through them: taps outermost, input channels innermost.  Weights of at most 64 fit at any activations.  Larger ones fit as well where
their neighbours are small, or the largest activations that were seen are: a row is as fine as its heaviest pair allows.

rows: s8 weights [M, K], one row an output; peaks: [K], the largest u8 code that each meets; both in the kernels' order.
"""

from __future__ import annotations

import numpy as np

MAX_WEIGHT = 127
MAX_SAFE_WEIGHT = 64  # any two of these fit
_FREE = 120  # a row that reaches this was not held back, or hardly: rounding may have moved its largest from 127
_MOST, _LEAST = 32767, -32768
_CODE = 255  # the largest there is


def kernel_order(shape: tuple[int, ...]) -> np.ndarray:
    """Of the columns of weights [M, channels, taps ...], seen as [M, K], where each of the kernels' columns stands."""
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1] if len(shape) > 1 else 1, -1).T.ravel()


def pair_load(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M]: the heaviest pair of each row, 1 being as much as fits."""
    return np.asarray(_loads(rows, peaks).max(axis=1, initial=0.0))


def max_weight_codes(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M]: the largest weight that each of these rows of 127 levels can have, so that after rounding nearly all pairs fit."""
    heavy = pair_load(rows, peaks)
    return np.asarray(
        np.where(heavy > 1, np.maximum(np.floor(MAX_WEIGHT / np.maximum(heavy, 1)), MAX_SAFE_WEIGHT), MAX_WEIGHT)
    )


def clamp_pairs(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """The same rows, weights of pairs that do not fit moved towards 0 until they do; of two, the one that meets more."""
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
    """How far down and up, each [M, K], weights may move so that no pair gets heavier than fits any activations, or than it is.

    Rows that were not held back may use all of int8.
    """
    peak = np.abs(rows.astype(np.int64)).max(axis=1, initial=0, keepdims=True)

    def one_way(parts: np.ndarray, most: int) -> np.ndarray:
        """parts: of weights in this direction, else 0."""
        odd = parts.shape[1] % 2
        two = np.pad(parts, [(0, 0), (0, odd)]).reshape(len(parts), -1, 2)
        spare = np.maximum(_MOST // _CODE - two.sum(axis=2, keepdims=True), 0) // 2
        held = np.minimum((two + spare).reshape(len(parts), -1)[:, : parts.shape[1]], MAX_WEIGHT)
        return np.asarray(np.where(peak >= _FREE, most, np.where(peak <= MAX_SAFE_WEIGHT, MAX_SAFE_WEIGHT, held)))

    return -one_way(np.maximum(-rows.astype(np.int64), 0), MAX_WEIGHT + 1), one_way(
        np.maximum(rows.astype(np.int64), 0), MAX_WEIGHT
    )


def _loads(rows: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """[M, pairs]: of products of one sign alone, since the codes of the others may be 0."""
    odd = rows.shape[1] % 2
    products = (np.pad(rows, [(0, 0), (0, odd)]) * np.pad(peaks, (0, odd))).astype(np.float64)
    up, down = np.maximum(products, 0), np.minimum(products, 0)
    return np.asarray(np.maximum((up[:, 0::2] + up[:, 1::2]) / _MOST, (down[:, 0::2] + down[:, 1::2]) / _LEAST))
