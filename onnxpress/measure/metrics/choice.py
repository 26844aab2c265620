"""The metric that an engineer would pick for a model, by its outputs, their values, its inputs and the labels.

Where labels are given, the output they belong to is judged by them; every other output is judged by how much of the
original's answer it keeps.  The reason is part of the choice, so that it can be said and changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxpress.measure.metrics.boxes.detection_heads import find_detections
from onnxpress.measure.metrics.catalogue import OutputReading
from onnxpress.measure.metrics.choice_by_label import (
    Choice,
    channel_axis,
    is_byte_scores,
    spatial,
    threshold_of,
    with_labels,
)
from onnxpress.measure.metrics.maps import picture_range
from onnxpress.measure.metrics.output_facts import InputFacts, LabelFacts, OutputFacts
from onnxpress.measure.metrics.sequences import likely_blank

_CLASS_WORDS = "logit prob probability probabilities score class softmax dense label prediction classifier cls"
_VECTOR_WORDS = "embedding embed emb feature descriptor vector pooled pooler encoding representation latent"
_STATE_WORDS = "state hidden memory cache hn cn h c"
_NUMBER_WORDS = "landmark keypoint pose offset regression bbox box price depth angle value coordinates delta flow"
_MASK_WORDS = "mask segmentation seg semantic parsing matte alpha saliency"
_POOLING = ("ReduceMean", "GlobalAveragePool", "ReduceMax", "GlobalMaxPool", "LayerNormalization", "ReduceL2", "Div",
            "LpNormalization", "Tanh", "ReduceSum", "SimplifiedLayerNormalization")  # fmt: skip
_SIDE_WORDS = "attention past present cache hidden encoder intermediate auxiliary aux"
_LARGE_VOCABULARY = 2000
_ONE_ANSWER, _ENOUGH = 0.97, 8  # share of the commonest answer from which on answers say nothing; samples to tell it


@dataclass(frozen=True)
class Choices:
    """The metrics of a model, the one that matters most first; unjudged: outputs left out, with the reason."""

    chosen: tuple[Choice, ...]
    unjudged: dict[str, str]


def choose_metrics(outputs: Sequence[OutputFacts], inputs: Sequence[InputFacts], labels: LabelFacts) -> Choices:
    """The metrics for these outputs; empty where none is numeric."""
    able = [o for o in outputs if o.is_numeric and o.full_rows]
    unjudged = {o.name: "not numeric" for o in outputs if o not in able}
    detections = find_detections(able, labels)
    chosen: list[Choice] = []
    if detections is not None:
        by_label = labels.kind == "boxes"
        source = "the labels are boxes" if by_label else "boxes of the original with a score of at least 0.5 are true"
        reading = OutputReading(detections.outputs, by_label, decode=detections)
        chosen.append(Choice("map50", reading, f"{detections.name} boxes; {source}"))
        able = [o for o in able if o.name not in detections.outputs]
        beside = [o.name for o in able if _is_beside_boxes(o)]
        unjudged |= dict.fromkeys(beside, "a count or a raw head beside the boxes")
        able = [o for o in able if o.name not in beside]
    able, side = _without_side_outputs(able, bool(chosen))
    unjudged |= side
    found = [_choose_one(o, inputs) for o in able]
    if labels.kind not in ("none", "boxes"):
        found = with_labels(found, able, labels)
    primary = [c for c in found if c.reading.by_label]
    if labels.kind != "none" and not any(c.reading.by_label for c in (*chosen, *found)):
        unjudged["the labels"] = "they belong to no output"
    chosen += primary + [c for c in found if not c.reading.by_label]
    return Choices(tuple(chosen), unjudged)


def _is_beside_boxes(output: OutputFacts) -> bool:
    """A number of boxes, or the raw head of a scale that the boxes are decoded from."""
    if output.size == 1:
        return not output.is_float or output.named("num count len length det")
    return len(output.shape) >= 4


def _without_side_outputs(outputs: Sequence[OutputFacts], has_answer: bool) -> tuple[list[OutputFacts], dict[str, str]]:
    """Outputs without attentions, caches and hidden states, where there is an answer beside them."""
    side = [o for o in outputs if o.named(_SIDE_WORDS) and not {"last", "hidden"} <= o.words]
    last = [o for o in outputs if {"last", "hidden"} <= o.words]
    answers = [o for o in outputs if o not in side and o not in last]
    if last and any(o.named("logit sentence embedding probability") for o in answers):
        side += last
    if not side or not (has_answer or len(side) < len(outputs)):
        return list(outputs), {}
    names = {o.name for o in side}
    reason = "an inner state beside the model's answer"
    return [o for o in outputs if o.name not in names], dict.fromkeys(sorted(names), reason)


def _choose_one(output: OutputFacts, inputs: Sequence[InputFacts]) -> Choice:
    """The metric of one output without labels."""
    reading = OutputReading((output.name,), span=picture_range(output.flat))
    wide = spatial(output.shape)
    if not output.is_float and not is_byte_scores(output):
        return _choose_answers(output, inputs, reading)
    if len(wide) <= 1:
        return _choose_vector(output, inputs, reading)
    if len(wide) == 2 and not _has_sides_of(output, inputs):
        return _choose_rows(output, inputs, reading)
    return _choose_map(output, inputs, reading)


def _choose_answers(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """Integers and booleans are answers themselves."""
    if output.size == 1:
        return Choice("agreement", reading, "the answer is a class")
    images = [i for i in inputs if i.is_image]
    channel = channel_axis(output.shape)
    if channel is not None and output.shape[channel] == 3 and any(_enlarged(output, i) for i in images):
        return Choice("psnr", reading, "a picture of the input's size or a multiple of it")
    if len(spatial(output.shape)) >= 2 and images:
        top = float(output.flat.max(initial=0))
        if output.rows[0].dtype.kind == "u" and top == 255 and set(np.unique(output.flat)) <= {0.0, 255.0}:
            return Choice("iou", replace(reading, threshold=127), "a mask of 0 and 255")
        return Choice("iou", reading, "a map of classes")
    return Choice("position-agreement", reading, "an answer for each position")


def _choose_vector(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """One number or one vector a sample: class scores, labels, an embedding, or numbers."""
    size, threshold = output.size, threshold_of(output)
    row = replace(reading, threshold=threshold)
    said = _said_to_be_classes(output)
    if said and output.commonest_answer > _ONE_ANSWER and len(output.full_rows) >= _ENOUGH:
        return Choice("r2", reading, "scores of classes, but one class is the answer nearly everywhere: as numbers")
    if output.distribution_axis is not None:
        return Choice("agreement", reading, f"probabilities of {size} classes")
    if any(i.row.shape == output.shape and i.row.dtype.kind == "f" for i in inputs):
        if output.named(_STATE_WORDS) or len(inputs) > 1:
            return Choice("r2", reading, "a state: numbers of the shape of an input")
        return Choice("r2", reading, "numbers of the input's shape (a reconstruction)")
    if size == 1:
        if output.op == "Sigmoid" or (output.within_unit and output.named(_CLASS_WORDS)):
            return Choice("agreement", row, "one score of a sigmoid")
        return Choice("r2", reading, "one number a sample")
    if output.named(_NUMBER_WORDS):
        return Choice("r2", reading, "its name says numbers")
    if output.unit_norm or output.named(_VECTOR_WORDS):
        return Choice("cosine", reading, "vectors of norm 1" if output.unit_norm else "its name says vectors")
    if output.op in ("Sigmoid", "HardSigmoid"):
        return Choice("f1", replace(row, several=True), f"{size} scores of a sigmoid: several labels a sample")
    if output.named(_CLASS_WORDS):
        return Choice("agreement", reading, "its name says class scores")
    if is_byte_scores(output):
        return Choice("agreement", reading, f"{size} scores in 8 bits")
    if output.decisive_along(_long_axis(output.shape)):
        return Choice("agreement", reading, f"{size} numbers that look like class scores")
    if size >= 32 and output.op in _POOLING:
        return Choice("cosine", reading, f"vectors that end in {output.op}")
    if size >= 32 and size % 16 == 0:
        return Choice("cosine", reading, f"vectors of {size} numbers that do not look like class scores")
    return Choice("r2", reading, f"{size} numbers that do not look like class scores")


def _choose_rows(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """Vectors along a sequence: class scores of positions, hidden states, or numbers."""
    tokens = any(i.row.dtype.kind in "iu" for i in inputs)
    if any(i.row.shape == output.shape and i.row.dtype.kind == "f" for i in inputs):
        return Choice("r2", reading, "numbers of an input's shape (a state, or a reconstruction)")
    axis = output.distribution_axis
    if axis is None and not output.named(_NUMBER_WORDS + " " + _VECTOR_WORDS + " hidden"):
        last = len(output.shape) - 1
        if output.named(_CLASS_WORDS) or (tokens and output.shape[last] > _LARGE_VOCABULARY):
            axis = last
        elif output.op not in _POOLING:
            axis = next((a for a in (last, 0) if output.shape[a] > 1 and output.decisive_along(a)), None)
    if axis is not None and output.one_class_along(axis) > _ONE_ANSWER:
        return Choice("r2", reading, "scores of classes, but one class is the answer nearly everywhere: as numbers")
    if axis is not None:
        return _choose_positions(output, axis, tokens, reading)
    if (
        output.unit_norm
        or output.named(_VECTOR_WORDS + " hidden")
        or (output.op in _POOLING and output.shape[-1] >= 32)
    ):
        return Choice("cosine", reading, "a vector for each position")
    return Choice("r2", reading, "numbers that do not look like class scores")


def _choose_positions(output: OutputFacts, axis: int, tokens: bool, reading: OutputReading) -> Choice:
    """Class scores for each position; of audio and pictures those of CTC, whose commonest answer is the blank."""
    classes = output.shape[axis]
    reading = replace(reading, class_axis=axis)
    answers = [np.asarray(r.argmax(axis)) for r in output.full_rows]
    blank = likely_blank(answers, classes)
    share = float(np.mean(np.concatenate([a.ravel() for a in answers]) == blank))
    found = len(output.full_rows) < len(output.rows)  # rows of what was found, of which a sample may have none
    if not tokens and not found and classes >= 5 and output.size // classes >= 8 and share > 0.35:
        why = f"class scores by position, {share:.0%} of them for class {blank}: CTC"
        return Choice("error-rate", replace(reading, blank=blank), why)
    return Choice("position-agreement", reading, f"scores of {classes} classes for each position")


def _choose_map(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """Maps: classes of pixels, masks, pictures, or features."""
    images = [i for i in inputs if i.is_image]
    axis = output.distribution_axis
    channel = channel_axis(output.shape)
    count = output.shape[channel] if channel is not None else 1
    if axis is not None:
        return Choice(
            "iou", replace(reading, class_axis=axis), f"probabilities of {output.shape[axis]} classes a pixel"
        )
    if not images and count in (1, 3) and channel is not None and np.abs(output.flat).max(initial=0) <= 1.05:
        return Choice("psnr", reading, "a picture, with values between -1 or 0 and 1")
    single = count == 1 and not output.named(_NUMBER_WORDS)
    if single and (output.op in ("Sigmoid", "HardSigmoid", "Clip") or output.within_unit) and _two_sided(output):
        return Choice("iou", replace(reading, threshold=0.5), "a map of one score between 0 and 1")
    is_picture = count in (1, 3) and any(_enlarged(output, i) and i.channels in (1, 3, count) for i in images)
    if is_picture and not output.named(_NUMBER_WORDS + " " + _MASK_WORDS):
        return Choice("psnr", reading, "a picture of the input's size or a multiple of it")
    if single and output.named(_MASK_WORDS):
        return Choice("iou", replace(reading, threshold=threshold_of(output)), "its name says a mask")
    several = count >= 2 and channel is not None and not output.named(_NUMBER_WORDS + " " + _VECTOR_WORDS)
    if several and channel is not None and (output.named(_MASK_WORDS + " logits") or output.decisive_along(channel)):
        return Choice("iou", replace(reading, class_axis=channel), f"scores of {count} classes for each pixel")
    return Choice("r2", reading, "a map of numbers")


def _long_axis(shape: Sequence[int]) -> int:
    return max(range(len(shape)), key=lambda a: shape[a])


def _two_sided(output: OutputFacts) -> bool:
    """Whether most values lie near 0 or 1, and some on either side."""
    near = ((output.flat < 0.1) | (output.flat > 0.9)).mean() if output.flat.size else 0.0
    return bool(near > 0.6 and 0.005 < (output.flat > 0.5).mean() < 0.995)


def _said_to_be_classes(output: OutputFacts) -> bool:
    """Whether a vector holds class scores by its values, its name or its operator."""
    if output.distribution_axis is not None or output.op == "Sigmoid":
        return output.size > 1 or output.op == "Sigmoid"
    return output.named(_CLASS_WORDS) and not output.named(_NUMBER_WORDS + " " + _VECTOR_WORDS)


def _has_sides_of(output: OutputFacts, inputs: Sequence[InputFacts]) -> bool:
    """Whether the two wide axes of an output are those of an image that is an input, or a fraction of them."""
    wide = spatial(output.shape)
    for image in (i for i in inputs if i.is_image):
        ratios = [s / w for s, w in zip(image.sides, wide, strict=True)]
        down, up = np.log2(ratios), 1 / np.array(ratios)
        smaller = np.abs(down - np.round(down)).max() < 0.05 and -0.1 < down[0] < 5.5
        larger = np.abs(up - np.round(up)).max() < 0.02 and up[0] < 8.5
        if abs(down[0] - down[1]) < 0.05 and (smaller or larger):
            return True
    return False


def _enlarged(output: OutputFacts, image: InputFacts) -> bool:
    """Whether the output has the size of an image, or a multiple of it."""
    axes = sorted(sorted(range(len(output.shape)), key=lambda a: output.shape[a])[-2:])
    ratios = [output.shape[a] / s for a, s in zip(axes, image.sides, strict=True)]
    return ratios[0] == ratios[1] and ratios[0] in (1, 2, 3, 4, 8)
