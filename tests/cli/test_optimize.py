"""The Pareto front that the command optimize marks in its table."""

from __future__ import annotations

from onnxpress.cli.optimize import pareto


def test_pareto_front() -> None:
    points = {
        "fast": (-3.0, 0.02, 10.0),
        "good": (-2.0, 0.0, 10.0),
        "bad": (-1.0, 0.02, 20.0),
        "duplicate_of": (-2.0, 0.0, 10.0),
    }
    assert pareto(points) == {"fast", "good", "duplicate_of"}
