"""The order of candidates for the final comparison."""

from __future__ import annotations

from typing import Any


def test_with_a_goal_in_time_the_least_harmed_that_reach_it_come_first() -> None:
    from types import SimpleNamespace as Some

    from onnxpress.search.finalists import _goal, _ranked

    def candidate(name: str, drop: float) -> Any:
        return Some(name=name, score=Some(drop=drop, nmse=drop), size=1)

    some = [candidate("a", 0.01), candidate("b", 0.0), candidate("c", 0.0)]
    speeds = {"a": 4.0, "b": 2.5, "c": 1.5}
    assert [c.name for c in _ranked(some, speeds, "latency", 0.0)] == ["a", "b", "c"]
    assert [c.name for c in _ranked(some, speeds, "latency", 2.0)] == ["b", "a", "c"]
    assert [c.name for c in _ranked(some, speeds, "latency", 9.0)] == ["a", "b", "c"]
    assert _goal(Some(speedup=Some(speedup=4.0)), 9.0) == [  # type: ignore[arg-type]
        "9.00x the original's speed was not reached: the fastest that holds is 4.00x"
    ]
