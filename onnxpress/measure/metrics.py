"""Task metrics of two models on the same samples, and the 95 % confidence interval of their difference.

A metric reduces each sample to a few numbers per model (`sample_values`), and a set of samples to one number
(`aggregate`).  The interval comes from a bootstrap that draws the same samples for both models.  The label is the
ground truth; without labels the original's output is, so that the original is perfect and the metric measures how much
of it is preserved.
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
LOWER_IS_BETTER = ("mse", "mae")
_RESAMPLES, _RESAMPLES_MAP = 1000, 200
_MIN_SCORE = 0.5  # score from which on a detection of the original counts as true where there are no labels


class Metric(ABC):
    """A metric of two models: `add` every sample, then `result`."""

    resamples = _RESAMPLES

    def __init__(self, name: str) -> None:
        self.name = name
        self._sample_values: list[tuple[Any, Any]] = []

    def add(self, original: Outputs, other: Outputs, label: Any, key: str) -> None:
        """Add the outputs of one sample, without the batch axis.

        Raises InputProblem where they or the label do not fit the metric.
        """
        self._sample_values.append(
            (self.sample_values(original, original, label, key), self.sample_values(other, original, label, key))
        )

    @abstractmethod
    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> Any:
        """What the aggregate needs of one model and sample."""

    @abstractmethod
    def aggregate(self, sample_values: Sequence[Any]) -> float:
        """The metric over samples."""

    def result(self) -> MetricResult:
        """The metric of both models, and the interval of the drop."""
        first, second = ([pair[i] for pair in self._sample_values] for i in (0, 1))
        reference, value = self.aggregate(first), self.aggregate(second)
        sign = -1.0 if self.name in LOWER_IS_BETTER else 1.0
        rng, count = np.random.default_rng(0), len(first)
        draws = []
        for _ in range(self.resamples if count > 1 else 0):
            some = rng.integers(0, count, count)
            draws.append(sign * (self.aggregate([first[i] for i in some]) - self.aggregate([second[i] for i in some])))
        low, high = (
            (float(np.nanquantile(draws, q)) for q in (0.025, 0.975)) if draws else (float("-inf"), float("inf"))
        )
        return MetricResult(self.name, value, reference, sign * (reference - value), low, high, count)


class _Mean(Metric):
    """A metric that is a mean of one number per sample."""

    def aggregate(self, sample_values: Sequence[Any]) -> float:
        return float(np.mean(sample_values))


class _Classes(_Mean):
    """Whether the true class is among the `most` highest scores."""

    def __init__(self, name: str, class_output: str | None, most: int, by_label: bool) -> None:
        super().__init__(name)
        self._class_output, self._most, self._by_label = class_output, most, by_label

    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> float:
        scores = _scores(self.name, outputs, self._class_output)
        true = (
            _class(self.name, label, key)
            if self._by_label
            else int(_scores(self.name, original, self._class_output).argmax())
        )
        if scores.size < 2 * self._most and self._most > 1:
            raise InputProblem(
                f"the metric {self.name} is meaningless for this model",
                "`metric`",
                f"there are {scores.size} classes",
                "use top-1",
            )
        return float(true in np.argsort(-scores, kind="stable")[: self._most])


class _F1(Metric):
    """Macro F1: mean over classes of the harmonic mean of precision and recall."""

    def __init__(self, name: str, class_output: str | None, by_label: bool) -> None:
        super().__init__(name)
        self._class_output, self._by_label = class_output, by_label

    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> tuple[int, int]:
        predicted = int(_scores(self.name, outputs, self._class_output).argmax())
        return _class(self.name, label, key) if self._by_label else int(
            _scores(self.name, original, self._class_output).argmax()
        ), predicted

    def aggregate(self, sample_values: Sequence[Any]) -> float:
        true, predicted = np.array(sample_values).T
        size = int(max(true.max(), predicted.max())) + 1
        right = np.bincount(true[true == predicted], minlength=size)
        both = np.bincount(true, minlength=size) + np.bincount(predicted, minlength=size)
        return float((2 * right[both > 0] / both[both > 0]).mean())


class _RegressionMetric(Metric):
    """Mean squared and absolute error, and correlations.

    A correlation is over samples where a sample has one number, else the mean of the correlations within samples.
    """

    def __init__(self, name: str, by_label: bool) -> None:
        super().__init__(name)
        self._by_label = by_label

    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> Any:
        found, true = _numbers(self.name, outputs, original, label if self._by_label else None, key)
        if self.name in LOWER_IS_BETTER:
            off = found - true
            return float((off**2).mean() if self.name == "mse" else np.abs(off).mean())
        return (float(found[0]), float(true[0])) if found.size == 1 else self._correlation(found, true)

    def aggregate(self, sample_values: Sequence[Any]) -> float:
        if sample_values and isinstance(sample_values[0], tuple):
            found, true = np.array(sample_values).T
            return self._correlation(found, true)
        return float(np.mean(sample_values))

    def _correlation(self, found: np.ndarray, true: np.ndarray) -> float:
        """1 where both are constant, 0 where only one is."""
        if self.name == "spearman":
            from scipy.stats import rankdata  # imported here: it takes half a second

            found, true = rankdata(found), rankdata(true)
        a, b = found - found.mean(), true - true.mean()
        power = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / power if power > 0 else float(not a.any() and not b.any())


class _Detections(Metric):
    """Mean average precision of boxes that a user's function decodes from the outputs."""

    resamples = _RESAMPLES_MAP

    def __init__(self, name: str, decode: Callable[[Outputs], Any], by_label: bool) -> None:
        super().__init__(name)
        self._decode, self._by_label = decode, by_label

    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> MatchedDetections:
        if self._by_label:
            true = _rows(label, 5, f"the label of {key}")
        else:
            detections = self._decoded(original, key)
            true = detections[detections[:, 4] >= _MIN_SCORE][:, [0, 1, 2, 3, 5]]
        return match_detections(self._decoded(outputs, key), true)

    def _decoded(self, outputs: Outputs, key: str) -> np.ndarray:
        try:
            made = self._decode(outputs)
        except Exception as error:  # the user's code
            raise InputProblem(
                "the decoder failed", f"`decode`, on {key}", f"{type(error).__name__}: {error}"
            ) from error
        return _rows(made, 6, f"result of `decode` for {key}")

    def aggregate(self, sample_values: Sequence[Any]) -> float:
        return mean_average_precision(sample_values)


class _UserMetric(_Mean):
    """A user's function: (outputs of a sample by name, label) -> number, higher is better."""

    def __init__(self, name: str, function: Callable[[Outputs, Any], Any]) -> None:
        super().__init__(name)
        self._function = function

    def sample_values(self, outputs: Outputs, original: Outputs, label: Any, key: str) -> float:
        try:
            return float(self._function(outputs, label))
        except Exception as error:  # the user's code
            raise InputProblem(
                "the metric failed", f"{self.name}, on {key}", f"{type(error).__name__}: {error}"
            ) from error


def make_metric(
    name: str,
    class_output: str | None,
    by_label: bool,
    decode: Callable[[Outputs], Any] | None = None,
    own: Callable[[Outputs, Any], Any] | None = None,
) -> Metric:
    """The metric of a name in METRIC_NAMES, or the user's own.

    class_output: name of the output with class scores
    by_label:     whether labels are the ground truth, else the original's outputs
    decode:       for "map": (outputs of a sample by name) -> boxes
    own:          the user's function, instead of a named metric

    Raises InputProblem where something is missing.
    """
    if own is not None:
        return _UserMetric(name, own)
    if name == "map":
        if decode is None:
            raise InputProblem(
                "map needs a function that decodes outputs into boxes",
                "`metric` map",
                "",
                "give `decode` as module:function",
            )
        return _Detections(name, decode, by_label)
    if name in ("mse", "mae", "pearson", "spearman"):
        return _RegressionMetric(name, by_label)
    if name == "f1":
        return _F1(name, class_output, by_label)
    if name == "agreement":
        return _Classes(name, class_output, 1, False)
    if name in METRIC_NAMES:
        return _Classes(name, class_output, 5 if name == "top-5" else 1, by_label)
    raise InputProblem("no such metric", "`metric`", name, f"one of {', '.join(METRIC_NAMES)}, or module:function")


def _scores(name: str, outputs: Outputs, class_output: str | None) -> np.ndarray:
    if class_output is None:
        raise InputProblem(
            f"the metric {name} needs class scores", "`metric`", "no output has class scores", "use mse, mae or map"
        )
    return np.nan_to_num(outputs[class_output].ravel(), nan=-np.inf)


def _class(name: str, label: Any, key: str) -> int:
    if isinstance(label, str) or np.size(label) != 1 or not float(np.ravel(label)[0]).is_integer():
        raise InputProblem(
            f"the metric {name} needs class numbers as labels",
            f"the label of {key}",
            repr(label)[:40],
            "use mse, mae or map",
        )
    return int(np.ravel(label)[0])


def _numbers(name: str, outputs: Outputs, original: Outputs, label: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth), flat.

    The prediction is the output of the label's size; without a label, all numeric outputs, and the original's are the
    truth.
    """
    if label is None:
        numeric = [n for n, v in outputs.items() if v.dtype.kind in "fiub" and v.shape == original[n].shape]
        if not numeric:
            raise InputProblem(
                f"the metric {name} cannot be computed",
                key,
                "no output has the shape of the original's",
                "use another metric",
            )
        found, true = (
            np.concatenate([np.ravel(o[n]).astype(np.float64) for n in numeric]) for o in (outputs, original)
        )
        return found, true
    try:
        true = np.ravel(np.asarray(label, np.float64))
    except (TypeError, ValueError) as error:
        raise InputProblem(
            f"the metric {name} needs numbers as labels",
            f"the label of {key}",
            repr(label)[:40],
            "use top-1, or no labels",
        ) from error
    same = next((v for v in outputs.values() if v.size == true.size and v.dtype.kind in "fiub"), None)
    if same is None:
        sizes = ", ".join(f"{n} {v.size}" for n, v in outputs.items())
        why = f"{true.size} numbers; outputs: {sizes}"
        raise InputProblem(
            f"the metric {name} needs a label for every number",
            f"the label of {key}",
            why,
            "use another metric, or no labels",
        )
    return np.ravel(same).astype(np.float64), true


def _rows(value: Any, width: int, where: str) -> np.ndarray:
    """[n, width] rows of boxes; rows of class -1 are padding and left out."""
    try:
        rows = np.asarray(value, np.float64).reshape(-1, width)
    except (TypeError, ValueError) as error:
        columns = "x1, y1, x2, y2, score, class" if width == 6 else "x1, y1, x2, y2, class"
        raise InputProblem(
            "not an array of boxes", where, f"expected rows of {columns}", "check the shape of the array"
        ) from error
    return rows[rows[:, -1] >= 0]
