"""Drops of accuracy on few samples, told from margins instead of counted answers.

Of 30 samples one changed answer is a drop of 0.033, though it may be a sample on the border that any change of the last
digit moves. The margin of a sample is the score of its true class less the best of the others. What a change does to
margins is nearly the same for all samples, so that it can be told from few: the new margins are regressed on those of
the original, and a sample is answered rightly with the probability that its predicted margin is above 0, by the
predictive distribution of the regression (Student's t). The expected accuracy is the mean of these probabilities.

Source: Gelman et al., Bayesian Data Analysis (3rd edition, 2013), section 14.2, for the predictive distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special

from onnxpress.measure.metrics.classes import ClassMetric, class_scores
from onnxpress.measure.metrics.metric import MetricResult, Outputs

_RESAMPLES = 400
_FEWEST = 4  # samples, below which nothing can be regressed
_TINY = 1e-12


def counts_too_few(metric: Any, samples: int, allowed: float) -> bool:
    """Whether so few samples cannot show a drop as small as what is allowed: one changed answer is more."""
    return isinstance(metric, ClassMetric) and metric.most == 1 and _FEWEST <= samples < 1 / max(allowed, _TINY)


def margin(metric: ClassMetric, outputs: Outputs, truth: int) -> float:
    """The score of the true class less the best of the others; NaN where scores are none."""
    scores = class_scores(metric.name, outputs, metric.output)
    if scores.dtype.kind != "f":  # the answer itself
        return float("nan")
    scores = scores.astype(np.float64)
    if scores.size == 1:
        above = float(scores[0]) - metric.threshold
        return above if truth == 1 else -above
    if not 0 <= truth < scores.size:
        return float("nan")
    return float(scores[truth] - np.delete(scores, truth).max())


def by_margins(result: MetricResult, before: Sequence[float], after: Sequence[float]) -> MetricResult:
    """A result with the expected drop in place of the counted one.

    before, after: margins of the original and of the other model. The result itself where margins are not finite.
    """
    old, new = np.asarray(before), np.asarray(after)
    if len(old) != result.samples or not (np.isfinite(old).all() and np.isfinite(new).all()):
        return result
    drops = [_expected_drop(old, new)]
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        some = rng.integers(0, len(old), len(old))
        drops.append(_expected_drop(old[some], new[some]))
    low, high = np.quantile(drops[1:], (0.025, 0.975))
    value = result.reference - drops[0]
    return replace(result, value=value, drop=drops[0], low=float(low), high=float(high), expected=True)


def _expected_drop(old: np.ndarray, new: np.ndarray) -> float:
    count, freedom = len(old), max(len(old) - 2, 1)
    centred = old - old.mean()
    spread = max(float(centred @ centred), _TINY)
    slope = float(centred @ (new - new.mean())) / spread
    predicted = new.mean() + slope * centred
    error = new - predicted
    deviation = np.sqrt(float(error @ error) / freedom * (1 + 1 / count + centred**2 / spread))
    exact = _TINY * max(float(np.abs(new).max()), 1.0)
    right = scipy.special.stdtr(freedom, predicted / np.maximum(deviation, exact))
    right = np.where(deviation <= exact, predicted >= -exact, right)  # equal scores stay the answer that they were
    return float((old >= 0).mean() - right.mean())
