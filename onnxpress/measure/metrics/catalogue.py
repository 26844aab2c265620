"""The metrics by name, and how each is made from what is known of the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics import classes, maps, numbers, sequences, vectors
from onnxpress.measure.metrics.boxes import detections
from onnxpress.measure.metrics.metric import Metric

METRICS: dict[str, str] = {  # name: what it is
    "top-1": "share of samples whose highest score is the labelled class",
    "top-5": "share of samples whose labelled class is among the five highest scores",
    "agreement": "share of samples with the original's answer",
    "f1": "macro F1 of classes; micro F1 where a sample has several labels",
    "auc": "area under the ROC curve",
    "position-agreement": "share of positions (tokens, steps) with the true answer",
    "exact-sequence": "share of sequences that are right as a whole (CTC is collapsed)",
    "error-rate": "edit distance for each true symbol (CTC is collapsed)",
    "perplexity": "exponential of the mean cross-entropy; the drop is relative",
    "kl": "Kullback-Leibler divergence from the original's distribution, in nats",
    "cosine": "mean cosine with the true vectors",
    "retrieval": "share of the ten nearest samples that have the same label, or stay the same",
    "iou": "mean intersection over union of masks",
    "dice": "mean Dice coefficient of masks",
    "psnr": "peak signal-to-noise ratio of pictures, in dB",
    "ssim": "structural similarity of pictures",
    "r2": "explained variance, by column",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's rank correlation",
    "map": "mean average precision of boxes, IoU 0.5 to 0.95 (COCO)",
    "map50": "mean average precision of boxes, IoU 0.5",
    "relative-error": "relative error of the outputs",
}
METRIC_NAMES = tuple(METRICS)


@dataclass(frozen=True)
class OutputReading:
    """How a metric reads the outputs.

    outputs:    names of those it reads; () where none fits a metric of one output
    by_label:   whether labels are the truth, else the original's answers
    class_axis: axis of class scores of one sample; None: the values are answers or one score
    threshold:  of a single score
    blank:      class of CTC that means nothing; None: every position is an answer
    several:    whether a sample has several labels
    decode:     outputs of a sample -> boxes, for the metrics of boxes
    span:       of pictures, between black and white; 0: told from each
    """

    outputs: tuple[str, ...] = ()
    by_label: bool = False
    class_axis: int | None = None
    threshold: float = 0.0
    blank: int | None = None
    several: bool = False
    decode: Callable[[Any], Any] | None = None
    span: float = 0.0

    @property
    def first(self) -> str | None:
        return self.outputs[0] if self.outputs else None


def make_metric(name: str, reading: OutputReading) -> Metric:
    """The metric of a name.  Raises InputProblem for unknown names and where something is missing."""
    makers: dict[str, Callable[[], Metric]] = {
        "agreement": lambda: classes.ClassMetric(name, reading.first, False, threshold=reading.threshold),
        "top-1": lambda: classes.ClassMetric(name, reading.first, reading.by_label, threshold=reading.threshold),
        "top-5": lambda: classes.ClassMetric(name, reading.first, reading.by_label, 5),
        "f1": lambda: _f1(name, reading),
        "auc": lambda: classes.AreaUnderCurve(name, reading.first, reading.by_label, reading.threshold),
        "mse": lambda: numbers.MeanError(name, reading.outputs or None, reading.by_label),
        "mae": lambda: numbers.MeanError(name, reading.outputs or None, reading.by_label),
        "pearson": lambda: numbers.Correlation(name, reading.outputs or None, reading.by_label),
        "spearman": lambda: numbers.Correlation(name, reading.outputs or None, reading.by_label),
        "r2": lambda: numbers.ExplainedVariance(name, reading.outputs or None, reading.by_label),
        "relative-error": lambda: numbers.RelativeError(name, reading.outputs or None),
        "map": lambda: _boxes(name, reading),
        "map50": lambda: _boxes(name, reading),
    }
    if name in makers:
        return makers[name]()
    if name not in METRICS:
        raise InputProblem("no such metric", "`metric`", name, f"one of {', '.join(METRIC_NAMES)}, or module:function")
    output = _one_output(name, reading)
    if name in ("cosine", "retrieval"):
        return (vectors.Cosine if name == "cosine" else vectors.Retrieval)(name, output, reading.by_label)
    if name in ("iou", "dice"):
        return maps.Overlap(name, output, reading.by_label, reading.class_axis, reading.threshold)
    if name in ("psnr", "ssim"):
        kind = maps.PeakSignalToNoise if name == "psnr" else maps.StructuralSimilarity
        return kind(name, output, reading.by_label, reading.span)
    of_sequences: dict[str, type[sequences.SequenceMetric]] = {
        "position-agreement": sequences.PositionAgreement,
        "exact-sequence": sequences.ExactSequence,
        "error-rate": sequences.ErrorRate,
        "perplexity": sequences.Perplexity,
        "kl": sequences.Divergence,
    }
    return of_sequences[name](name, output, reading.by_label, reading.class_axis, reading.blank)


def _f1(name: str, reading: OutputReading) -> Metric:
    if reading.several and reading.first is not None:
        return classes.LabelsF1(name, reading.first, reading.by_label, reading.threshold)
    return classes.MacroF1(name, reading.first, reading.by_label, reading.threshold)


def _boxes(name: str, reading: OutputReading) -> Metric:
    if reading.decode is None:
        raise InputProblem(
            f"{name} needs a function that decodes outputs into boxes",
            f"`metric` {name}",
            "no ready decoder fits the outputs",
            "give `decode` as module:function, or a decoder's name",
        )
    return detections.DetectionMetric(name, reading.decode, reading.by_label)


def _one_output(name: str, reading: OutputReading) -> str:
    if reading.first is None:
        raise InputProblem(
            f"the metric {name} needs an output", "`metric`", "no output fits it", "name it by `outputs`"
        )
    return reading.first
