"""Quality of a model in the user's terms: which metrics judge it, chosen by the user or by what the outputs are.

`QualityOptions` is what users say (`metric`, `decode`, `outputs`), the same for every command and function that judges;
`QualityJudge` is what comes of it for one model and its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxpress.data.readers import user_function
from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.boxes.box_decoders import DECODER_NAMES, BoxDecoder, readable_by
from onnxpress.measure.metrics.boxes.detection_heads import find_detections
from onnxpress.measure.metrics.catalogue import METRICS, OutputReading, make_metric
from onnxpress.measure.metrics.choice import Choices, choose_metrics
from onnxpress.measure.metrics.choice_by_label import Choice
from onnxpress.measure.metrics.metric import Metric, Outputs
from onnxpress.measure.metrics.output_facts import InputFacts, LabelFacts, OutputFacts
from onnxpress.measure.metrics.user_metric import PerSampleFunction, WholeSetFunction, takes_whole_set

MetricSource = str | Callable[[Any, Any], Any]
DecodeSource = str | Callable[[Outputs], Any]
_OF_BOXES = ("map", "map50")
_DECODED = "decoded"


@dataclass(frozen=True)
class QualityOptions:
    """How a result is judged.

    metric:  a name of METRICS, "module:function", or a function: (outputs of a sample by name, label) -> number, or
             (outputs of all samples, labels) -> number; None: chosen by what the outputs are
    decode:  what stands between outputs and metric: "module:function", a function of a sample's outputs that returns
             boxes (rows x1, y1, x2, y2, score, class), an array or arrays by name, or the name of a ready decoder
    outputs: names of the outputs that matter; (): all
    """

    metric: MetricSource | None = None
    decode: DecodeSource | None = None
    outputs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The metric's name, "" where it is chosen."""
        if self.metric is None or isinstance(self.metric, str):
            return self.metric or ""
        return getattr(self.metric, "__name__", "metric")

    def check(self) -> None:
        """Raises InputProblem for an unknown metric or a function that cannot be loaded."""
        self.metric_function()
        self.decode_function()

    def metric_function(self) -> Callable[[Any, Any], Any] | None:
        """The user's metric; None for a named or a chosen one. Raises InputProblem."""
        if self.metric is None or self.metric in METRICS:
            return None
        if isinstance(self.metric, str):
            if not user_function.names_function(self.metric):
                known = ", ".join(METRICS)
                raise InputProblem("no such metric", "`metric`", self.metric, f"one of {known}, or module:function")
            return user_function.load_function_once(self.metric, "cannot use `metric`")
        given: Any = self.metric  # whatever a caller passed
        if not callable(given):
            raise InputProblem("not a metric", "`metric`", f"got {type(given).__name__}", "give a name or a function")
        return self.metric

    def decode_function(self) -> Callable[[Outputs], Any] | None:
        """The user's decoder; None where there is none or a ready one. Raises InputProblem."""
        if self.decode is None or self.decode in DECODER_NAMES:
            return None
        if isinstance(self.decode, str):
            if not user_function.names_function(self.decode):
                known = ", ".join(DECODER_NAMES)
                raise InputProblem("no such decoder", "`decode`", self.decode, f"one of {known}, or module:function")
            return user_function.load_function_once(self.decode, "cannot use `decode`")
        return self.decode


@dataclass(frozen=True)
class JudgedMetric:
    """A metric of a judge. outputs: those it reads; reason: why it judges; by_label: whether labels are the truth."""

    metric: Metric
    outputs: tuple[str, ...]
    reason: str
    by_label: bool


@dataclass(frozen=True)
class QualityJudge:
    """The metrics that judge a model, the one that matters most first. unjudged: outputs left out, with reasons.
    warnings: what is wrong with the labels.

    transform: from the outputs of a sample to what the metrics read; None: as they are.
    """

    metrics: tuple[JudgedMetric, ...]
    unjudged: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    transform: Callable[[Outputs], Outputs] | None = None

    def read(self, outputs: Outputs, key: str) -> Outputs:
        """What the metrics read of a sample's outputs. Raises InputProblem where the user's decoder fails."""
        if self.transform is None:
            return outputs
        try:
            return self.transform(outputs)
        except Exception as error:  # the user's code
            raise InputProblem(
                "the decoder failed", f"`decode`, on {key}", f"{type(error).__name__}: {error}"
            ) from error

    def text(self) -> list[str]:
        """What judges and why, a line each."""
        lines = []
        for one in self.metrics:
            where = f" of {', '.join(one.outputs)}" if len(self.metrics) > 1 else ""
            lines.append(f"judged by {one.metric.name}{where}: {one.reason}")
        lines += [f"not judged: {name}, {why}" for name, why in self.unjudged.items()]
        return [*lines, *(f"warning: {text}" for text in self.warnings)]


def judge_for(
    options: QualityOptions, outputs: Sequence[OutputFacts], inputs: Sequence[InputFacts], labels: Sequence[Any]
) -> QualityJudge:
    """The metrics that judge a model.

    outputs, inputs: of a few samples. labels: of those samples, then of all others.

    Raises InputProblem where an output or a metric is unknown, or a metric does not fit.
    """
    used, unjudged = _wanted(options, outputs)
    decode, transform = options.decode_function(), None
    facts = LabelFacts(labels)
    if decode is not None and not _makes_boxes(options, decode, used[0].name, outputs):
        used, transform = _decoded_facts(decode, outputs)
        decode = None
    function = options.metric_function()
    if function is not None:
        metric = (WholeSetFunction if takes_whole_set(function) else PerSampleFunction)(options.name, function)
        names = tuple(o.name for o in used)
        return QualityJudge((JudgedMetric(metric, names, "your metric", bool(facts.known)),), {}, transform=transform)
    found = choose_metrics(used, inputs, facts)
    boxes = _boxes(options, decode, used, facts)
    if options.metric is not None:
        choice = replace(_reading_for(str(options.metric), found, used, facts, boxes), reason="your metric")
        found = Choices((choice,), {})
    elif boxes is not None and decode is not None:
        reading = OutputReading((), facts.kind == "boxes", decode=boxes)
        found = Choices((Choice("map50", reading, "your decoder makes boxes"),), {})
    if not found.chosen:
        raise InputProblem(
            "no output of the model can be scored", "", "no output is numeric", "export a numeric output"
        )
    metrics = tuple(
        JudgedMetric(make_metric(c.metric, c.reading), c.reading.outputs, c.reason, c.reading.by_label)
        for c in found.chosen
    )
    return QualityJudge(metrics, {**unjudged, **found.unjudged}, transform=transform)


def _wanted(options: QualityOptions, outputs: Sequence[OutputFacts]) -> tuple[list[OutputFacts], dict[str, str]]:
    """The outputs that matter, and the others with the reason."""
    names = [o.name for o in outputs]
    strange = [n for n in options.outputs if n not in names]
    if strange:
        raise InputProblem("no such output", f"`outputs` {strange[0]}", "", f"the outputs are {', '.join(names)}")
    if not options.outputs:
        return list(outputs), {}
    used = [o for name in options.outputs for o in outputs if o.name == name]
    return used, {n: "not among `outputs`" for n in names if n not in options.outputs}


def _sample(outputs: Sequence[OutputFacts], index: int) -> dict[str, np.ndarray]:
    return {o.name: o.rows[index] for o in outputs}


def _makes_boxes(
    options: QualityOptions, decode: Callable[[Outputs], Any], name: str, outputs: Sequence[OutputFacts]
) -> bool:
    """Whether a user's decoder makes boxes: asked for, or rows of six numbers."""
    if options.metric in _OF_BOXES:
        return True
    if options.metric is not None:
        return False
    try:
        made = decode(_sample(outputs, 0))
        return not isinstance(made, Mapping) and np.ndim(made) == 2 and np.shape(made)[1] == 6
    except Exception as error:  # the user's code
        raise InputProblem("the decoder failed", "`decode`", f"{type(error).__name__}: {error}") from error


def _decoded_facts(
    decode: Callable[[Outputs], Any], outputs: Sequence[OutputFacts]
) -> tuple[list[OutputFacts], Callable[[Outputs], Outputs]]:
    """The outputs behind a user's decoder, and the decoder as a function of outputs by name."""

    def transform(sample: Outputs) -> Outputs:
        made = decode(sample)
        if isinstance(made, Mapping):
            return {str(name): np.asarray(value) for name, value in made.items()}
        return {_DECODED: np.asarray(made)}

    try:
        rows = [transform(_sample(outputs, i)) for i in range(len(outputs[0].rows))]
    except Exception as error:  # the user's code
        raise InputProblem("the decoder failed", "`decode`", f"{type(error).__name__}: {error}") from error
    return [OutputFacts(name, [r[name] for r in rows]) for name in rows[0]], transform


def _boxes(
    options: QualityOptions,
    decode: Callable[[Outputs], Any] | None,
    outputs: Sequence[OutputFacts],
    labels: LabelFacts,
) -> Callable[[Outputs], Any] | None:
    """The decoder of boxes: the user's, the named one, or the one that fits."""
    if decode is not None:
        return decode
    if isinstance(options.decode, str) and options.decode in DECODER_NAMES:
        shapes = [o.shape for o in outputs]
        several = options.decode in ("ssd", "detr", "boxes")
        used = list(outputs) if several else list(outputs[:1])
        if not readable_by(options.decode, shapes if several else shapes[:1]):
            raise InputProblem(
                "the decoder does not fit the outputs",
                f"`decode` {options.decode}",
                "their shapes are " + ", ".join(str(list(s)) for s in shapes),
                "name the outputs in its order by `outputs`, or give module:function",
            )
        return BoxDecoder(options.decode, tuple(o.name for o in used))
    return find_detections([o for o in outputs if o.is_numeric], labels) if options.metric in _OF_BOXES else None


def _reading_for(
    metric: str,
    found: Choices,
    outputs: Sequence[OutputFacts],
    labels: LabelFacts,
    boxes: Callable[[Outputs], Any] | None,
) -> Choice:
    """How a named metric reads the outputs: as the chosen one does where that fits it, else by the kind of metric."""
    by_label = labels.kind != "none" and metric not in ("agreement", "kl", "relative-error")
    if metric in _OF_BOXES:
        return Choice(metric, OutputReading((), labels.kind == "boxes", decode=boxes), "")
    if metric in ("mse", "mae", "r2", "pearson", "spearman", "relative-error"):
        return Choice(metric, OutputReading(tuple(o.name for o in outputs if o.is_numeric), by_label), "")
    primary = found.chosen[0].reading if found.chosen else OutputReading()
    output = next((o for o in outputs if o.name == primary.first), outputs[0])
    of_classes = metric in ("top-1", "top-5", "agreement", "f1", "auc")
    if of_classes and not _has_classes(output):
        output = next((o for o in outputs if _has_classes(o)), output)
    reading = replace(primary, outputs=(output.name,), by_label=by_label)
    if of_classes and not _has_classes(output):
        return Choice(metric, replace(reading, outputs=()), "")
    if reading.class_axis is None and output.is_float and not of_classes and metric not in ("psnr", "ssim"):
        axis = output.distribution_axis
        if axis is None and len(output.shape) > 1:
            axis = 0 if metric in ("iou", "dice") and len(output.shape) >= 3 else len(output.shape) - 1
        many = axis is not None and output.shape[axis] > 1
        reading = replace(reading, class_axis=axis if many else None, threshold=0.5 if output.within_unit else 0.0)
    return Choice(metric, reading, "")


def _has_classes(output: OutputFacts) -> bool:
    """Whether an output may hold one answer a sample: scores along one axis, one score, or one whole number."""
    if not output.is_float:
        return output.is_numeric and output.size == 1
    return output.size == max(output.shape, default=1)
