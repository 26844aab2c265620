"""Drops of accuracy on few samples: expected from margins, not counted."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.measure.metrics.classes import ClassMetric
from onnxpress.measure.metrics.few_samples import by_margins, counts_too_few, margin
from onnxpress.measure.metrics.metric import MetricResult

pytestmark = pytest.mark.unit


def result(count: int) -> MetricResult:
    return MetricResult("top-1", 0.9, 0.9, 0.0, 0.0, 0.0, count)


def test_it_is_for_few_samples_of_one_answer() -> None:
    metric = ClassMetric("top-1", "y", True)
    assert counts_too_few(metric, 30, 0.01) and not counts_too_few(metric, 100, 0.01)
    assert not counts_too_few(ClassMetric("top-5", "y", True, most=5), 30, 0.01)
    assert not counts_too_few(object(), 30, 0.01)


def test_margins() -> None:
    metric = ClassMetric("top-1", "y", True)
    assert margin(metric, {"y": np.array([1.0, 4.0, 2.0])}, 1) == 2.0
    assert margin(metric, {"y": np.array([1.0, 4.0, 2.0])}, 0) == -3.0
    one = ClassMetric("top-1", "y", True, threshold=0.5)
    assert margin(one, {"y": np.array([0.75])}, 1) == 0.25
    assert margin(one, {"y": np.array([0.75])}, 0) == -0.25


def test_a_sample_on_the_border_does_not_decide() -> None:
    """One of 20 answers changes, as its margin is nearly 0: counted 0.05, expected less than half of that."""
    rng = np.random.default_rng(0)
    old = np.concatenate([[0.001], rng.uniform(2, 8, 19)])
    new = old + rng.normal(0, 0.05, 20)
    new[0] = -0.001
    found = by_margins(result(20), old.tolist(), new.tolist())
    assert found.expected and 0.01 < found.drop < 0.03
    assert found.low <= found.drop <= found.high + 1e-9


def test_the_expectation_is_that_of_many_samples() -> None:
    """On average over draws of 30 samples it is the drop of 30,000; each is far closer than the counted one."""
    rng = np.random.default_rng(1)
    old = rng.normal(2, 1.5, 30_000)
    new = old - 0.3 + rng.normal(0, 0.8, 30_000)
    true = float((old > 0).mean() - (new > 0).mean())
    expected, counted = [], []
    for start in range(0, 30_000, 30):
        some = slice(start, start + 30)
        expected.append(by_margins(result(30), old[some].tolist(), new[some].tolist()).drop)
        counted.append(float((old[some] > 0).mean() - (new[some] > 0).mean()))
    assert np.mean(expected) == pytest.approx(true, abs=0.006)
    assert np.std(expected) < 0.8 * np.std(counted)


def test_margins_that_are_not_finite_are_left() -> None:
    plain = result(2)
    assert by_margins(plain, [1.0, np.nan], [1.0, 1.0]) is plain


def test_equal_scores_are_no_gain() -> None:
    """A model whose classes all have one score answers as before."""
    same = MetricResult("agreement", 1.0, 1.0, 0.0, 0.0, 0.0, 6)
    told = by_margins(same, [0.0] * 6, [0.0] * 6)
    assert told.value == 1.0 and told.drop == 0.0
    small = by_margins(same, [0.0] * 6, [1e-20] * 6)
    assert small.value == 1.0 and small.high == 0.0
