"""Metrics of numeric outputs: explained variance, errors, correlations.

r2 is the mean over columns of 1 - squared error / variance, both over all samples.  Columns lie along the smallest axis
of an output (the channels of a map, the coordinates and scores of boxes), so that outputs of different scale count
alike: a detector that loses its scores loses most of its r2, whatever its boxes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Metric, Outputs, label_array

_ADVICE = "use top-1, or no labels"
_MOST_COLUMNS = 4096
_LEAST_PER_COLUMN = 16  # numbers from which on a column has a variance of its own
_LEAST_SHARE = 1e-10  # of the largest variance of a column: below it a column is constant
_LEAST_ERROR = 1e-6  # of the largest variance of a column: less is no error of a constant one
_WRONG = 1e30  # in place of answers that are none


class NumberMetric(Metric):
    """A metric of numbers. outputs: names of those it reads; None: all numeric ones, or the one of the label's size."""

    def __init__(self, name: str, outputs: Sequence[str] | None, by_label: bool) -> None:
        super().__init__(name)
        self.outputs, self.by_label = outputs, by_label

    def truth(self, original: Outputs, label: Any, key: str) -> list[np.ndarray]:
        """One array for each output that is read. Raises InputProblem where the label belongs to none."""
        names = self._numeric(original, key)
        if not self.by_label:
            return [original[n] for n in names]
        true = label_array(self.name, label, key, _ADVICE)
        if true.dtype.kind == "f" and label is not None and true.ndim and not true.size:
            return [true]
        same = next((original[n] for n in names if original[n].size == true.size), None)
        if same is None:
            sizes = ", ".join(f"{n} {original[n].size}" for n in names)
            raise InputProblem(
                f"the metric {self.name} needs a label for every number",
                f"the label of {key}",
                f"{true.size} numbers; outputs: {sizes}",
                "use another metric, or no labels",
            )
        return [true.reshape(same.shape)]

    def _numeric(self, outputs: Outputs, key: str) -> list[str]:
        found = [n for n in self.outputs or outputs if outputs[n].dtype.kind in "fiub"]
        if not found:
            raise InputProblem(f"the metric {self.name} cannot be computed", key, "no output is numeric", "use another")
        return found

    def found(self, outputs: Outputs, truth: list[np.ndarray], key: str) -> list[np.ndarray]:
        """The outputs that belong to the truth, in its shapes; an answer of another shape is as wrong as can be."""
        names = self._numeric(outputs, key)
        if self.by_label:
            names = [n for n in names if outputs[n].size == truth[0].size][:1] or names[:1]
        pairs = zip((outputs[n] for n in names), truth, strict=True)
        return [_finite(f.reshape(t.shape)) if f.size == t.size else np.full(t.shape, _WRONG) for f, t in pairs]

    def flat(self, outputs: Outputs, truth: list[np.ndarray], key: str) -> tuple[np.ndarray, np.ndarray]:
        """(prediction, truth), each as one vector."""
        found = self.found(outputs, truth, key)
        return np.concatenate([f.ravel() for f in found]), np.concatenate([t.ravel() for t in truth]).astype(np.float64)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=_WRONG, posinf=_WRONG, neginf=-_WRONG)


class MeanError(NumberMetric, AdditiveMetric):
    """Mean squared ("mse") or absolute ("mae") error."""

    higher_is_better = False

    def sample_value(self, outputs: Outputs, truth: list[np.ndarray], key: str) -> tuple[float, float]:
        """The error, and that of answering zero."""
        found, true = self.flat(outputs, truth, key)
        power = 2 if self.name == "mse" else 1
        return float((np.abs(found - true) ** power).mean()), float((np.abs(true) ** power).mean())

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        """2 % of the original's own error; without labels 1 % of the size of its answers."""
        return 0.02 * reference if reference > 0 else max(0.01 * float(np.mean([v[1] for v in originals])), 1e-12)


class Correlation(NumberMetric):
    """Pearson's or Spearman's, over samples where a sample has one number, else the mean of those within samples."""

    def sample_value(self, outputs: Outputs, truth: list[np.ndarray], key: str) -> Any:
        found, true = self.flat(outputs, truth, key)
        return (float(found[0]), float(true[0])) if found.size == 1 else self._correlation(found, true)

    def aggregate(self, values: Sequence[Any]) -> float:
        if values and isinstance(values[0], tuple):
            found, true = np.array(values).T
            return self._correlation(found, true)
        return float(np.mean(values))

    def _correlation(self, found: np.ndarray, true: np.ndarray) -> float:
        """1 where both are constant, 0 where only one is."""
        if self.name == "spearman":
            from scipy.stats import rankdata  # imported here: it takes half a second

            found, true = rankdata(found), rankdata(true)
        a, b = found - found.mean(), true - true.mean()
        power = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / power if power > 0 else float(not a.any() and not b.any())


class ExplainedVariance(NumberMetric, AdditiveMetric):
    """r2: the share of the variance that is explained, by column."""

    def sample_value(self, outputs: Outputs, truth: list[np.ndarray], key: str) -> np.ndarray:
        """[4, columns]: squared error; sum, sum of squares and number of the truth."""
        found = self.found(outputs, truth, key)
        parts = []
        for f, t in zip(found, truth, strict=True):
            a, b = _columns(f), _columns(np.nan_to_num(t.astype(np.float64)))
            parts.append(np.stack([((a - b) ** 2).sum(1), b.sum(1), (b**2).sum(1), np.full(len(b), float(b.shape[1]))]))
        return np.concatenate(parts, axis=1)

    def statistics(self, values: Sequence[Any]) -> np.ndarray:
        if len({v.shape for v in values}) > 1:  # outputs whose number of columns differs: one column
            values = [v.sum(1, keepdims=True) for v in values]
        stacked = np.stack(values)
        if stacked[:, 3].sum(0).min() < _LEAST_PER_COLUMN:
            stacked = stacked.sum(2, keepdims=True)
        return stacked.reshape(len(stacked), -1)

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        error, first, second, number = np.moveaxis(sums.reshape(len(sums), 4, -1), 1, 0)
        number = np.maximum(number, 1)
        variance = np.maximum(second - first**2 / number, 0) / number
        largest = np.maximum(variance.max(axis=1, keepdims=True), (second / number).max(axis=1, keepdims=True) * 1e-6)
        constant = variance <= _LEAST_SHARE * largest
        power = np.where(constant, np.maximum(second / number, _LEAST_ERROR * largest), variance)
        shares = np.clip(1 - error / number / np.maximum(power, 1e-30), -1, 1)
        shares = np.where(constant & (error / number <= _LEAST_ERROR * largest), 1.0, shares)
        return np.asarray(shares.mean(axis=1))


def _columns(values: np.ndarray) -> np.ndarray:
    """[columns, numbers]: along the smallest axis; a vector has a column for each number."""
    if values.ndim == 0:
        return values.reshape(1, 1)
    if values.ndim == 1:
        return values[:, None] if values.size <= _MOST_COLUMNS else values[None]
    wide = [a for a in range(values.ndim) if values.shape[a] > 1]
    axis = min(wide, key=lambda a: values.shape[a]) if wide else 0
    if values.shape[axis] > _MOST_COLUMNS:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


class RelativeError(AdditiveMetric):
    """Mean over samples of the relative error of each output, as `output_error` in score.py has it; the worst output
    counts."""

    higher_is_better = False

    def __init__(self, name: str, outputs: Sequence[str] | None) -> None:
        super().__init__(name)
        self.outputs = outputs

    def truth(self, original: Outputs, label: Any, key: str) -> Outputs:
        return original

    def sample_value(self, outputs: Outputs, truth: Outputs, key: str) -> float:
        return max(float(output_error(truth[n][None], outputs[n][None], 1)[0]) for n in self.outputs or truth)


def output_error(old: np.ndarray, new: np.ndarray, count: int) -> np.ndarray:
    """Error of an output per sample: [count].

    Relative error of a float output (the mean over the channels of axis 1 of feature maps, which may differ in scale),
    fraction of changed elements of any other; infinite where the shape changed.
    """
    if old.shape != new.shape:
        return np.full(count, np.inf)
    rows = (count, -1) if old.ndim and old.shape[0] == count else (1, -1)
    if not old.size:
        return np.zeros(count)
    if old.dtype.kind != "f":
        return np.broadcast_to((old != new).reshape(rows).mean(axis=1), (count,))
    a, b = np.nan_to_num(old.astype(np.float64)), np.nan_to_num(new.astype(np.float64), nan=1e30)
    if old.ndim >= 3 and rows[0] == count and old.shape[1] > 1:
        a, b = a.reshape(count, old.shape[1], -1), b.reshape(count, old.shape[1], -1)
    else:
        a, b = a.reshape(rows)[:, None], b.reshape(rows)[:, None]
    error, power = ((a - b) ** 2).sum(axis=2), (a**2).sum(axis=2)
    floor = 1e-8 * power.max(axis=1, keepdims=True) + 1e-30
    return np.broadcast_to(np.sqrt(error / np.maximum(power, floor)).mean(axis=1), (count,))
