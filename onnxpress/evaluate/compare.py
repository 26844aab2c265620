"""Comparison of a model with the original on samples: task metrics, numerical differences, and results by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.evaluate.pairing import check_inputs, check_outputs, reads_samples, with_types_of
from onnxpress.evaluate.tensor_differences import TensorDifference, intermediate_differences, tensor_differences
from onnxpress.measure.metrics.metric import MetricResult
from onnxpress.measure.metrics.numbers import output_error
from onnxpress.measure.quality import DecodeSource, MetricSource, QualityOptions
from onnxpress.measure.score import Score, Scorer
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
    judged_by: the metrics of the score, and why
    notes:   what makes a number mean less than it seems
    worst:   the samples with the worst results, worst first
    layers:  differences of intermediate values, in the order of the graph
    """

    score: Score
    outputs: list[TensorDifference]
    metrics: list[MetricResult] = field(default_factory=list)
    judged_by: list[str] = field(default_factory=list)
    worst: list[SampleScore] = field(default_factory=list)
    layers: list[TensorDifference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def facts(self) -> list[tuple[str, str]]:
        return [(m.metric, m.text()) for m in self.measured]

    @property
    def measured(self) -> Sequence[MetricResult]:
        """The requested metrics; without any, the score."""
        return self.metrics or self.score.parts

    @property
    def drops(self) -> dict[str, float]:
        """The drop by name of the metric."""
        return {f"{m.metric} of {m.output}" if m.output else m.metric: m.drop for m in self.measured}

    def failing(self, max_drop: float | None) -> list[MetricResult]:
        """The results that lose more than is allowed, with the whole interval of their drop.

        Of metrics that were asked for each the same drop is allowed, of chosen ones that of the first, and of the
        others in proportion. None allows all.
        """
        if max_drop is None:
            return []
        return [m for m, allowed in self._allowed(max_drop) if m.exceeds(allowed)]

    def undecided(self, max_drop: float | None) -> list[MetricResult]:
        """The results whose interval contains what is allowed: these samples cannot tell."""
        if max_drop is None:
            return []
        return [m for m, allowed in self._allowed(max_drop) if not m.exceeds(allowed) and m.high > allowed]

    def _allowed(self, max_drop: float) -> list[tuple[MetricResult, float]]:
        if self.metrics:
            return [(m, max_drop) for m in self.metrics]
        scale = max_drop / max(self.score.parts[0].default_drop, 1e-300)
        return [(p, p.default_drop * scale + 1e-12) for p in self.score.parts]


def compare(
    original: ModelSource,
    other: ModelSource,
    data: DataSource,
    *,
    metric: MetricSource | Sequence[MetricSource] | None = None,
    decode: DecodeSource | None = None,
    outputs: Sequence[str] = (),
    worst: int = 0,
    layers: bool = False,
) -> CompareResult:
    """Compare a model with the original on samples.

    metric:  of each see QualityOptions; None: chosen by what the outputs are
    decode:  what stands between outputs and metrics, see QualityOptions
    outputs: names of the outputs that matter; (): all
    worst:   number of samples to report
    layers:  also compare intermediate values that both models have

    >>> result = onnxpress.compare("model.onnx", "other.onnx", "samples.npz", layers=True)

    Raises InputProblem where the models differ in inputs or outputs, or where a metric does not fit the outputs or
    labels.
    """
    first, second = open_model(original, "original"), open_model(other, "other")
    check_inputs(signature(first), signature(second), source_name(other))
    check_outputs(signature(first), signature(second), source_name(other))
    second = with_types_of(second, signature(first))
    samples = as_dataset(data, reads_samples(first, second))
    several = [metric] if isinstance(metric, str) or callable(metric) else metric or ()
    wanted = [QualityOptions(m, decode, tuple(outputs)) for m in several]
    for options in wanted:
        options.check()
    scorer = Scorer(
        first, samples, quality=wanted[0] if len(wanted) == 1 else QualityOptions(None, decode, tuple(outputs))
    )
    results = [part for o in wanted for part in scorer.score(second, judge=scorer.judge_for(o)).parts]
    score = scorer.score(second)
    scores = _score_samples(scorer, second) if worst else []
    differences = tensor_differences(first, second, scorer.output_names, samples)
    return CompareResult(
        score,
        differences,
        results,
        scorer.judge.text(),
        sorted(scores, key=lambda s: (not _regressed(s), s.before == s.after, -s.error))[:worst],
        intermediate_differences(first, second, samples.take(_LAYER_SAMPLES)) if layers else [],
        [line for d in differences for line in d.warnings()],
    )


def _score_samples(scorer: Scorer, model: ir.Model) -> list[SampleScore]:
    """Scores of every sample."""
    found: list[SampleScore] = []
    for batch, expected, actual in scorer.paired_outputs(model):
        errors = np.max([output_error(a, b, batch.count) for a, b in zip(expected, actual, strict=True)], axis=0)
        answers = [scorer.answers(o, batch) for o in (expected, actual)]
        for i in range(batch.count):
            before, after = (a[i] if a else None for a in answers)
            found.append(SampleScore(batch.keys[i], float(errors[i]), before, after, _number(batch.labels[i])))
    return found


def _number(label: Any) -> float | None:
    return float(label) if np.ndim(label) == 0 and isinstance(label, (int, float, np.number)) else None


def _regressed(sample: SampleScore) -> bool:
    """Whether the original's prediction is right and the other model's is wrong."""
    return sample.label is not None and sample.before == sample.label and sample.after != sample.label
