"""Dominance ranks, crowding distances and Pareto fronts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("optuna")

from onnxpress.search import pareto

pytestmark = pytest.mark.unit


def test_ranks_by_hand() -> None:
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [4, 4], [2, 2]])
    assert pareto.dominance_ranks(points).tolist() == [0, 0, 0, 1, 2, 0]
    assert pareto.pareto_front(points.tolist()) == [0, 1, 5, 2]
    assert set(pareto.select_best(points, 2)) <= {0, 1, 2, 5}
    assert pareto.select_best(points, 6)[-1] == 4
    assert pareto.pareto_front([]) == []


def test_crowding_distance_of_the_ends_is_infinite() -> None:
    assert np.isinf(pareto.crowding_distance(np.array([[0.0, 5], [1, 4], [5, 0]]))[[0, 2]]).all()
