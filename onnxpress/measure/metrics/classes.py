"""Metrics of one answer a sample: top-1, top-5, agreement, F1 of classes and of several labels, area under the curve.

Class scores are one axis of at least two numbers; a single number is the score of the second of two classes, which is
answered above a threshold; an integer is the answer itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Metric, Outputs, label_array

_ADVICE = "use r2, mae or map"


def class_scores(name: str, outputs: Outputs, output: str | None) -> np.ndarray:
    """The scores of one sample, flat.  Raises InputProblem where no output has scores."""
    if output is None:
        raise InputProblem(
            f"the metric {name} needs class scores", "`metric`", "no output has class scores", "use r2, mae or map"
        )
    return outputs[output].ravel()


def answer(scores: np.ndarray, threshold: float) -> int:
    """The class that scores answer with; -1 for scores that are none (NaN)."""
    if scores.dtype.kind in "iub" and scores.size == 1:
        return int(scores[0])
    if not scores.size or (scores.dtype.kind == "f" and np.isnan(scores).any()):
        return -1
    return int(scores.argmax()) if scores.size > 1 else int(scores[0] > threshold)


def class_label(name: str, label: Any, key: str) -> int:
    """The class of a label.  Raises InputProblem for anything but a whole number."""
    if isinstance(label, str) or np.size(label) != 1 or not float(np.ravel(label)[0]).is_integer():
        raise InputProblem(
            f"the metric {name} needs class numbers as labels", f"the label of {key}", repr(label)[:40], _ADVICE
        )
    return int(np.ravel(label)[0])


class ClassMetric(AdditiveMetric):
    """Whether the true class is among the `most` highest scores."""

    def __init__(self, name: str, output: str | None, by_label: bool, most: int = 1, threshold: float = 0.0) -> None:
        super().__init__(name)
        self.output, self.by_label, self.most, self.threshold = output, by_label, most, threshold
        self.classes = 2  # that the scores are of, as far as they were seen

    def truth(self, original: Outputs, label: Any, key: str) -> int:
        self.classes = max(self.classes, class_scores(self.name, original, self.output).size)
        if self.by_label and np.ndim(label) == 1 and np.size(label) == self.classes:
            return int(np.argmax(label))  # one of the classes marked
        if self.by_label:
            return class_label(self.name, label, key)
        return answer(class_scores(self.name, original, self.output), self.threshold)

    def sample_value(self, outputs: Outputs, truth: int, key: str) -> float:
        scores = class_scores(self.name, outputs, self.output)
        if self.most == 1:
            return float(answer(scores, self.threshold) == truth)
        if scores.size < 2 * self.most:
            raise InputProblem(
                f"the metric {self.name} is meaningless for this model",
                "`metric`",
                f"there are {scores.size} classes",
                "use top-1",
            )
        return float(truth in np.argsort(-np.nan_to_num(scores.astype(np.float64)), kind="stable")[: self.most])


class MacroF1(AdditiveMetric):
    """Mean over classes of the harmonic mean of precision and recall."""

    def __init__(self, name: str, output: str | None, by_label: bool, threshold: float = 0.0) -> None:
        super().__init__(name)
        self.output, self.by_label, self.threshold = output, by_label, threshold

    def truth(self, original: Outputs, label: Any, key: str) -> int:
        if self.by_label:
            return class_label(self.name, label, key)
        return answer(class_scores(self.name, original, self.output), self.threshold)

    def sample_value(self, outputs: Outputs, truth: int, key: str) -> tuple[int, int]:
        return truth, answer(class_scores(self.name, outputs, self.output), self.threshold)

    def statistics(self, values: Sequence[Any]) -> np.ndarray:
        true, found = np.array(values).T
        classes = np.union1d(true, found)
        right = (true[:, None] == classes) & (found[:, None] == classes)
        both = (true[:, None] == classes).astype(float) + (found[:, None] == classes)
        return np.concatenate([right, both], axis=1)

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        right, both = np.split(sums, 2, axis=1)
        return np.asarray((2 * right / np.maximum(both, 1)).sum(axis=1) / np.maximum((both > 0).sum(axis=1), 1))


class LabelsF1(AdditiveMetric):
    """F1 over all decisions of several labels a sample, each at a threshold (micro average)."""

    def __init__(self, name: str, output: str, by_label: bool, threshold: float) -> None:
        super().__init__(name)
        self.output, self.by_label, self.threshold = output, by_label, threshold

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        if not self.by_label:
            return np.asarray(original[self.output].ravel() > self.threshold)
        true = label_array(self.name, label, key, "give 0 or 1 for each label")
        if true.size != original[self.output].size:
            raise InputProblem(
                f"the metric {self.name} needs a label for every score",
                f"the label of {key}",
                f"{true.size} numbers for {original[self.output].size} scores",
                "give 0 or 1 for each",
            )
        return np.asarray(true.ravel() > 0.5)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[float, float]:
        found = outputs[self.output].ravel() > self.threshold
        return float((found & truth).sum()), float(found.sum() + truth.sum())

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(np.where(sums[:, 1] > 0, 2 * sums[:, 0] / np.maximum(sums[:, 1], 1), 1.0))


class AreaUnderCurve(Metric):
    """Area under the ROC curve: of one score, or the mean over classes, each against the others.

    Source: Fawcett, An introduction to ROC analysis (2006); ties count half.
    """

    def __init__(self, name: str, output: str | None, by_label: bool, threshold: float = 0.0) -> None:
        super().__init__(name)
        self.output, self.by_label, self.threshold = output, by_label, threshold

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        scores = class_scores(self.name, original, self.output)
        if not self.by_label:
            return np.array([answer(scores, self.threshold)])
        if np.size(label) == 1:
            return np.array([class_label(self.name, label, key)])
        return label_array(self.name, label, key, "give a class, or 0 or 1 for each score").ravel() > 0.5

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[np.ndarray, np.ndarray]:
        scores = np.nan_to_num(class_scores(self.name, outputs, self.output).astype(np.float64), nan=-1e30)
        if truth.size == 1 and scores.size > 1:
            truth = np.arange(scores.size) == truth[0]
        return (scores[1:], truth[1:]) if scores.size == 2 else (scores, truth)

    def aggregate(self, values: Sequence[Any]) -> float:
        from scipy.stats import rankdata  # imported here: it takes half a second

        scores, true = (np.stack([v[i] for v in values]) for i in (0, 1))
        positive = (true > 0).sum(axis=0)
        able = (positive > 0) & (positive < len(values))
        if not able.any():
            return float("nan")
        ranks = rankdata(scores[:, able], axis=0)
        wins = (ranks * (true[:, able] > 0)).sum(axis=0) - positive[able] * (positive[able] + 1) / 2
        return float(np.mean(wins / (positive[able] * (len(values) - positive[able]))))
