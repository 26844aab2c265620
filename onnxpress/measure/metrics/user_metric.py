"""Metrics that users write: a function of one sample, or of all samples at once.

    def per_sample(outputs, label): ...   # outputs of one sample by name; returns a number
    def ndcg(outputs, labels): ...        # arrays of all samples by name, and labels; a number, or one a sample

The second parameter's name tells which: "labels" means all samples.  Higher is better.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Metric, Outputs


def takes_whole_set(function: Callable[..., Any]) -> bool:
    """Whether a user's function is one of all samples."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[1] == "labels"


class PerSampleFunction(AdditiveMetric):
    """The mean of (outputs of a sample by name, label) -> number."""

    def __init__(self, name: str, function: Callable[[Outputs, Any], Any]) -> None:
        super().__init__(name)
        self.function = function

    def truth(self, original: Outputs, label: Any, key: str) -> Any:
        return label

    def sample_value(self, outputs: Outputs, truth: Any, key: str) -> float:
        try:
            return float(self.function(outputs, truth))
        except Exception as error:  # the user's code
            raise _failed(self.name, f", on {key}", error) from error

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        return _one_percent(reference)


class WholeSetFunction(Metric):
    """(outputs of all samples by name, labels) -> a number, or the mean of one a sample."""

    resamples = 100

    def __init__(self, name: str, function: Callable[[dict[str, np.ndarray], list[Any]], Any]) -> None:
        super().__init__(name)
        self.function = function

    def truth(self, original: Outputs, label: Any, key: str) -> Any:
        return label

    def sample_value(self, outputs: Outputs, truth: Any, key: str) -> tuple[Outputs, Any]:
        return outputs, truth

    def aggregate(self, values: Sequence[tuple[Outputs, Any]]) -> float:
        names = list(values[0][0])
        try:
            stacked = {n: _stacked([v[0][n] for v in values]) for n in names}
            found = np.asarray(self.function(stacked, [v[1] for v in values]), np.float64)
        except Exception as error:  # the user's code
            raise _failed(self.name, "", error) from error
        if found.size not in (1, len(values)):
            raise InputProblem(
                "the metric must return a number, or one for each sample",
                self.name,
                f"got {found.size} numbers for {len(values)} samples",
                "return the mean",
            )
        return float(found.mean())

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        return _one_percent(reference)


def _stacked(values: Sequence[np.ndarray]) -> np.ndarray:
    """One array with a first axis for the samples; of objects where shapes differ."""
    if len({v.shape for v in values}) == 1:
        return np.stack(values)
    found = np.empty(len(values), object)
    found[:] = list(values)
    return found


def _failed(name: str, where: str, error: Exception) -> InputProblem:
    return InputProblem("the metric failed", f"{name}{where}", f"{type(error).__name__}: {error}")


def _one_percent(reference: float) -> float:
    """A point of a score between 0 and 1, else 1 % of the original's."""
    return 0.01 if 0 <= reference <= 1 or not np.isfinite(reference) else 0.01 * abs(reference)
