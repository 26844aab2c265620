"""Whether an original that is judged by labels answers them better than by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.measure.metrics.classes import ClassMetric
from onnxpress.measure.metrics.metric import Metric

_LEAST_SAMPLES = 8
_SIGMAS = 2.0
# Values of the original that no model has that was trained for the task of the labels.
_AT_MOST = {
    "r2": 0.0, "map": 0.01, "map50": 0.02, "iou": 0.02, "dice": 0.04, "cosine": 0.05, "exact-sequence": 0.0,
    "psnr": 6.0, "ssim": 0.02, "spearman": 0.0, "pearson": 0.0, "retrieval": 0.0,
}  # fmt: skip
_AT_LEAST = {"error-rate": 0.95}


def implausible_labels(metric: Metric, reference: float, values: Sequence[Any]) -> str:
    """Why the labels are doubted, in words; "" where the original answers them. values: of the original's samples."""
    count = len(values)
    if count < _LEAST_SAMPLES:
        return ""
    text = f"the original scores {reference:.4f} {metric.name} on {count} labelled samples"
    if isinstance(metric, ClassMetric) and metric.name == "top-1" and metric.by_label:
        guessed = 1 / max(metric.classes, 2)
        if reference <= guessed + _SIGMAS * np.sqrt(guessed * (1 - guessed) / count):
            return f"{text}, no more than a guess ({guessed:.4f})"
        return ""
    low = reference <= _AT_MOST.get(metric.name, -np.inf) or not np.isfinite(reference)
    return text if low or reference >= _AT_LEAST.get(metric.name, np.inf) else ""
