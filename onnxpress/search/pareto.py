"""Pareto fronts: dominance ranks and crowding distance (Deb et al. 2002)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dominance_ranks(points: np.ndarray) -> np.ndarray:
    """Dominance rank of each row of [N,K] losses (lower is better): 0 for rows that no row dominates.

    1 for rows that only rank 0 dominates, and so on (Deb et al. 2002).
    """
    points = np.asarray(points, float)
    no_worse = np.all(points[:, None] <= points[None], axis=2)
    below: np.ndarray = no_worse & np.any(points[:, None] < points[None], axis=2)  # [i,j]: i dominates j
    found = np.full(len(points), -1)
    left = np.ones(len(points), bool)
    rank = 0
    while left.any():
        free = left & ~below[left].any(0)
        found[free] = rank
        left &= ~free
        rank += 1
    return found


def crowding_distance(points: np.ndarray) -> np.ndarray:
    """Distance of each row to its neighbours, summed over columns; infinite at the ends (Deb et al. 2002)."""
    points = np.asarray(points, float)
    found = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]] or 1.0
        found[order[[0, -1]]] = np.inf
        found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return found


def select_best(points: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` best rows: by rank, within a rank by crowding distance."""
    rank = dominance_ranks(points)
    order: list[int] = []
    for level in range(int(rank.max(initial=-1)) + 1):
        inside = np.flatnonzero(rank == level)
        alone = crowding_distance(np.asarray(points)[inside])
        order += inside[np.argsort(-alone, kind="stable")].tolist()
    return order[:count]


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the rows that none dominates, ordered by the first column."""
    if not len(points):
        return []
    array = np.asarray(points, float)
    inside = np.flatnonzero(dominance_ranks(array) == 0)
    return [int(i) for i in inside[np.lexsort((array[inside, -1], array[inside, 0]))]]
