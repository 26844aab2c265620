"""compare: how far a model is from another on samples, by task metrics, by numbers, and sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Batch, Dataset
from onnxpress.data.readers import user_function
from onnxpress.errors import InputProblem
from onnxpress.evaluate.tensor_differences import TensorDifference, tensor_differences
from onnxpress.measure.metrics import Metric, Outputs, make_metric
from onnxpress.measure.score import MetricResult, Score, Scorer, output_error
from onnxpress.model.files import load
from onnxpress.model.signature import signature

ModelLike = str | Path | ir.Model


@dataclass(frozen=True)
class SampleScore:
    """How a sample fares.  error: relative, of the output that differs most; before, after: the classes answered, where an output
    has scores of classes; label: where there is one that is a number."""

    key: str
    error: float
    before: int | None = None
    after: int | None = None
    label: float | None = None


@dataclass(frozen=True)
class CompareResult:
    """score: what `optimize` goes by; outputs: numbers of each; metrics: those asked for; worst: samples, the worst first."""

    score: Score
    outputs: list[TensorDifference]
    metrics: list[MetricResult] = field(default_factory=list)
    worst: list[SampleScore] = field(default_factory=list)

    @property
    def measured(self) -> Sequence[MetricResult]:
        """The metrics that were asked for, else the score."""
        return self.metrics or [self.score]

    @property
    def drops(self) -> dict[str, float]:
        """By metric."""
        return {m.metric: m.drop for m in self.measured}


def compare(
    original: ModelLike,
    other: ModelLike,
    data: Dataset,
    *,
    metrics: Sequence[str | Callable[[Outputs, Any], Any]] = (),
    decode: str | Callable[[Outputs], Any] | None = None,
    worst: int = 0,
) -> CompareResult:
    """The other model against the original on samples.

    metrics: names (measure/metrics.py NAMES), "module:function", or functions of (outputs of a sample by name, its label) that give
    a number, more is better; decode: of outputs of a sample, gives rows (x1, y1, x2, y2, score, class), for "map"; worst: how
    many samples to name.  Raises InputProblem where the models differ in inputs or outputs, or a metric does not fit.
    """
    first, second = (m if isinstance(m, ir.Model) else load(m) for m in (original, other))
    if [s.name for s in signature(first).inputs] != [s.name for s in signature(second).inputs]:
        raise InputProblem("the models take different inputs", str(other), "", "compare models with the same inputs")
    if [s.name for s in signature(first).outputs] != [s.name for s in signature(second).outputs]:
        raise InputProblem("the models give different outputs", str(other), "", "compare models with the same outputs")
    judge = Scorer(first, data)
    answer = judge.names[judge.answer] if judge.answer is not None else None
    by_label = bool(data.labelled) and all(x is not None for x in data.labels)
    boxes = user_function.load_function(decode, "cannot use --decode") if isinstance(decode, str) else decode
    asked = [_metric(m, answer, by_label, boxes) for m in metrics]
    score = judge.score(second)
    samples = _score_samples(judge, second, answer, asked) if asked or worst else []
    return CompareResult(
        score,
        tensor_differences(first, second, judge.names, data),
        [m.measured() for m in asked],
        sorted(samples, key=lambda s: (not _regressed(s), s.before == s.after, -s.error))[:worst],
    )


def _metric(
    given: str | Callable[[Outputs, Any], Any],
    answer: str | None,
    by_label: bool,
    decode: Callable[[Outputs], Any] | None,
) -> Metric:
    own = (
        given
        if callable(given)
        else user_function.load_function(given, "cannot use --metric")
        if user_function.names_function(given)
        else None
    )
    name = given if isinstance(given, str) else getattr(given, "__name__", "metric")
    return make_metric(name, answer, by_label, decode, own)


def _score_samples(judge: Scorer, model: ir.Model, answer: str | None, asked: Sequence[Metric]) -> list[SampleScore]:
    """Every sample, for the metrics and for what is told of it."""
    found: list[SampleScore] = []
    for batch, kept, new in judge.pairs(model):
        errors = np.max([output_error(a, b, batch.count) for a, b in zip(kept, new, strict=True)], axis=0)
        for i in range(batch.count):
            one, two = (_row(judge.names, values, i, batch) for values in (kept, new))
            for each in asked:
                each.add(one, two, batch.labels[i], batch.keys[i])
            before, after = (None if answer is None else int(o[answer].argmax()) for o in (one, two))
            found.append(SampleScore(batch.keys[i], float(errors[i]), before, after, _number(batch.labels[i])))
    return found


def _row(names: Sequence[str], values: Sequence[np.ndarray], index: int, batch: Batch) -> dict[str, np.ndarray]:
    """A sample's outputs; one that has no batch axis is everybody's."""
    return {n: v[index] if v.ndim and v.shape[0] == batch.count else v for n, v in zip(names, values, strict=True)}


def _number(label: Any) -> float | None:
    return float(label) if np.ndim(label) == 0 and isinstance(label, (int, float, np.number)) else None


def _regressed(sample: SampleScore) -> bool:
    """Whether the original was right and the other is not."""
    return sample.label is not None and sample.before == sample.label and sample.after != sample.label
