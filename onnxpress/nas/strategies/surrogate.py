"""A synthetic benchmark of search strategies that costs nothing to evaluate.

Each edge of an imaginary network has one of some operations, with a worth and a time; neighbouring operations
interact. Accuracy saturates in the sum of worths, times add up, as in tables of trained cells (Dong and Yang 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np

WORST = (0.0, 1.0)  # reference point of the hypervolume
_TOP, _SPREAD = 0.95, 0.85


class Surrogate:
    """A random landscape.

    seed: of the tables.
    edges: number of choices.
    operations: per edge.
    """

    def __init__(self, seed: int = 0, edges: int = 16, operations: int = 5) -> None:
        rng = np.random.default_rng([seed, edges, operations])
        self.edges, self.operations = edges, operations
        self.times = np.sort(rng.exponential(1.0, (edges, operations)), axis=1)
        self.worth = 0.6 * self.times / self.times.mean() + 0.5 * rng.standard_normal((edges, operations))
        self.pairs = 0.25 * rng.standard_normal((edges, operations, operations))
        self._longest = float(self.times.max(1).sum())
        self._scale = 0.5 * edges

    def ask(self, trial: Any) -> tuple[float, float]:
        """(accuracy, fraction of the longest time) of a trial's choices."""
        chosen = [trial.suggest_categorical(f"edge{i}", list(range(self.operations))) for i in range(self.edges)]
        rows = np.arange(self.edges)
        score = self.worth[rows, chosen].sum() + self.pairs[rows[:-1], chosen[:-1], chosen[1:]].sum()
        accuracy = _TOP - _SPREAD * float(np.exp(-max(score, 0.0) / self._scale))
        return accuracy, float(self.times[rows, chosen].sum()) / self._longest


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Area that a front of (accuracy, time) dominates, up to the reference point WORST; higher is better."""
    area, lowest = 0.0, WORST[1]
    for accuracy, time in sorted(points, key=lambda p: (-p[0], p[1])):
        if accuracy > WORST[0] and time < lowest:
            area += (lowest - time) * (accuracy - WORST[0])
            lowest = time
    return area
