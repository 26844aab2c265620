"""The metric that an engineer would pick for a model, by its outputs, their values, its inputs and the labels.

Where labels are given, the output they belong to is judged by them; every other output is judged by how much of the
original's answer it keeps.  The reason is part of the choice, so that it can be said and changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxpress.measure.metrics.catalogue import OutputReading
from onnxpress.measure.metrics.detection_heads import find_detections
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


@dataclass(frozen=True)
class Choice:
    """A metric, what it reads, and why it was chosen. metric: a name of METRICS."""

    metric: str
    reading: OutputReading
    reason: str


@dataclass(frozen=True)
class Choices:
    """The metrics of a model, the one that matters most first; unjudged: outputs left out, with the reason."""

    chosen: tuple[Choice, ...]
    unjudged: dict[str, str]


def choose_metrics(outputs: Sequence[OutputFacts], inputs: Sequence[InputFacts], labels: LabelFacts) -> Choices:
    """The metrics for these outputs; empty where none is numeric."""
    able = [o for o in outputs if o.is_numeric and o.rows[0].size]
    unjudged = {o.name: "not numeric" for o in outputs if o not in able}
    detections = find_detections(able, labels)
    chosen: list[Choice] = []
    if detections is not None:
        by_label = labels.kind == "boxes"
        source = "the labels are boxes" if by_label else "boxes of the original with a score of at least 0.5 are true"
        reading = OutputReading(detections.outputs, by_label, decode=detections)
        chosen.append(Choice("map50", reading, f"{detections.name} boxes; {source}"))
        able = [o for o in able if o.name not in detections.outputs]
    able, side = _without_side_outputs(able, bool(chosen))
    unjudged |= side
    found = [_choose_one(o, inputs, LabelFacts()) for o in able]
    if labels.kind not in ("none", "boxes"):
        found = _with_labels(found, able, inputs, labels)
    primary = [c for c in found if c.reading.by_label]
    chosen += primary + [c for c in found if not c.reading.by_label]
    return Choices(tuple(chosen), unjudged)


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


def _with_labels(
    found: list[Choice], outputs: Sequence[OutputFacts], inputs: Sequence[InputFacts], labels: LabelFacts
) -> list[Choice]:
    """The choices, that of the output to which the labels belong replaced by one of the labels."""
    fits = [(i, c) for i, o in enumerate(outputs) if (c := _choose_by_label(o, found[i], inputs, labels)) is not None]
    if not fits:
        return found
    best = max(fits, key=lambda pair: (_agreeing(outputs[pair[0]], pair[1], labels), -pair[0]))
    return [best[1] if i == best[0] else c for i, c in enumerate(found)]


def _agreeing(output: OutputFacts, choice: Choice, labels: LabelFacts) -> float:
    """Of class scores, how many of the known labels they answer: of several outputs the most accurate is judged."""
    if choice.metric != "top-1":
        return 0.5
    pairs = [(r, v) for r, v in zip(output.rows, labels.values, strict=False) if v is not None]
    if not pairs or output.rows[0].size < 2:
        return 0.5
    return float(
        np.mean(
            [int(np.nan_to_num(r.ravel(), nan=-np.inf).argmax()) == int(np.ravel(np.asarray(v))[0]) for r, v in pairs]
        )
    )


def _choose_by_label(
    output: OutputFacts, without: Choice, inputs: Sequence[InputFacts], labels: LabelFacts
) -> Choice | None:
    """The metric by labels, None where they do not belong to the output."""
    size, shape = output.rows[0].size, output.shape
    reading = OutputReading((output.name,), True)
    if labels.kind == "class":
        if output.is_float and size >= 2 and size == max(shape) and labels.top < size:
            if without.metric == "cosine" and (output.unit_norm or output.named(_VECTOR_WORDS)):
                return Choice("retrieval", reading, "vectors with one class a sample: neighbours should share it")
            return Choice("top-1", reading, f"scores of {size} classes, and labels of them")
        if not output.is_float and size == 1:
            return Choice("top-1", reading, "the answers are classes, and labels of them are given")
        if size == 1 and labels.top <= 1:
            threshold = 0.5 if output.within_unit else 0.0
            return Choice("top-1", replace(reading, threshold=threshold), "one score, and labels 0 and 1")
        if size == 1:
            return Choice("r2", reading, "one number a sample, and a number as label")
        return None
    if labels.kind == "number":
        return Choice("r2", reading, "one number a sample, and a number as label") if size == 1 else None
    sizes = {v.size for v in labels.known}
    if without.metric in ("position-agreement", "exact-sequence", "error-rate"):
        return _sequence_by_label(output, without, labels, sizes)
    if sizes == {size} and output.is_float:
        return _same_size_by_label(output, without, labels)
    if labels.kind == "array" and len(shape) >= 2 and output.is_float:
        return _map_by_label(output, labels)
    if sizes == {size}:
        metric = "iou" if without.metric == "iou" else "position-agreement"
        return Choice(metric, replace(reading, class_axis=None), "the answers are classes, as the labels are")
    return None


def _same_size_by_label(output: OutputFacts, without: Choice, labels: LabelFacts) -> Choice:
    """A number, a pixel or a decision as label for each number of a float output."""
    reading = OutputReading((output.name,), True)
    binary = all(bool(np.isin(v, (0, 1)).all()) for v in labels.known)
    if without.metric == "psnr":
        return Choice("psnr", reading, "a picture, and true pictures as labels")
    if binary and len(_spatial(output.shape)) >= 2:
        return Choice("iou", replace(reading, threshold=_threshold(output)), "a map of scores, and masks as labels")
    if binary and len(output.shape) == 1 and output.shape[0] > 1:
        threshold = _threshold(output)
        return Choice("f1", replace(reading, several=True, threshold=threshold), "labels 0 and 1 for each score")
    if without.metric == "cosine" and len(output.shape) == 1 and output.unit_norm:
        return Choice("cosine", reading, "vectors, and the true vectors as labels")
    return Choice("r2", reading, "numbers, and true numbers as labels")


def _map_by_label(output: OutputFacts, labels: LabelFacts) -> Choice | None:
    """Classes of pixels or positions as labels: of the output's shape without the axis of its class scores."""
    for axis in range(len(output.shape)):
        rest = tuple(s for i, s in enumerate(output.shape) if i != axis)
        fits = all(_spatial(v.shape) == _spatial(rest) for v in labels.known)
        if fits and (labels.top < output.shape[axis] or labels.top == 255):
            reading = OutputReading((output.name,), True, class_axis=axis)
            if len(rest) >= 2:
                return Choice("iou", reading, f"scores of {output.shape[axis]} classes, and the class of each pixel")
            return Choice("position-agreement", reading, "class scores and labels for each position")
    return None


def _sequence_by_label(output: OutputFacts, without: Choice, labels: LabelFacts, sizes: set[int]) -> Choice | None:
    axis = without.reading.class_axis
    classes = output.shape[axis] if axis is not None and output.is_float else labels.top + 1
    positions = output.rows[0].size // (classes if output.is_float else 1)
    if labels.top >= classes:
        return None
    reading = replace(without.reading, by_label=True)
    if sizes == {positions}:
        metric = "perplexity" if classes > _LARGE_VOCABULARY else "position-agreement"
        return Choice(metric, replace(reading, blank=None), "class scores and labels for each position")
    if max(sizes) <= positions:
        answers = [np.asarray(r.argmax(axis)) if output.is_float else r for r in output.rows]
        blank = likely_blank(answers, classes) if output.is_float else None
        why = "labels are shorter than the scores: CTC" if blank is not None else "sequences of classes"
        return Choice("error-rate", replace(reading, blank=blank), why)
    return None


def _choose_one(output: OutputFacts, inputs: Sequence[InputFacts], labels: LabelFacts) -> Choice:
    """The metric of one output without labels."""
    reading = OutputReading((output.name,))
    if not output.is_float:
        return _choose_answers(output, inputs, reading)
    spatial = _spatial(output.shape)
    if len(spatial) <= 1:
        return _choose_vector(output, inputs, reading)
    if len(output.shape) == 2 or (len(spatial) == 2 and not any(i.is_image for i in inputs)):
        return _choose_rows(output, inputs, reading)
    return _choose_map(output, inputs, reading)


def _choose_answers(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """Integers and booleans are answers themselves."""
    if output.rows[0].size == 1:
        return Choice("agreement", reading, "the answer is a class")
    if len(_spatial(output.shape)) >= 2 and any(i.is_image for i in inputs):
        return Choice("iou", reading, "a map of classes")
    return Choice("position-agreement", reading, "an answer for each position")


def _choose_vector(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """One number or one vector a sample: class scores, labels, an embedding, or numbers."""
    size, threshold = output.rows[0].size, _threshold(output)
    row = replace(reading, threshold=threshold)
    if any(i.row.shape == output.shape and i.row.dtype.kind == "f" for i in inputs):
        if output.named(_STATE_WORDS) or len(inputs) > 1:
            return Choice("r2", reading, "a state: numbers of the shape of an input")
        return Choice("r2", reading, "numbers of the input's shape (a reconstruction)")
    if size == 1:
        if output.op == "Sigmoid" or (output.within_unit and output.named(_CLASS_WORDS)):
            return Choice("agreement", row, "one score of a sigmoid")
        return Choice("r2", reading, "one number a sample")
    if output.distribution_axis is not None:
        return Choice("agreement", reading, f"probabilities of {size} classes")
    if output.named(_NUMBER_WORDS):
        return Choice("r2", reading, "its name says numbers")
    if output.unit_norm or output.named(_VECTOR_WORDS):
        return Choice("cosine", reading, "vectors of norm 1" if output.unit_norm else "its name says vectors")
    if output.op in ("Sigmoid", "HardSigmoid"):
        return Choice("f1", replace(row, several=True), f"{size} scores of a sigmoid: several labels a sample")
    if output.named(_CLASS_WORDS):
        return Choice("agreement", reading, "its name says class scores")
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
    answers = [np.asarray(r.argmax(axis)) for r in output.rows]
    blank = likely_blank(answers, classes)
    share = float(np.mean(np.concatenate([a.ravel() for a in answers]) == blank))
    if not tokens and classes >= 5 and output.rows[0].size // classes >= 8 and share > 0.35:
        why = f"class scores by position, {share:.0%} of them for class {blank}: CTC"
        return Choice("error-rate", replace(reading, blank=blank), why)
    return Choice("position-agreement", reading, f"scores of {classes} classes for each position")


def _choose_map(output: OutputFacts, inputs: Sequence[InputFacts], reading: OutputReading) -> Choice:
    """Maps: classes of pixels, masks, pictures, or features."""
    images = [i for i in inputs if i.is_image]
    axis = output.distribution_axis
    channel = _channel_axis(output.shape)
    count = output.shape[channel] if channel is not None else 1
    if axis is not None:
        return Choice(
            "iou", replace(reading, class_axis=axis), f"probabilities of {output.shape[axis]} classes a pixel"
        )
    single = count == 1 and not output.named(_NUMBER_WORDS)
    if single and (output.op in ("Sigmoid", "HardSigmoid", "Clip") or output.within_unit) and _two_sided(output):
        return Choice("iou", replace(reading, threshold=0.5), "a map of one score between 0 and 1")
    is_picture = count in (1, 3) and any(_enlarged(output, i) and i.channels in (1, 3, count) for i in images)
    if is_picture and not output.named(_NUMBER_WORDS + " " + _MASK_WORDS):
        return Choice("psnr", reading, "a picture of the input's size or a multiple of it")
    if single and output.named(_MASK_WORDS):
        return Choice("iou", replace(reading, threshold=_threshold(output)), "its name says a mask")
    several = count >= 2 and channel is not None and not output.named(_NUMBER_WORDS + " " + _VECTOR_WORDS)
    if several and channel is not None and (output.named(_MASK_WORDS + " logits") or output.decisive_along(channel)):
        return Choice("iou", replace(reading, class_axis=channel), f"scores of {count} classes for each pixel")
    return Choice("r2", reading, "a map of numbers")


def _spatial(shape: Sequence[int]) -> list[int]:
    return [s for s in shape if s > 1]


def _long_axis(shape: Sequence[int]) -> int:
    return max(range(len(shape)), key=lambda a: shape[a])


def _channel_axis(shape: Sequence[int]) -> int | None:
    """Of a map [C, H, W] or [H, W, C] the axis of C; None for [H, W]."""
    if len(shape) < 3:
        return None
    return 0 if shape[0] <= shape[-1] or shape[0] < shape[1] else len(shape) - 1


def _threshold(output: OutputFacts) -> float:
    """Above which a single score means yes."""
    return 0.5 if output.within_unit else 0.0


def _two_sided(output: OutputFacts) -> bool:
    """Whether most values lie near 0 or 1."""
    return bool(output.flat.size and ((output.flat < 0.1) | (output.flat > 0.9)).mean() > 0.6)


def _enlarged(output: OutputFacts, image: InputFacts) -> bool:
    """Whether the output has the size of an image, or a multiple of it."""
    axes = sorted(sorted(range(len(output.shape)), key=lambda a: output.shape[a])[-2:])
    ratios = [output.shape[a] / s for a, s in zip(axes, image.sides, strict=True)]
    return ratios[0] == ratios[1] and ratios[0] in (1, 2, 3, 4, 8)
