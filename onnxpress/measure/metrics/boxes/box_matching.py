"""Mean average precision of detections, as COCO defines it: over classes, IoU thresholds 0.5 to 0.95, and 101 recalls.

Detections of a sample are rows (x1, y1, x2, y2, score, class), true boxes rows (x1, y1, x2, y2, class).  Within a
sample and class, detections in descending order of score each match the free true box with the largest IoU.  The
matches do not depend on other samples, so a bootstrap resamples matched samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
_RECALLS = np.linspace(0, 1, 101)
_MAX_DETECTIONS = 100  # of a class in a sample


@dataclass(frozen=True)
class MatchedDetections:
    """Matched detections of one sample.

    classes, scores: [n] of the detections
    matched:         [thresholds, n] whether each detection matches a true box
    boxes:           classes of the true boxes
    """

    classes: np.ndarray
    scores: np.ndarray
    matched: np.ndarray
    boxes: np.ndarray


def match_detections(found: np.ndarray, true: np.ndarray, levels: int | None = None) -> MatchedDetections:
    """Match detections with true boxes.  found: [n, 6]; true: [m, 5]; levels: IoU thresholds from 0.5 on; None: all."""
    thresholds = IOU_THRESHOLDS[:levels]
    kept, hits = [], []
    for one in np.unique(found[:, 5]):
        own = found[found[:, 5] == one]
        own = own[np.argsort(-own[:, 4], kind="stable")][:_MAX_DETECTIONS]
        kept.append(own)
        hits.append(_match(box_iou(own[:, :4], true[true[:, 4] == one][:, :4]), thresholds))
    rows = np.concatenate(kept) if kept else np.zeros((0, 6))
    taken = np.concatenate(hits, axis=1) if hits else np.zeros((len(thresholds), 0), bool)
    return MatchedDetections(rows[:, 5], rows[:, 4], taken, true[:, 4])


def _match(overlaps: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[thresholds, n] whether a detection matches a free box.

    overlaps: [n, m] IoU, detections in descending order of score
    """
    taken = np.zeros((len(thresholds), len(overlaps)), bool)
    for level, least in enumerate(thresholds):
        free = np.ones(overlaps.shape[1], bool)
        for i, row in enumerate(overlaps):
            able = np.where(free, row, -1.0)
            if able.size and able.max() >= least - 1e-9:
                free[able.argmax()] = False
                taken[level, i] = True
    return taken


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union.  first: [n, 4]; second: [m, 4] -> [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    sizes = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (first, second)]
    return np.asarray(common / np.maximum(sizes[0][:, None] + sizes[1][None, :] - common, 1e-12))


def mean_average_precision(samples: Sequence[MatchedDetections], levels: int | None = None) -> float:
    """Mean over the classes that have a true box; 1 where none has and nothing is found, else 0.

    levels: number of IoU thresholds from 0.5 on; None: all
    """
    classes = np.concatenate([s.classes for s in samples])
    scores = np.concatenate([s.scores for s in samples])
    matched = np.concatenate([s.matched for s in samples], axis=1)[:levels]
    boxes = np.concatenate([s.boxes for s in samples])
    found = [
        _average_precision(scores[classes == c], matched[:, classes == c], int((boxes == c).sum()))
        for c in np.unique(boxes)
    ]
    return float(np.mean(found)) if found else float(not len(classes))


def _average_precision(scores: np.ndarray, matched: np.ndarray, boxes: int) -> float:
    """Mean over IoU thresholds of the interpolated precision at 101 recalls."""
    order = np.argsort(-scores, kind="stable")
    right = matched[:, order].cumsum(axis=1)
    recall = right / boxes
    precision = right / np.arange(1, len(order) + 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for level in range(len(matched)):
        place = np.searchsorted(recall[level], _RECALLS, side="left")
        total += (
            float(np.where(place < len(order), best[level][np.minimum(place, max(len(order) - 1, 0))], 0.0).mean())
            if len(order)
            else 0.0
        )
    return total / len(matched)
