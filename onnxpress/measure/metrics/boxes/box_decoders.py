"""Boxes from the outputs of detectors: ready decoders for the common heads, and the suppression of duplicates.

Every decoder makes rows x1, y1, x2, y2, score, class of the outputs of one sample; coordinates keep the scale of the
outputs.  Heads that need anchors which the file does not hold (raw grids of YOLOv5, offsets of SSD) have no ready
decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.measure.metrics.boxes.box_matching import box_iou
from onnxpress.measure.metrics.metric import Outputs

_LEAST_SCORE, _MOST, _OVERLAP = 0.05, 300, 0.5  # of boxes before suppression; overlap above which one is a duplicate


@dataclass(frozen=True)
class BoxDecoder:
    """A decoder and the names of the outputs it reads, in its order."""

    name: str
    outputs: tuple[str, ...]

    def __call__(self, outputs: Outputs) -> np.ndarray:
        return np.asarray(_DECODERS[self.name](*(_plain(outputs[n]) for n in self.outputs)))


def _plain(values: np.ndarray) -> np.ndarray:
    """Without axes of one in front, as float64; NaN is no detection."""
    found = np.nan_to_num(values.astype(np.float64), nan=-1e9, posinf=1e9, neginf=-1e9)
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    return found


def decode_yolov8(rows: np.ndarray) -> np.ndarray:
    """[4 + classes, anchors]: centre, size, probabilities (YOLOv8, YOLOv9, YOLO11 of ultralytics)."""
    return _scored(corners(rows[:4].T), rows[4:].T)


def decode_yolov5(rows: np.ndarray) -> np.ndarray:
    """[anchors, 5 + classes]: centre, size, objectness, probabilities (YOLOv5, YOLOv7, decoded YOLOX)."""
    scores = rows[:, 5:] if rows.shape[1] > 5 else np.ones((len(rows), 1))
    return _scored(corners(rows[:, :4]), rows[:, 4:5] * scores)


def decode_ssd(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[anchors, 4] corners (or centre and size) and [anchors, classes] probabilities, or logits, background first."""
    boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1, scores.shape[-1])
    if scores.min(initial=0) < 0 or scores.max(initial=0) > 1 + 1e-3:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True)
    has_background = scores.shape[1] > 1 and np.allclose(scores.sum(axis=1), 1, atol=1e-2)
    wide = (boxes[:, 2] >= boxes[:, 0]).mean() > 0.9 and (boxes[:, 3] >= boxes[:, 1]).mean() > 0.9
    return _scored(boxes if wide else corners(boxes), scores[:, 1:] if has_background else scores)


def decode_detr(boxes: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """[queries, 4] centre and size and [queries, classes + 1] logits, no object last (DETR), without suppression.

    Logits whose softmax hardly ever answers "no object" are taken as independent (RT-DETR, Deformable DETR).
    """
    boxes = corners(boxes.reshape(-1, 4))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    if (shares.argmax(1) == shares.shape[1] - 1).mean() < 0.3:
        shares = np.concatenate([1 / (1 + np.exp(-np.clip(logits, -60, 60))), np.zeros((len(logits), 1))], axis=1)
    best = shares[:, :-1].argmax(axis=1)
    return _kept(boxes, shares[np.arange(len(best)), best], best, suppress=False)


def decode_boxes(boxes: np.ndarray, scores: np.ndarray, *classes: np.ndarray) -> np.ndarray:
    """[n, 4], [n] and [n]: what suppression has left (torchvision, TensorFlow's detection models)."""
    flat = scores.ravel()
    kinds = classes[0].ravel() if classes else np.zeros(len(flat))
    count = min(len(flat), boxes.size // 4, len(kinds))
    return _kept(boxes.reshape(-1, 4)[:count], flat[:count], kinds[:count], suppress=False)


def decode_rows(rows: np.ndarray, *classes: np.ndarray) -> np.ndarray:
    """[n, 6] corners, score, class; [n, 5] corners, score, with the classes in another output or none (mmdetection).

    [n, 7] is sample, corners, class, score (YOLOv7 with suppression in the file) or sample, class, score, corners (SSD
    of Caffe, OpenVINO and OpenCV).
    """
    rows = rows.reshape(-1, rows.shape[-1])
    if rows.shape[1] == 7:
        whole = bool(np.abs(rows[:, 1] - np.round(rows[:, 1])).max(initial=0) < 1e-3)
        ssd = whole and bool((rows[:, 2] <= 1 + 1e-3).all())
        rows = rows[:, [3, 4, 5, 6, 2, 1]] if ssd else rows[:, [1, 2, 3, 4, 6, 5]]
    if rows.shape[1] == 5:
        kinds = classes[0].ravel()[: len(rows)] if classes else np.zeros(len(rows))
        rows = np.concatenate([rows[: len(kinds)], kinds[:, None]], axis=1)
    return _kept(rows[:, :4], rows[:, 4], rows[:, 5], suppress=False)


def decode_grid(cells: np.ndarray) -> np.ndarray:
    """[5 + classes, H, W]: objectness, offsets (tanh), sizes (sigmoid), probabilities (FastestDet, in units of the
    picture)."""
    classes, height, width = cells.shape[0] - 5, *cells.shape[1:]
    flat = cells.reshape(5 + classes, -1)
    y, x = (v.ravel() for v in np.mgrid[:height, :width])
    sigmoid = 1 / (1 + np.exp(-np.clip(flat[3:5], -60, 60)))
    middle = np.stack([(np.tanh(flat[1]) + x) / width, (np.tanh(flat[2]) + y) / height, *sigmoid], axis=1)
    scores = np.clip(flat[:1].T, 0, 1) ** 0.6 * np.clip(flat[5:].T, 0, 1) ** 0.4
    return _scored(corners(middle), scores)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Centre and size as corners: [n, 4]."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _scored(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    best = scores.argmax(axis=1)
    return _kept(boxes, scores[np.arange(len(best)), best], best)


def _kept(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, suppress: bool = True) -> np.ndarray:
    """The rows of the highest scores; suppress: without those that overlap a better one of their class."""
    use = np.flatnonzero(scores >= _LEAST_SCORE)
    order = use[np.argsort(-scores[use], kind="stable")][:_MOST]
    rows = np.concatenate([boxes[order], scores[order, None], classes[order, None]], axis=1)
    if not suppress or len(rows) < 2:
        return rows
    near = (box_iou(rows[:, :4], rows[:, :4]) > _OVERLAP) & (rows[:, None, 5] == rows[None, :, 5])
    free = np.ones(len(rows), bool)
    for i in range(len(rows)):
        if free[i]:
            free[i + 1 :] &= ~near[i, i + 1 :]
    return rows[free]


_DECODERS: dict[str, Callable[..., np.ndarray]] = {
    "yolov8": decode_yolov8,
    "yolov5": decode_yolov5,
    "ssd": decode_ssd,
    "detr": decode_detr,
    "boxes": decode_boxes,
    "rows": decode_rows,
    "grid": decode_grid,
}
DECODER_NAMES = tuple(_DECODERS)


def readable_by(name: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether outputs of these shapes (of one sample) can be what a decoder reads."""
    kinds: dict[str, Callable[[list[tuple[int, ...]]], bool]] = {
        "yolov8": lambda a: len(a) == 1 and len(a[0]) == 2 and 5 <= a[0][0] < a[0][1],
        "yolov5": lambda a: len(a) == 1 and len(a[0]) == 2 and a[0][0] > a[0][1] >= 5,
        "ssd": lambda a: len(a) == 2 and a[0][-1] == 4 and a[1][-1] >= 1,
        "detr": lambda a: len(a) == 2 and a[0][-1] == 4 and a[1][-1] >= 2,
        "boxes": lambda a: len(a) in (2, 3) and a[0][-1:] == (4,),
        "rows": lambda a: len(a) in (1, 2) and a[0][-1:] in ((5,), (6,), (7,)),
        "grid": lambda a: len(a) == 1 and len(a[0]) == 3 and a[0][0] >= 6,
    }
    squeezed = [s[1:] if len(s) > 2 and s[0] == 1 else s for s in shapes]
    return name in kinds and bool(kinds[name](squeezed))
