"""Which outputs of a model are boxes, and by which ready decoder they are read.

A head is recognized by shapes and values of all its parts, and only where the original's boxes are boxes: some of them
with a score of at least 0.25, their corners in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxpress.measure.metrics.boxes.box_decoders import BoxDecoder
from onnxpress.measure.metrics.output_facts import LabelFacts, OutputFacts

_LEAST_SCORE = 0.25
_MOST_QUERIES = 1000
_WIDEST = 600  # columns of a row of boxes and scores
_BOX_WORDS = "box bbox loc location"
_SCORE_WORDS = "score conf confidence prob cls logit class label"


def find_detections(outputs: Sequence[OutputFacts], labels: LabelFacts) -> BoxDecoder | None:
    """The decoder of a detector's outputs; None where the outputs are none of boxes."""
    for decoder in _candidates(outputs):
        if _finds_boxes(decoder, outputs, labels.kind == "boxes"):
            return decoder
    return None


def _candidates(outputs: Sequence[OutputFacts]) -> Iterator[BoxDecoder]:
    floats = [o for o in outputs if o.is_float]
    for boxes in (o for o in floats if o.shape[-1:] == (4,) and len(_squeezed(o)) == 2):
        yield from _beside_boxes(boxes, [o for o in outputs if o is not boxes])
    for one in floats:
        shape = _squeezed(one)
        if len(shape) == 2:
            yield from _single(one, shape, [o for o in outputs if o is not one])
        if len(shape) == 3 and shape[0] >= 7 and _is_grid(one):
            yield BoxDecoder("grid", (one.name,))


def _beside_boxes(boxes: OutputFacts, others: Sequence[OutputFacts]) -> Iterator[BoxDecoder]:
    """Boxes in an output of their own, scores and perhaps classes in others."""
    rows = _squeezed(boxes)[0]
    flat = [o for o in others if o.size == rows and _as_many(boxes, o)]
    scores = [o for o in flat if o.is_float and (o.named("score conf confidence prob") or not o.named("class"))]
    kinds = [o for o in flat if o not in scores and (not o.is_float or o.named("class label"))]
    if scores and scores[0].within_unit:
        yield BoxDecoder("boxes", (boxes.name, scores[0].name, *(k.name for k in kinds[:1])))
    tables = [o for o in others if o.is_float and len(_squeezed(o)) == 2 and _squeezed(o)[0] == rows]
    for table in sorted(tables, key=lambda o: not o.named(_SCORE_WORDS)):
        if _squeezed(table)[1] < 2 and not table.within_unit:
            continue
        logits = not table.within_unit
        if logits and rows <= _MOST_QUERIES and boxes.within_unit and boxes.named(_BOX_WORDS):
            yield BoxDecoder("detr", (boxes.name, table.name))
        if rows >= 16 and (boxes.named(_BOX_WORDS) or table.named(_SCORE_WORDS)):
            yield BoxDecoder("ssd", (boxes.name, table.name))


def _single(one: OutputFacts, shape: tuple[int, ...], others: Sequence[OutputFacts]) -> Iterator[BoxDecoder]:
    """Boxes and scores in one output, classes there or in another."""
    if min(shape) > _WIDEST:
        return
    values = np.concatenate([r.reshape(-1, shape[-1]) for r in one.full_rows if r.shape[-1] == shape[-1]])
    corners = shape[1] >= 5 and _corners(values)
    if shape[1] == 5 and corners and _unit(values[:, 4]):
        same = [o for o in others if not o.is_float and o.size == shape[0]]
        yield BoxDecoder("rows", (one.name, *(o.name for o in same[:1])))
    if shape[1] == 7 and _whole(values[:, :2]) and _unit(values[:, 2]) and _corners(values[:, 3:]):
        yield BoxDecoder("rows", (one.name,))
    if shape[1] == 6 and _unit(values[:, 4]) and _whole(values[:, 5]):
        yield BoxDecoder("rows", (one.name,))
    if shape[1] == 7 and _unit(values[:, 6]) and _whole(values[:, 5]) and _whole(values[:, 0]):
        yield BoxDecoder("rows", (one.name,))
    if shape[1] >= (6 if corners else 5) and shape[0] > 2 * shape[1] and _unit(values[:, 4:]) and _sizes(values[:, :4]):
        yield BoxDecoder("yolov5", (one.name,))
    if shape[0] >= 5 and shape[1] > 2 * shape[0] and one.one_shape:
        columns = np.concatenate([r.reshape(shape).T for r in one.rows])
        if _unit(columns[:, 4:]) and _sizes(columns[:, :4]):
            yield BoxDecoder("yolov8", (one.name,))


def _is_grid(one: OutputFacts) -> bool:
    """Objectness between 0 and 1, and probabilities of classes from the sixth channel on."""
    if not one.one_shape:
        return False
    for row in one.rows:
        cells = row.reshape(_squeezed(one))
        if not _unit(cells[0]) or not _unit(cells[5:]) or np.abs(cells[5:].sum(0) - 1).max() > 0.02:
            return False
    return True


def _squeezed(one: OutputFacts) -> tuple[int, ...]:
    shape = one.shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _unit(values: np.ndarray) -> bool:
    return bool(values.size == 0 or (np.nanmin(values) >= -1e-3 and np.nanmax(values) <= 1 + 1e-3))


def _whole(values: np.ndarray) -> bool:
    return bool(values.size == 0 or np.abs(values - np.round(values)).max() < 1e-3)


def _as_many(boxes: OutputFacts, other: OutputFacts) -> bool:
    """Whether another output has one value for each box of every sample."""
    return all(b.size == 4 * o.size for b, o in zip(boxes.rows, other.rows, strict=True))


def _corners(boxes: np.ndarray) -> bool:
    """Whether the first four columns are corners in order, where a box is not all zeros."""
    rows = boxes[np.abs(boxes[:, :4]).sum(1) > 0]
    return bool(len(rows) and ((rows[:, 2] >= rows[:, 0]) & (rows[:, 3] >= rows[:, 1])).mean() > 0.98)


def _sizes(boxes: np.ndarray) -> bool:
    """Whether most of the last two columns are positive, and the boxes differ: centre and size."""
    return bool(len(boxes) and (boxes[:, 2:] > 0).mean() > 0.95 and boxes[:, :2].std() > 1e-6)


def _finds_boxes(decoder: BoxDecoder, outputs: Sequence[OutputFacts], labelled: bool) -> bool:
    """Whether the original finds something on the samples, in boxes whose corners are in order."""
    by_name = {o.name: o for o in outputs}
    found = []
    for i in range(len(by_name[decoder.outputs[0]].rows)):
        try:
            found.append(decoder({n: by_name[n].rows[i] for n in decoder.outputs}))
        except (ValueError, IndexError):
            return False
    rows = np.concatenate(found)
    rows = rows[rows[:, 4] >= (0.05 if labelled else _LEAST_SCORE)]
    ordered = (rows[:, 2] >= rows[:, 0]) & (rows[:, 3] >= rows[:, 1])
    return bool(len(rows) and ordered.mean() > 0.9)
