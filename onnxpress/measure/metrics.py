"""Task metrics of two models side by side, on the same samples, with the difference's 95 % interval.

A metric reduces each sample to a few numbers for each model (`facts`), and a set of samples to one number (`total`); the interval
comes from drawing samples anew, the same ones for both models.  What is true is the label; without labels it is the original's
answer, so that the original is perfect and what is measured is how much of it is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.detection import MatchedDetections, match_detections, mean_average_precision
from onnxpress.measure.score import MetricResult

Outputs = Mapping[str, np.ndarray]
METRIC_NAMES = ("top-1", "top-5", "agreement", "f1", "mse", "mae", "pearson", "spearman", "map")
LOWER_IS_BETTER = ("mse", "mae")  # is better
_RESAMPLES, _FEW = 1000, 200
_SURE = 0.5  # score of a detection of the original that counts as true where there are no labels


class Metric(ABC):
    """One sample goes in at a time, for both models; `measured` ends it."""

    resamples = _RESAMPLES

    def __init__(self, name: str) -> None:
        self.name = name
        self._facts: list[tuple[Any, Any]] = []

    def add(self, original: Outputs, other: Outputs, label: Any, key: str) -> None:
        """Outputs of one sample, without the batch axis.  Raises InputProblem where they or the label do not fit the metric."""
        self._facts.append((self.facts(original, original, label, key), self.facts(other, original, label, key)))

    @abstractmethod
    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> Any: ...

    @abstractmethod
    def total(self, facts: Sequence[Any]) -> float: ...

    def measured(self) -> MetricResult:
        first, second = ([pair[i] for pair in self._facts] for i in (0, 1))
        reference, value = self.total(first), self.total(second)
        sign = -1.0 if self.name in LOWER_IS_BETTER else 1.0
        rng, count = np.random.default_rng(0), len(first)
        draws = []
        for _ in range(self.resamples if count > 1 else 0):
            some = rng.integers(0, count, count)
            draws.append(sign * (self.total([first[i] for i in some]) - self.total([second[i] for i in some])))
        low, high = (
            (float(np.nanquantile(draws, q)) for q in (0.025, 0.975)) if draws else (float("-inf"), float("inf"))
        )
        return MetricResult(self.name, value, reference, sign * (reference - value), low, high, count)


class _Mean(Metric):
    """One number a sample, and their mean."""

    def total(self, facts: Sequence[Any]) -> float:
        return float(np.mean(facts))


class _Classes(_Mean):
    """Whether the true class is among the `most` best scores."""

    def __init__(self, name: str, answer: str | None, most: int, by_label: bool) -> None:
        super().__init__(name)
        self._answer, self._most, self._by_label = answer, most, by_label

    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> float:
        scores = _scores(self.name, outputs, self._answer)
        true = (
            _class(self.name, label, key)
            if self._by_label
            else int(_scores(self.name, original, self._answer).argmax())
        )
        if scores.size < 2 * self._most and self._most > 1:
            raise InputProblem(
                f"the metric {self.name} says nothing here",
                "--metric",
                f"there are {scores.size} classes",
                "take top-1",
            )
        return float(true in np.argsort(-scores, kind="stable")[: self._most])


class _F1(Metric):
    """Mean over the classes of the harmonic mean of precision and recall."""

    def __init__(self, name: str, answer: str | None, by_label: bool) -> None:
        super().__init__(name)
        self._answer, self._by_label = answer, by_label

    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> tuple[int, int]:
        told = int(_scores(self.name, outputs, self._answer).argmax())
        return _class(self.name, label, key) if self._by_label else int(
            _scores(self.name, original, self._answer).argmax()
        ), told

    def total(self, facts: Sequence[Any]) -> float:
        true, told = np.array(facts).T
        size = int(max(true.max(), told.max())) + 1
        right = np.bincount(true[true == told], minlength=size)
        both = np.bincount(true, minlength=size) + np.bincount(told, minlength=size)
        return float((2 * right[both > 0] / both[both > 0]).mean())


class _RegressionMetric(Metric):
    """Numbers against numbers: mean squared and absolute error, correlations.

    A correlation is over samples where a sample has one number, else the mean of those within samples.
    """

    def __init__(self, name: str, by_label: bool) -> None:
        super().__init__(name)
        self._by_label = by_label

    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> Any:
        found, true = _numbers(self.name, outputs, original, label if self._by_label else None, key)
        if self.name in LOWER_IS_BETTER:
            off = found - true
            return float((off**2).mean() if self.name == "mse" else np.abs(off).mean())
        return (float(found[0]), float(true[0])) if found.size == 1 else self._correlation(found, true)

    def total(self, facts: Sequence[Any]) -> float:
        if facts and isinstance(facts[0], tuple):
            found, true = np.array(facts).T
            return self._correlation(found, true)
        return float(np.mean(facts))

    def _correlation(self, found: np.ndarray, true: np.ndarray) -> float:
        """1 between constants, which are alike, 0 where one is constant."""
        if self.name == "spearman":
            from scipy.stats import rankdata  # here: half a second to import

            found, true = rankdata(found), rankdata(true)
        a, b = found - found.mean(), true - true.mean()
        power = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / power if power > 0 else float(not a.any() and not b.any())


class _Detections(Metric):
    """Mean average precision of what a user's function makes of the outputs."""

    resamples = _FEW

    def __init__(self, name: str, decode: Callable[[Outputs], Any], by_label: bool) -> None:
        super().__init__(name)
        self._decode, self._by_label = decode, by_label

    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> MatchedDetections:
        if self._by_label:
            true = _rows(label, 5, f"the label of {key}")
        else:
            sure = self._decoded(original, key)
            true = sure[sure[:, 4] >= _SURE][:, [0, 1, 2, 3, 5]]
        return match_detections(self._decoded(outputs, key), true)

    def _decoded(self, outputs: Outputs, key: str) -> np.ndarray:
        try:
            made = self._decode(outputs)
        except Exception as error:  # the user's code
            raise InputProblem(
                "the decoder failed", f"--decode, on {key}", f"{type(error).__name__}: {error}"
            ) from error
        return _rows(made, 6, f"what --decode gives for {key}")

    def total(self, facts: Sequence[Any]) -> float:
        return mean_average_precision(facts)


class _UserMetric(_Mean):
    """A function of the user's: (outputs of a sample by name, label) -> a number, more is better."""

    def __init__(self, name: str, function: Callable[[Outputs, Any], Any]) -> None:
        super().__init__(name)
        self._function = function

    def facts(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> float:
        try:
            return float(self._function(outputs, label))
        except Exception as error:  # the user's code
            raise InputProblem(
                "the metric failed", f"{self.name}, on {key}", f"{type(error).__name__}: {error}"
            ) from error


def make_metric(
    name: str,
    answer: str | None,
    by_label: bool,
    decode: Callable[[Outputs], Any] | None = None,
    own: Callable[[Outputs, Any], Any] | None = None,
) -> Metric:
    """One of NAMES, or the user's own.  answer: the output that has scores of classes; decode: of "map".

    Raises InputProblem where something is missing.
    """
    if own is not None:
        return _UserMetric(name, own)
    if name == "map":
        if decode is None:
            raise InputProblem(
                "map needs a function that makes boxes of outputs", "--metric map", "", "add --decode module:function"
            )
        return _Detections(name, decode, by_label)
    if name in ("mse", "mae", "pearson", "spearman"):
        return _RegressionMetric(name, by_label)
    if name == "f1":
        return _F1(name, answer, by_label)
    if name == "agreement":
        return _Classes(name, answer, 1, False)
    if name in METRIC_NAMES:
        return _Classes(name, answer, 5 if name == "top-5" else 1, by_label)
    raise InputProblem("no such metric", "--metric", name, f"one of {', '.join(METRIC_NAMES)}, or module:function")


def _scores(name: str, outputs: Outputs, answer: str | None) -> np.ndarray:
    if answer is None:
        raise InputProblem(
            f"the metric {name} needs scores of classes", "--metric", "no output has any", "take mse, mae or map"
        )
    return np.nan_to_num(outputs[answer].ravel(), nan=-np.inf)


def _class(name: str, label: Any, key: str) -> int:
    if isinstance(label, str) or np.size(label) != 1 or not float(np.ravel(label)[0]).is_integer():
        raise InputProblem(
            f"the metric {name} needs class numbers as labels",
            f"the label of {key}",
            repr(label)[:40],
            "take mse, mae or map",
        )
    return int(np.ravel(label)[0])


def _numbers(name: str, outputs: Outputs, original: Outputs, label: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
    """What a model gives and what is true, flat: the output of the label's size, or all numbers where the original is true."""
    if label is None:
        able = [n for n, v in outputs.items() if v.dtype.kind in "fiub" and v.shape == original[n].shape]
        if not able:
            raise InputProblem(
                f"the metric {name} cannot be taken", key, "no output has the original's shape", "take another metric"
            )
        found, true = (np.concatenate([np.ravel(o[n]).astype(np.float64) for n in able]) for o in (outputs, original))
        return found, true
    try:
        true = np.ravel(np.asarray(label, np.float64))
    except (TypeError, ValueError) as error:
        raise InputProblem(
            f"the metric {name} needs numbers as labels",
            f"the label of {key}",
            repr(label)[:40],
            "take top-1, or no labels",
        ) from error
    same = next((v for v in outputs.values() if v.size == true.size and v.dtype.kind in "fiub"), None)
    if same is None:
        sizes = ", ".join(f"{n} {v.size}" for n, v in outputs.items())
        why = f"{true.size} numbers; outputs: {sizes}"
        raise InputProblem(
            f"the metric {name} needs a label for every number",
            f"the label of {key}",
            why,
            "take another metric, or no labels",
        )
    return np.ravel(same).astype(np.float64), true


def _rows(value: Any, columns: int, where: str) -> np.ndarray:
    """[n, columns]; rows of class -1 pad."""
    try:
        rows = np.asarray(value, np.float64).reshape(-1, columns)
    except (TypeError, ValueError) as error:
        form = "x1, y1, x2, y2, score, class" if columns == 6 else "x1, y1, x2, y2, class"
        raise InputProblem(
            "not a table of boxes", where, f"expected rows of {form}", "see `onnxpress compare --help`"
        ) from error
    return rows[rows[:, -1] >= 0]
