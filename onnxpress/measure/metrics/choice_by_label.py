"""The metric of an output to which the labels belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxpress.measure.metrics.catalogue import OutputReading
from onnxpress.measure.metrics.output_facts import LabelFacts, OutputFacts
from onnxpress.measure.metrics.sequences import likely_blank

_LARGE_VOCABULARY = 2000


@dataclass(frozen=True)
class Choice:
    """A metric, what it reads, and why it was chosen. metric: a name of METRICS."""

    metric: str
    reading: OutputReading
    reason: str


def with_labels(found: list[Choice], outputs: Sequence[OutputFacts], labels: LabelFacts) -> list[Choice]:
    """The choices without labels, that of the output to which the labels belong replaced by one of the labels.

    Where they may belong to several, it is the one whose answers agree most with them.
    """
    fits = [(i, c) for i, o in enumerate(outputs) if (c := _choose_by_label(o, found[i], labels)) is not None]
    if not fits:
        return found
    best = max(fits, key=lambda pair: (_agreeing(outputs[pair[0]], pair[1], labels), -pair[0]))
    return [best[1] if i == best[0] else c for i, c in enumerate(found)]


def _agreeing(output: OutputFacts, choice: Choice, labels: LabelFacts) -> float:
    """Of class scores the share of right answers; 0.5 for others."""
    pairs = [(r, np.asarray(v)) for r, v in zip(output.rows, labels.values, strict=False) if v is not None and r.size]
    if choice.metric != "top-1" or not pairs or output.size < 2:
        return 0.5
    right = [int(np.nan_to_num(r.ravel(), nan=-np.inf).argmax()) == int(v.argmax() if v.ndim else v) for r, v in pairs]
    return float(np.mean(right))


def _choose_by_label(output: OutputFacts, without: Choice, labels: LabelFacts) -> Choice | None:
    """The metric by labels, None where they do not belong to the output."""
    size, shape = output.size, output.shape
    reading = replace(without.reading, by_label=True)
    if labels.kind in ("class", "number"):
        return _by_one_number(output, without, labels)
    if labels.one_hot and labels.known[0].size == size == max(shape) and output.op not in ("Sigmoid", "HardSigmoid"):
        return Choice("top-1", reading, f"scores of {size} classes, and one of them marked in each label")
    if without.metric in ("position-agreement", "exact-sequence", "error-rate"):
        return _by_sequence(output, without, labels)
    same = {v.size for v in labels.known} == {size}
    if same and output.is_float:
        return _by_same_size(output, without, labels)
    if labels.kind == "array" and len(shape) >= 2 and output.is_float:
        return _by_map(output, labels)
    if same:
        metric = "iou" if without.metric == "iou" else "position-agreement"
        return Choice(metric, replace(reading, class_axis=None), "the answers are classes, as the labels are")
    return None


def _by_one_number(output: OutputFacts, without: Choice, labels: LabelFacts) -> Choice | None:
    """One number as label: a class, or what a single output predicts."""
    size = output.size
    reading = replace(without.reading, by_label=True)
    scores = output.is_float or is_byte_scores(output)
    if scores and size >= 2 and size == max(output.shape) and labels.whole and labels.top < size:
        if without.metric == "cosine":
            return Choice("retrieval", reading, "vectors with one class a sample: neighbours should share it")
        return Choice("top-1", reading, f"scores of {size} classes, and labels of them")
    if size > 1:
        return None
    if not output.is_float:
        return Choice("top-1", reading, "the answers are classes, and labels of them are given")
    if labels.kind == "class" and labels.top <= 1:
        return Choice("top-1", replace(reading, threshold=threshold_of(output)), "one score, and labels 0 and 1")
    return Choice("r2", reading, "one number a sample, and a number as label")


def _by_same_size(output: OutputFacts, without: Choice, labels: LabelFacts) -> Choice:
    """A number, a pixel or a decision as label for each number of a float output."""
    reading = replace(without.reading, by_label=True)
    top = labels.top if labels.top in (1, 255) else 1
    binary = all(bool(np.isin(v, (0, top)).all()) for v in labels.known)
    if without.metric == "psnr":
        return Choice("psnr", reading, "a picture, and true pictures as labels")
    if binary and len(spatial(output.shape)) >= 2:
        return Choice("iou", replace(reading, threshold=threshold_of(output)), "a map of scores, and masks as labels")
    if binary and len(output.shape) == 1 and output.size > 1:
        threshold = threshold_of(output)
        return Choice("f1", replace(reading, several=True, threshold=threshold), "labels 0 and 1 for each score")
    if without.metric == "cosine" and len(output.shape) == 1 and output.unit_norm:
        return Choice("cosine", reading, "vectors, and the true vectors as labels")
    return Choice("r2", reading, "numbers, and true numbers as labels")


def _by_map(output: OutputFacts, labels: LabelFacts) -> Choice | None:
    """Classes of pixels or positions as labels: of the output's shape without the axis of its class scores.

    Masks of another size and the same form are resized by the metric, as models often answer at a quarter of it.
    """
    for axis in range(len(output.shape)):
        rest = spatial([s for i, s in enumerate(output.shape) if i != axis])
        forms = [spatial(v.shape) for v in labels.known]
        fits = all(f == rest for f in forms)
        if not fits and len(rest) == 2 and axis == channel_axis(output.shape):
            fits = all(len(f) == 2 and abs(f[0] * rest[1] - f[1] * rest[0]) <= max(f[0], f[1]) for f in forms)
        if fits and (labels.top < output.shape[axis] or labels.top == 255):
            reading = OutputReading((output.name,), True, class_axis=axis)
            if len(rest) >= 2:
                return Choice("iou", reading, f"scores of {output.shape[axis]} classes, and the class of each pixel")
            return Choice("position-agreement", reading, "class scores and labels for each position")
    return None


def _by_sequence(output: OutputFacts, without: Choice, labels: LabelFacts) -> Choice | None:
    """Classes along a sequence as labels: one for each position, or fewer (CTC)."""
    axis = without.reading.class_axis
    of_scores = axis is not None and output.is_float
    classes = output.shape[axis] if of_scores and axis is not None else labels.top + 1
    if labels.top >= classes:
        return None
    pairs = [(r, np.asarray(v)) for r, v in zip(output.rows, labels.values, strict=False) if v is not None and r.size]
    positions = [r.size // (classes if of_scores else 1) for r, _ in pairs]
    sizes = [v.size for _, v in pairs]
    reading = replace(without.reading, by_label=True)
    if sizes == positions:
        metric = "perplexity" if classes > _LARGE_VOCABULARY else "position-agreement"
        return Choice(metric, replace(reading, blank=None), "class scores and labels for each position")
    if all(s <= p for s, p in zip(sizes, positions, strict=True)):
        answers = [np.asarray(r.argmax(axis)) if of_scores else r for r in output.full_rows]
        blank = likely_blank(answers, classes) if of_scores else None
        why = "labels are shorter than the scores: CTC" if blank is not None else "sequences of classes"
        return Choice("error-rate", replace(reading, blank=blank), why)
    return None


def spatial(shape: Sequence[int]) -> list[int]:
    """The sizes above 1."""
    return [s for s in shape if s > 1]


def channel_axis(shape: Sequence[int]) -> int | None:
    """Of a map [C, H, W] or [H, W, C] the axis of C; None for [H, W]."""
    if len(shape) < 3:
        return None
    return 0 if shape[0] <= shape[-1] or shape[0] < shape[1] else len(shape) - 1


def threshold_of(output: OutputFacts) -> float:
    """Above which a single score means yes."""
    return 0.5 if output.within_unit else 0.0


def is_byte_scores(output: OutputFacts) -> bool:
    """Whether a vector holds scores in 8 bits, as quantized TFLite models have."""
    return output.rows[0].dtype in (np.uint8, np.int8) and output.size > 1 and len(spatial(output.shape)) == 1
