"""What a metric is: the value of two models on the same samples, and the 95 % confidence interval of the difference.

A metric reduces each sample to a value per model (`sample_value`), and a set of samples to one number.  The truth of a
sample is its label; without labels it is the original's own answer, so that the original is perfect and the metric
measures how much of it is kept.  The interval comes from a bootstrap that draws the same samples for both models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem

Outputs = Mapping[str, np.ndarray]  # of one sample, by name, without the batch axis
_RESAMPLES, _RESAMPLES_OF_SETS = 2000, 200


@dataclass(frozen=True)
class MetricResult:
    """The result of one metric.

    metric:       its name
    value:        of the other model
    reference:    of the original
    drop:         how much worse the other model is, in the metric's unit
    low, high:    95 % interval of the drop (minus to plus infinity where none was computed)
    samples:      number of samples
    default_drop: the drop that is allowed where the user names none
    output:       the outputs it judges, "" for a model with one output
    expected:     whether the drop is what margins let expect, as the samples are too few to count changed answers
    """

    metric: str
    value: float
    reference: float
    drop: float
    low: float
    high: float
    samples: int
    default_drop: float = 0.01
    output: str = ""
    expected: bool = False

    def exceeds(self, allowed: float) -> bool:
        """Whether it loses more than is allowed: the whole interval does, or the drop where there is none."""
        return not (self.low if np.isfinite(self.low) else self.drop) <= allowed

    def text(self) -> str:
        """The result in one line."""
        name = f"{self.metric} of {self.output}" if self.output else self.metric
        values = f"{name} {self.value:.4f}, original {self.reference:.4f}"
        drop = f"drop {self.drop:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        how = ", expected from margins" if self.expected else ""
        return f"{values}: {drop} on {self.samples} samples{how}"


class Metric(ABC):
    """A metric of a set of samples.

    name:             as users write it
    higher_is_better: whether a larger value is better
    resamples:        of the bootstrap
    """

    higher_is_better = True
    resamples = _RESAMPLES_OF_SETS

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def truth(self, original: Outputs, label: Any, key: str) -> Any:
        """What both models are held against: the label, or the original's answer. Raises InputProblem where the label
        does not fit the metric."""

    @abstractmethod
    def sample_value(self, outputs: Outputs, truth: Any, key: str) -> Any:
        """What the metric needs of one model and sample. Raises InputProblem where the outputs do not fit."""

    @abstractmethod
    def aggregate(self, values: Sequence[Any]) -> float:
        """The metric over samples."""

    def drop(self, reference: float, value: float) -> float:
        """How much worse a value is than the original's."""
        return reference - value if self.higher_is_better else value - reference

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        """The drop that is allowed where the user names none: one point.  originals: the original's sample values."""
        return 0.01

    def result(self, originals: Sequence[Any], others: Sequence[Any], intervals: bool = True) -> MetricResult:
        """The metric of both models, from their sample values; intervals: whether to bootstrap."""
        reference, value = self.aggregate(originals), self.aggregate(others)
        drops = self._drawn_drops(originals, others) if intervals and len(originals) > 1 else np.empty(0)
        low, high = np.nanquantile(drops, (0.025, 0.975)) if drops.size else (-np.inf, np.inf)
        drop, default = self.drop(reference, value), self.default_drop(reference, originals)
        drop = drop if np.isfinite(drop) else np.inf
        return MetricResult(self.name, value, reference, drop, float(low), float(high), len(originals), default)

    def _drawn_drops(self, originals: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
        rng, count = np.random.default_rng(0), len(originals)
        draws = [rng.integers(0, count, count) for _ in range(self.resamples)]
        return np.array(
            [
                self.drop(*(self.aggregate([values[i] for i in some]) for values in (originals, others)))
                for some in draws
            ]
        )


class AdditiveMetric(Metric):
    """A metric that is a function of sums over the samples, such as a mean: its bootstrap is one matrix product."""

    resamples = _RESAMPLES

    def statistics(self, values: Sequence[Any]) -> np.ndarray:
        """The summands: [samples, S]."""
        return np.stack([np.atleast_1d(np.asarray(v, np.float64)) for v in values])

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        """The metric from sums over `count` samples, [R, S] -> [R]; by default the mean of the first."""
        return np.asarray(sums[:, 0] / count)

    def aggregate(self, values: Sequence[Any]) -> float:
        return float(self.value(self.statistics(values).sum(axis=0, keepdims=True), len(values))[0])

    def _drawn_drops(self, originals: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
        count = len(originals)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), self.resamples)
        first, second = (self.value(drawn @ self.statistics(part), count) for part in (originals, others))
        return np.array([self.drop(float(a), float(b)) for a, b in zip(first, second, strict=True)])


def only(outputs: Outputs, names: Sequence[str]) -> list[np.ndarray]:
    """The named outputs, in order."""
    return [outputs[name] for name in names]


def label_array(name: str, label: Any, key: str, advice: str) -> np.ndarray:
    """A label as numbers.  Raises InputProblem, with the metric's name and advice, for anything else."""
    try:
        found = np.asarray(label)
        if found.dtype.kind not in "biuf":
            raise ValueError("not numeric")
    except (TypeError, ValueError) as error:
        raise InputProblem(
            f"the metric {name} needs numbers as labels", f"the label of {key}", repr(label)[:40], advice
        ) from error
    return found
