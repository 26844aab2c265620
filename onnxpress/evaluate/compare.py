"""Comparison of a model with the original on samples: task metrics, numerical differences, and results by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.data.dataset import Batch
from onnxpress.data.readers import user_function
from onnxpress.errors import InputProblem
from onnxpress.evaluate.tensor_differences import TensorDifference, intermediate_differences, tensor_differences
from onnxpress.measure.metrics import Metric, Outputs, make_metric
from onnxpress.measure.score import MetricResult, Score, Scorer, output_error
from onnxpress.model.signature import signature
from onnxpress.model.source import ModelSource, open_model, source_name
from onnxpress.result import Result

_LAYER_SAMPLES = 64  # for the differences of intermediate values


@dataclass(frozen=True)
class SampleScore:
    """The result on one sample.

    key:           of the sample
    error:         relative error of the output that differs most
    before, after: class predicted by the original and by the other model; None where no output has class scores
    label:         None where there is none, or where it is not a number
    """

    key: str
    error: float
    before: int | None = None
    after: int | None = None
    label: float | None = None


@dataclass(frozen=True, repr=False)
class CompareResult(Result):
    """The result of `compare`.

    score:   the score by which `optimize` accepts a candidate
    outputs: differences of each output
    metrics: results of the requested metrics
    worst:   the samples with the worst results, worst first
    layers:  differences of intermediate values, in the order of the graph
    """

    score: Score
    outputs: list[TensorDifference]
    metrics: list[MetricResult] = field(default_factory=list)
    worst: list[SampleScore] = field(default_factory=list)
    layers: list[TensorDifference] = field(default_factory=list)

    def facts(self) -> list[tuple[str, str]]:
        return [(m.metric, m.text()) for m in self.measured]

    @property
    def measured(self) -> Sequence[MetricResult]:
        """The requested metrics; without any, the score."""
        return self.metrics or [self.score]

    @property
    def drops(self) -> dict[str, float]:
        """The drop by name of the metric."""
        return {m.metric: m.drop for m in self.measured}


def compare(
    original: ModelSource,
    other: ModelSource,
    data: DataSource,
    *,
    metric: Sequence[str | Callable[[Outputs, Any], Any]] = (),
    decode: str | Callable[[Outputs], Any] | None = None,
    worst: int = 0,
    layers: bool = False,
) -> CompareResult:
    """Compare a model with the original on samples.

    metric: names (METRIC_NAMES in measure/metrics.py), "module:function", or functions (outputs of one sample by name,
            its label) -> number, higher is better
    decode: for the metric "map": function, or "module:function", (outputs of one sample by name) -> rows (x1, y1, x2,
            y2, score, class)
    worst:  number of samples to report
    layers: also compare intermediate values that both models have

    >>> result = onnxpress.compare("model.onnx", "other.onnx", "samples.npz", layers=True)

    Raises InputProblem where the models differ in inputs or outputs, or where a metric does not fit the outputs or
    labels.
    """
    first, second = open_model(original, "original"), open_model(other, "other")
    if [s.name for s in signature(first).inputs] != [s.name for s in signature(second).inputs]:
        raise InputProblem(
            "the models have different inputs", source_name(other), "", "compare models with the same inputs"
        )
    if [s.name for s in signature(first).outputs] != [s.name for s in signature(second).outputs]:
        raise InputProblem(
            "the models have different outputs", source_name(other), "", "compare models with the same outputs"
        )
    samples = as_dataset(data, first)
    scorer = Scorer(first, samples)
    class_output = scorer.output_names[scorer.class_output] if scorer.class_output is not None else None
    by_label = bool(samples.labelled) and all(x is not None for x in samples.labels)
    decoder = user_function.load_function(decode, "cannot use `decode`") if isinstance(decode, str) else decode
    metrics = [_metric(m, class_output, by_label, decoder) for m in metric]
    score = scorer.score(second)
    scores = _score_samples(scorer, second, class_output, metrics) if metrics or worst else []
    return CompareResult(
        score,
        tensor_differences(first, second, scorer.output_names, samples),
        [m.result() for m in metrics],
        sorted(scores, key=lambda s: (not _regressed(s), s.before == s.after, -s.error))[:worst],
        intermediate_differences(first, second, samples.take(_LAYER_SAMPLES)) if layers else [],
    )


def _metric(
    given: str | Callable[[Outputs, Any], Any],
    class_output: str | None,
    by_label: bool,
    decode: Callable[[Outputs], Any] | None,
) -> Metric:
    function: Callable[[Outputs, Any], Any] | None = None
    if callable(given):
        function = given
    elif user_function.names_function(given):
        function = user_function.load_function(given, "cannot use `metric`")
    name = given if isinstance(given, str) else getattr(given, "__name__", "metric")
    return make_metric(name, class_output, by_label, decode, function)


def _score_samples(
    scorer: Scorer, model: ir.Model, class_output: str | None, metrics: Sequence[Metric]
) -> list[SampleScore]:
    """Scores of every sample; adds every sample to the metrics."""
    found: list[SampleScore] = []
    for batch, expected, actual in scorer.paired_outputs(model):
        errors = np.max([output_error(a, b, batch.count) for a, b in zip(expected, actual, strict=True)], axis=0)
        for i in range(batch.count):
            one, two = (_row(scorer.output_names, values, i, batch) for values in (expected, actual))
            for each in metrics:
                each.add(one, two, batch.labels[i], batch.keys[i])
            before, after = (None if class_output is None else int(o[class_output].argmax()) for o in (one, two))
            found.append(SampleScore(batch.keys[i], float(errors[i]), before, after, _number(batch.labels[i])))
    return found


def _row(names: Sequence[str], values: Sequence[np.ndarray], index: int, batch: Batch) -> dict[str, np.ndarray]:
    """The outputs of one sample by name; an output without batch axis is the same for all samples."""
    return {n: v[index] if v.ndim and v.shape[0] == batch.count else v for n, v in zip(names, values, strict=True)}


def _number(label: Any) -> float | None:
    return float(label) if np.ndim(label) == 0 and isinstance(label, (int, float, np.number)) else None


def _regressed(sample: SampleScore) -> bool:
    """Whether the original's prediction is right and the other model's is wrong."""
    return sample.label is not None and sample.before == sample.label and sample.after != sample.label
