"""Metrics of embeddings: cosine with the truth, and how many of the nearest neighbours stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Outputs, label_array

_NEIGHBOURS = 10


class Cosine(AdditiveMetric):
    """Mean cosine of the vectors along the last axis with those of the truth."""

    def __init__(self, name: str, output: str, by_label: bool) -> None:
        super().__init__(name)
        self.output, self.by_label = output, by_label

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        own = original[self.output].astype(np.float64)
        if not self.by_label:
            return own
        true = label_array(self.name, label, key, "give the vector of each sample").astype(np.float64)
        if true.size != own.size:
            raise InputProblem(
                f"the metric {self.name} needs a vector as label",
                f"the label of {key}",
                f"{true.size} numbers for {own.size} of the output {self.output}",
                "give no labels, or use retrieval for classes",
            )
        return true.reshape(own.shape)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> float:
        found = outputs[self.output].astype(np.float64)
        if found.shape != truth.shape:
            return -1.0
        a, b = (np.nan_to_num(v).reshape(-1, v.shape[-1] if v.ndim else 1) for v in (found, truth))
        norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        return float(np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-30), (a == b).all(1)).mean())


class Retrieval(AdditiveMetric):
    """Of the ten nearest other samples by cosine, the share that has the same label; without labels the share that is
    also among the original's ten."""

    def __init__(self, name: str, output: str, by_label: bool) -> None:
        super().__init__(name)
        self.output, self.by_label = output, by_label

    def truth(self, original: Outputs, label: Any, key: str) -> Any:
        if not self.by_label:
            return original[self.output].ravel().astype(np.float64)
        if isinstance(label, str) or np.size(label) != 1:
            raise InputProblem(
                f"the metric {self.name} needs one class for each sample",
                f"the label of {key}",
                repr(label)[:40],
                "use cosine for vectors as labels",
            )
        return float(np.ravel(label)[0])

    def sample_value(self, outputs: Outputs, truth: Any, key: str) -> tuple[np.ndarray, Any]:
        return outputs[self.output].ravel().astype(np.float64), truth

    def statistics(self, values: Sequence[Any]) -> np.ndarray:
        most = min(_NEIGHBOURS, len(values) - 1)
        if most < 1:
            return np.ones((len(values), 1))
        near = _nearest(np.stack([v[0] for v in values]), most)
        if self.by_label:
            classes = np.array([v[1] for v in values])
            return np.asarray((classes[near] == classes[:, None]).mean(1, keepdims=True))
        wanted = _nearest(np.stack([v[1] for v in values]), most)
        return np.asarray((near[:, :, None] == wanted[:, None, :]).any(2).mean(1, keepdims=True))


def _nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """Indices of the nearest other vectors: [n, count]."""
    rows = np.nan_to_num(vectors) / np.maximum(np.linalg.norm(np.nan_to_num(vectors), axis=1, keepdims=True), 1e-30)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :count]
