"""Losses of the standard domain: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from typing import Any

import torch

from onnxpress.train.graph.registry import Run, Site, operator
from onnxpress.train.graph.tensors import Tensor


def likelihood(scores: Tensor, labels: Tensor, weight: Tensor, ignored: int | None, reduction: str) -> Tensor:
    """-weight[label] * scores[label] a position (scores [N, C, ...], labels [N, ...]); ignored labels count nothing.

    The mean is over the weights of the labels that count.
    """
    labels = labels.long()
    counts = torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored
    safe = torch.where(counts, labels, torch.zeros_like(labels))
    picked = -scores.gather(1, safe.unsqueeze(1)).squeeze(1)
    importance = counts.to(scores.dtype) if weight is None else weight[safe] * counts
    loss = torch.where(counts, picked * importance, torch.zeros_like(picked))
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / importance.sum()


@operator("NegativeLogLikelihoodLoss", data=(0,))
def _negative_log_likelihood(site: Site) -> Run:
    ignored = site.integer("ignore_index") if site.has("ignore_index") else None
    reduction = site.text("reduction", "mean")
    return lambda x, labels, weight=None: likelihood(x, labels, weight, ignored, reduction)


@operator("SoftmaxCrossEntropyLoss", data=(0,))
def _softmax_cross_entropy(site: Site) -> Run:
    ignored = site.integer("ignore_index") if site.has("ignore_index") else None
    reduction, many = site.text("reduction", "mean"), len(site.node.outputs) > 1

    def run(x: Tensor, labels: Tensor, weight: Tensor = None) -> Any:
        logs = torch.log_softmax(x, 1)
        loss = likelihood(logs, labels, weight, ignored, reduction)
        return (loss, logs) if many else loss

    return run
