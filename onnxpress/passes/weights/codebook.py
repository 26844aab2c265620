"""Books: a few centres that stand for all weights of a tensor, times a scale a row; free ones, or those of an integer grid.

Free centres come from one-dimensional k-means with the inputs' mean squares as weights.  Then the assignment is polished
against the whole Gram matrix (`rounding.py`), and scales and centres are refitted by least squares, in turns.  A turn is kept
only where it lowers the error of the layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from onnxpress.passes.core.rounding import Snap, damped, feedback, settle

_LLOYD = 60
_TURNS = 3
_POLISHED = 16  # centres up to which it pays: with 256 the error left is some 300 times smaller
_CHUNK = 64 * 2**20  # bytes of indicator matrices at once
_SHRINK = np.linspace(0.3, 1.0, 36)  # shares of the largest weight that a grid may reach to
_TINY = 1e-12


@dataclass(frozen=True)
class Book:
    """centres: [C], ascending; codes: [M, K], which centre stands for each weight; scale: [M, S], what multiplies them in
    each of S equal stretches of a row."""

    centres: np.ndarray
    codes: np.ndarray
    scale: np.ndarray

    def lean(self) -> Book:
        """The same with codes of a byte, and centres and scales as float16 holds them, where it can."""
        centres, scale = (
            p if (short := as_half(p)) is None else short.astype(np.float64) for p in (self.centres, self.scale)
        )
        return Book(centres, self.codes.astype(np.uint8), scale)

    @property
    def wide(self) -> np.ndarray:
        """The scale at every weight: [M, K], or [M, 1] where a row has one."""
        blocks = self.scale.shape[1]
        return self.scale if blocks == 1 else np.repeat(self.scale, self.codes.shape[1] // blocks, axis=1)

    @property
    def rows(self) -> np.ndarray:
        """The weights it stands for, [M, K]."""
        return np.asarray(self.centres[self.codes] * self.wide)


def as_half(numbers: np.ndarray) -> np.ndarray | None:
    """Numbers as float16, where that holds each to 1 in 2000 (those a million times smaller than the largest: roughly)."""
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float16)
    most = float(np.abs(numbers).max())
    gap = np.abs(short.astype(np.float64) - numbers)
    good = np.isfinite(short).all() and (gap <= 5e-4 * np.abs(numbers) + 1e-6 * most).all()
    return short if good else None


def cluster(weights: np.ndarray, gram: np.ndarray | None, count: int, scaled: bool, polish: bool = True) -> Book:
    """A book of at most `count` free centres for weights [M, K].  polish: mind the whole Gram matrix, not only its diagonal.

    gram: [K, K] of the inputs, [K] its diagonal, or None where they are unknown; scaled: a scale a row, or all of them 1
    """
    weights = weights.astype(np.float64)
    mass, h = _importance(gram, weights.shape[1])
    scale = np.ones((len(weights), 1))
    if scaled:
        scale = np.maximum(np.sqrt((weights**2).mean(axis=1, keepdims=True)), _TINY)
    book = _clustered(weights, mass, scale, count, None)
    for _ in range(_TURNS if scaled else 0):
        book = _clustered(weights, mass, _least_squares(book, weights, mass), count, book.centres)
    return _polished(book, weights, h, scaled, True) if polish and h is not None and count <= _POLISHED else book


def on_grid(
    weights: np.ndarray, gram: np.ndarray | None, levels: np.ndarray, block: int = 0, polish: bool = True
) -> Book:
    """A book whose centres are the given levels; only the scales are free.  block: weights a scale (0: a row)."""
    weights = weights.astype(np.float64)
    mass, h = _importance(gram, weights.shape[1])
    blocks = weights.shape[1] // block if block else 1
    parts = weights.reshape(len(weights), blocks, -1)
    scale = _grid_scale(parts, mass.reshape(blocks, -1), levels)
    book = Book(levels, np.empty(weights.shape, np.int64), scale)
    book = replace(book, codes=nearest(levels, weights / book.wide))
    if h is None or not polish or len(levels) > _POLISHED:
        return book
    return _polished(book, weights, h, blocks == 1, False)


def _importance(gram: np.ndarray | None, columns: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(what each column's error weighs [K], the damped Gram matrix where there is a whole one)."""
    if gram is None:
        return np.ones(columns), None
    if gram.ndim == 1:
        return np.asarray(gram + 1e-2 * gram.mean()), None
    h = damped(gram)
    return np.diag(h), h


def _grid_scale(parts: np.ndarray, mass: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """For each stretch [M, S, K] the scale [M, S] of least weighted rounding error. mass: [S, K]."""
    reach = np.maximum(np.abs(parts).max(axis=2), _TINY) / np.abs(levels).max()
    best, least = reach, np.full(reach.shape, np.inf)
    for share in _SHRINK[::-1]:
        scale = reach * share
        gap = levels[nearest(levels, parts / scale[:, :, None])] * scale[:, :, None] - parts
        error = np.einsum("msk,sk->ms", gap * gap, mass)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return np.asarray(best)


def _clustered(weights: np.ndarray, mass: np.ndarray, scale: np.ndarray, count: int, start: np.ndarray | None) -> Book:
    plain = weights / scale
    centres = kmeans(plain.ravel(), (mass * scale**2).ravel(), count, start)
    return Book(centres, nearest(centres, plain), scale)


def kmeans(values: np.ndarray, mass: np.ndarray, count: int, start: np.ndarray | None = None) -> np.ndarray:
    """At most `count` centres [C], ascending, of weighted numbers: Lloyd's turns from quantiles of their density's cube root."""
    order = np.argsort(values, kind="stable")
    values, mass = values[order], mass[order]
    if start is None:
        distinct = values[np.concatenate([[True], np.diff(values) > 0])]
        if len(distinct) <= count:
            return np.asarray(distinct)
        start = np.unique(values[_quantiles(values, mass, count)])
        others = np.setdiff1d(distinct, start)
        start = np.union1d(start, others[np.linspace(0, len(others) - 1, count - len(start)).astype(int)])
    weight = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * values)])
    centres = start
    for _ in range(_LLOYD):
        cuts = np.concatenate([[0], np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), [len(values)]])
        inside = np.diff(weight[cuts])
        new = np.where(inside > 0, np.diff(moment[cuts]) / np.where(inside > 0, inside, 1.0), centres)
        if np.allclose(new, centres, rtol=0, atol=1e-7 * max(abs(values[0]), abs(values[-1]))):
            break
        centres = new
    return np.asarray(np.unique(centres))


def _quantiles(values: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """Positions in sorted values that share out the cube root of their density: where many centres pay."""
    bins = np.linspace(values[0], values[-1], 513)
    dense = np.histogram(values, bins, weights=mass)[0]
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(dense))])
    wanted = (np.arange(count) + 0.5) / count * share[-1]
    return np.asarray(np.clip(np.searchsorted(values, np.interp(wanted, share, bins)), 0, len(values) - 1))


def nearest(centres: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which centre (ascending) is nearest to each value."""
    return np.asarray(np.searchsorted((centres[1:] + centres[:-1]) / 2, values))


def _polished(book: Book, weights: np.ndarray, h: np.ndarray, scales: bool, centres: bool) -> Book:
    """scales, centres: whether they are free to move."""
    best, least = book, error(book.rows - weights, h)
    for turn in range(_TURNS if scales or centres else 1):
        snap = _snap(book)
        start = feedback(weights, h, snap) if turn == 0 else book.rows
        book = replace(book, codes=nearest(book.centres, settle(weights, start, h, snap) / book.wide))
        if scales:
            book = replace(book, scale=_least_squares(book, weights, h))
        if centres:
            book = _refit_centres(book, weights, h)
        found = error(book.rows - weights, h)
        if not found < least * (1 - 1e-4):
            break
        best, least = book, found
    return best


def _snap(book: Book) -> Snap:
    wide = book.wide
    single = wide.shape[1] == 1

    def snap(wish: np.ndarray, columns: np.ndarray) -> np.ndarray:
        scale = wide if single else wide[:, columns]
        return np.asarray(book.centres[nearest(book.centres, wish / scale)] * scale)

    return snap


def error(gap: np.ndarray, h: np.ndarray | None) -> float:
    """What changed weights (by `gap` [M, K]) add to a layer's output: summed squares.  h: [K, K], [K] or None, as above."""
    if h is None:
        return float((gap * gap).sum())
    return float(((gap * h if h.ndim == 1 else gap @ h) * gap).sum())


def lost(gap: np.ndarray, weights: np.ndarray, gram: np.ndarray | None) -> float:
    """The share of a layer's output power that weights changed by `gap` [M, K] lose."""
    return error(gap, gram) / max(error(weights, gram), _TINY**2)


def _least_squares(book: Book, weights: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Each row's scale anew: w^T H v / v^T H v.  h: [K, K], or [K] where it is a diagonal."""
    plain = book.centres[book.codes]
    pulled = plain * h if h.ndim == 1 else plain @ h
    upper, lower = (pulled * weights).sum(axis=1), (pulled * plain).sum(axis=1)
    good = (lower > 0) & (upper > 0)
    return np.where(good, upper / np.where(good, lower, 1.0), book.scale[:, 0])[:, None]


def _refit_centres(book: Book, weights: np.ndarray, h: np.ndarray) -> Book:
    """The centres by least squares over all rows: sum s^2 A^T H A c = sum s A^T H w, A the 0/1 matrix of a row's codes."""
    count, columns = len(book.centres), weights.shape[1]
    normal, wished = np.zeros((count, count)), np.zeros(count)
    pulled = weights @ h
    step = max(1, _CHUNK // (8 * count * columns))
    for begin in range(0, len(weights), step):
        codes, scale = book.codes[begin : begin + step], book.scale[begin : begin + step]
        marks = (codes[:, None, :] == np.arange(count)[None, :, None]) * scale[:, :, None]
        flat = marks.reshape(-1, columns)
        normal += np.matmul((flat @ h).reshape(marks.shape), marks.transpose(0, 2, 1)).sum(axis=0)
        wished += np.matmul(marks, pulled[begin : begin + step, :, None])[:, :, 0].sum(axis=0)
    ridge = 1e-8 * float(np.trace(normal)) / count
    if not ridge > 0:
        return book
    solved = scipy.linalg.solve(normal + ridge * np.eye(count), wished + ridge * book.centres, assume_a="pos")
    order = np.argsort(solved, kind="stable")
    return replace(book, centres=solved[order], codes=np.argsort(order, kind="stable")[book.codes])
