"""Metrics of sequences: answers by position, whole sequences, edit distance, perplexity, Kullback-Leibler divergence.

Scores have the classes along `class_axis`; integers are answers.  Where a label has another length than the scores have
positions, they are read as connectionist temporal classification (CTC): repeated answers are one, blanks are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Outputs, label_array

_IGNORED = -1  # and below: of labels


class SequenceMetric(AdditiveMetric):
    """A metric of the answers along a sequence. blank: the class of CTC that means nothing; None: every position is an
    answer."""

    def __init__(
        self, name: str, output: str, by_label: bool, class_axis: int | None = -1, blank: int | None = None
    ) -> None:
        super().__init__(name)
        self.output, self.by_label, self.class_axis, self.blank = output, by_label, class_axis, blank

    def answers(self, outputs: Outputs) -> np.ndarray:
        """The answers at all positions, flat."""
        values = outputs[self.output]
        found = values if values.dtype.kind in "iub" else np.nan_to_num(values, nan=-np.inf).argmax(self.class_axis)
        return np.asarray(found).ravel()

    def sequence(self, outputs: Outputs) -> np.ndarray:
        """The answers, those of CTC collapsed."""
        return collapse(self.answers(outputs), self.blank) if self.blank is not None else self.answers(outputs)

    def true_sequence(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        """The label without padding, or the original's sequence."""
        if not self.by_label:
            return self.sequence(original)
        found = label_array(self.name, label, key, "give the classes of each sequence").ravel()
        return np.asarray(found[found > _IGNORED] if self.blank is not None else found)


class PositionAgreement(SequenceMetric):
    """The share of positions with the true answer. Positions whose label is negative do not count."""

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        own = self.answers(original)
        if not self.by_label:
            return own
        true = label_array(self.name, label, key, "give the class of each position, or no labels").ravel()
        if true.size != own.size:
            raise InputProblem(
                f"the metric {self.name} needs a label for each position",
                f"the label of {key}",
                f"{true.size} labels for {own.size} positions",
                "use exact-sequence or error-rate",
            )
        return np.asarray(true)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[float, float]:
        found, use = self.answers(outputs), truth > _IGNORED
        right = (found == truth)[use].sum() if found.shape == truth.shape else 0
        return float(right), float(use.sum())

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), 1.0))


class ExactSequence(SequenceMetric):
    """The share of sequences that are right as a whole."""

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        return self.true_sequence(original, label, key)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> float:
        found = self.sequence(outputs)
        if self.by_label and self.blank is None and found.size == truth.size:
            found, truth = found[truth > _IGNORED], truth[truth > _IGNORED]
        return float(np.array_equal(found, truth))


class ErrorRate(SequenceMetric):
    """Edit distance to the true sequences for each true symbol: the word error rate, where symbols are words."""

    higher_is_better = False

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        """One point of true symbols; without labels two, as symbols differ where both are wrong, too."""
        return 0.01 if self.by_label else 0.02

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        return self.true_sequence(original, label, key)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[float, float]:
        return float(edit_distance(self.sequence(outputs), truth)), float(len(truth))

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))


class Perplexity(SequenceMetric):
    """Exponential of the mean cross-entropy with the true classes; the drop is relative (0.02: 2 % more)."""

    higher_is_better = False

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        logs = log_softmax(original[self.output], self.class_axis)
        if not self.by_label:
            return np.asarray(np.exp(logs))
        true = label_array(self.name, label, key, "give the class of each position, or no labels").ravel()
        if true.size != len(logs):
            raise InputProblem(
                f"the metric {self.name} needs a label for each position",
                f"the label of {key}",
                f"{true.size} labels for {len(logs)} positions",
                "give the next token of each position",
            )
        if true.max(initial=0) >= logs.shape[1]:
            raise InputProblem(
                f"the metric {self.name} needs classes of the model as labels",
                f"the label of {key}",
                f"{int(true.max())} of {logs.shape[1]} classes",
                "check the labels",
            )
        return np.asarray(true, np.int64)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[float, float]:
        logs = log_softmax(outputs[self.output], self.class_axis)
        if truth.ndim == 2:
            return -float((truth * logs).sum()), float(len(logs))
        use = truth > _IGNORED
        return -float(logs[use, truth[use]].sum()), float(use.sum())

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(np.exp(np.minimum(sums[:, 0] / np.maximum(sums[:, 1], 1), 700)))

    def drop(self, reference: float, value: float) -> float:
        return value / max(reference, 1e-30) - 1

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        return 0.02


class Divergence(SequenceMetric):
    """Mean Kullback-Leibler divergence of the other model's distribution from the original's, in nats a position."""

    higher_is_better = False

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        return log_softmax(original[self.output], self.class_axis)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> tuple[float, float]:
        logs = log_softmax(outputs[self.output], self.class_axis)
        return float((np.exp(truth) * (truth - logs)).sum()), float(len(logs))

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))


def log_softmax(values: np.ndarray, axis: int | None) -> np.ndarray:
    """[positions, classes] log probabilities, of logits, probabilities or log probabilities."""
    rows = np.moveaxis(values.astype(np.float64), -1 if axis is None else axis, -1)
    rows = np.nan_to_num(rows.reshape(-1, rows.shape[-1]), nan=-1e4, posinf=1e4, neginf=-1e4)
    if rows.min(initial=0) >= 0 and np.allclose(rows.sum(1), 1, atol=1e-2):
        return np.log(np.maximum(rows, 1e-12))
    rows = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


def collapse(answers: np.ndarray, blank: int) -> np.ndarray:
    """The symbols of a best path of CTC.  Source: Graves et al., Connectionist temporal classification (2006)."""
    changed = np.concatenate([[True], answers[1:] != answers[:-1]]) if answers.size else np.zeros(0, bool)
    return np.asarray(answers[changed & (answers != blank)])


def likely_blank(answers: Sequence[np.ndarray], classes: int) -> int:
    """The class of CTC that means nothing: the first or the last, whichever is answered more often."""
    counts = Counter(int(a) for one in answers for a in one.ravel())
    return 0 if counts[0] >= counts[classes - 1] else classes - 1


def edit_distance(found: np.ndarray, true: np.ndarray) -> int:
    """Least number of insertions, removals and replacements (Levenshtein, 1966)."""
    row = np.arange(len(true) + 1)
    for i, symbol in enumerate(found, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (true != symbol))
        new = np.concatenate([[i], best])
        # insertions: the least of what stands to the left, plus the way from there
        row = np.minimum.accumulate(new - np.arange(len(new))) + np.arange(len(new))
    return int(row[-1])
