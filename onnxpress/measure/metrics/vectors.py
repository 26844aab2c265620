"""Metrics of embeddings: cosine with the truth, and how many of the nearest neighbours stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Outputs, label_array

_NEIGHBOURS = 10
_LEAST_SPREAD = 1e-3  # of one minus the mean cosine between samples: vectors that hardly differ say nothing


class Cosine(AdditiveMetric):
    """Mean cosine of the vectors along the last axis with those of the truth.

    Without labels it is relative to the cosine between the original's vectors of different samples: 1 where nothing
    changed, about 0.5 where all answers are the same vector. Otherwise a model whose vectors lie in a narrow cone (as
    those of many encoders do) could answer with their mean for a cosine of 0.99.
    """

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

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> np.ndarray:
        """The mean cosine, and the mean of the true vectors, each with norm 1: [1 + K]."""
        found = outputs[self.output].astype(np.float64)
        b = np.nan_to_num(truth).reshape(-1, truth.shape[-1] if truth.ndim else 1)
        unit = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-30)
        if found.shape != truth.shape:
            return np.concatenate([[-1.0], unit.mean(0)])
        a = np.nan_to_num(found).reshape(b.shape)
        norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        cosine = np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-30), (a == b).all(1)).mean()
        return np.concatenate([[cosine], unit.mean(0)])

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        cosine = sums[:, 0] / count
        if self.by_label or count < 2:
            return np.asarray(cosine)
        # |mean of unit vectors|^2 is the mean cosine between all pairs, those of a sample with itself among them
        between = ((sums[:, 1:] / count) ** 2).sum(1)
        return np.asarray(1 - (1 - cosine) / np.clip(1 - between, _LEAST_SPREAD, 1))


class Retrieval(AdditiveMetric):
    """Of the ten nearest other samples by cosine (a quarter of them, if that is fewer), the share that has the same
    label; without labels the share that is also among the original's."""

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
        most = min(_NEIGHBOURS, max((len(values) - 1) // 4, 1), len(values) - 1)
        if most < 1:
            return np.ones((len(values), 2))
        near = _nearest(np.stack([v[0] for v in values]), most)
        if self.by_label:
            classes = np.array([v[1] for v in values])
            able = np.minimum((classes[:, None] == classes).sum(1) - 1, most)  # neighbours that can be right
            right = np.minimum((classes[near] == classes[:, None]).sum(1), able)
            return np.stack([right / np.maximum(able, 1), able > 0], axis=1)
        wanted = _nearest(np.stack([v[1] for v in values]), most)
        kept = (near[:, :, None] == wanted[:, None, :]).any(2).mean(1)
        return np.stack([kept, np.ones(len(values))], axis=1)

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), 0.0))


def _nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """Indices of the nearest other vectors: [n, count]."""
    rows = np.nan_to_num(vectors) / np.maximum(np.linalg.norm(np.nan_to_num(vectors), axis=1, keepdims=True), 1e-30)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :count]
