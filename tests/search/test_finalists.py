"""The order of candidates for the final comparison, and the reason for a missed goal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnxpress.measure.score import Score
from onnxpress.search.finalists import _goal, _ranked, ladder

pytestmark = pytest.mark.unit

SPEEDS = {"a": 4.0, "b": 2.5, "c": 1.5}


def candidate(identifier: str, drop: float, size: int) -> Any:
    return SimpleNamespace(
        id=identifier, score=Score("top-1", 1 - drop, 1.0, drop, drop, drop, 9, nmse=drop), size=size
    )


def order(goal: str, target: float) -> list[str]:
    candidates = [candidate("a", 0.01, 3), candidate("b", 0.0, 1), candidate("c", 0.0, 2)]
    return [c.id for c in _ranked(candidates, SPEEDS, goal, target)]


def test_the_most_accurate_that_reach_a_target_come_first() -> None:
    assert order("latency", 0.0) == ["a", "b", "c"]
    assert order("latency", 2.0) == ["b", "a", "c"]
    assert order("latency", 9.0) == ["a", "b", "c"]


def test_with_the_goal_size_the_smallest_comes_first() -> None:
    assert order("size", 0.0) == ["b", "c", "a"]


def test_a_missed_target_is_reported() -> None:
    reached: Any = SimpleNamespace(speedup=SimpleNamespace(speedup=4.0))
    assert _goal(reached, 9.0) == ["9.00x the original's speed was not reached: the fastest that holds is 4.00x"]


def test_finalists_are_the_fastest_and_then_such_as_are_much_closer_to_the_original() -> None:
    """All of the fastest may lose too much on other samples."""
    errors = [0.30, 0.31, 0.29, 0.20, 0.19, 0.12, 0.02, 0.01, 0.005]
    ranked = [candidate(str(place), error, 1) for place, error in enumerate(errors)]
    assert [c.id for c in ladder(ranked, 6)] == ["0", "1", "3", "5", "6", "7"]
    assert [c.id for c in ladder(ranked[:3], 6)] == ["0", "1", "2"]
    assert [c.id for c in ladder([ranked[6], *ranked[:5]], 6)] == ["6", "0", "1", "2"]
    assert ladder([], 6) == []
