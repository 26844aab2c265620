"""Mean average precision of the boxes that a decoder makes of a detector's outputs.

"map" is COCO's, over IoU thresholds from 0.5 to 0.95; "map50" has the threshold 0.5.  Without labels the boxes of the
original count as true where their score is at least 0.5 (0.25 where it has none such).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.boxes.box_matching import MatchedDetections, match_detections, mean_average_precision
from onnxpress.measure.metrics.metric import Metric, Outputs

_TRUE_SCORES = (0.5, 0.25)


class DetectionMetric(Metric):
    """Mean average precision.  decode: outputs of a sample by name -> rows x1, y1, x2, y2, score, class."""

    def __init__(self, name: str, decode: Callable[[Outputs], Any], by_label: bool) -> None:
        super().__init__(name)
        self.decode, self.by_label = decode, by_label
        self.levels = 1 if name == "map50" else None  # thresholds, from the lowest

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        if self.by_label:
            return _rows(label, 5, f"the label of {key}")
        found = self._decoded(original, key)
        for least in _TRUE_SCORES:
            if len(true := found[found[:, 4] >= least]):
                break
        return true[:, [0, 1, 2, 3, 5]]

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> MatchedDetections:
        return match_detections(self._decoded(outputs, key), truth, self.levels)

    def _decoded(self, outputs: Outputs, key: str) -> np.ndarray:
        try:
            made = self.decode(outputs)
        except Exception as error:  # the user's code
            raise InputProblem(
                "the decoder failed", f"`decode`, on {key}", f"{type(error).__name__}: {error}"
            ) from error
        return _rows(made, 6, f"result of `decode` for {key}")

    def aggregate(self, values: Sequence[MatchedDetections]) -> float:
        return mean_average_precision(values, self.levels)

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        """One point of true boxes; without labels three: every box that differs counts, also where both are wrong."""
        return 0.01 if self.by_label else 0.03


def _rows(value: Any, width: int, where: str) -> np.ndarray:
    """[n, width] rows of boxes; rows of class -1 are padding and left out."""
    try:
        rows = np.asarray(value, np.float64).reshape(-1, width)
    except (TypeError, ValueError) as error:
        columns = "x1, y1, x2, y2, score, class" if width == 6 else "x1, y1, x2, y2, class"
        raise InputProblem(
            "not an array of boxes", where, f"expected rows of {columns}", "check the shape of the array"
        ) from error
    return rows[rows[:, -1] >= 0]
