"""Losses of the standard: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from typing import Any

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor


def weighted_nll(scores: Tensor, labels: Tensor, weight: Tensor, ignored: int | None, reduction: str) -> Tensor:
    """-weight[label] * scores[label] per position (scores [N, C, ...], labels [N, ...]); ignored labels give 0.

    The mean is weighted by the weights of the labels that are not ignored.
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


@operator("NegativeLogLikelihoodLoss", grad_inputs=(0,))
def _negative_log_likelihood(context: NodeContext) -> Run:
    ignored = context.integer("ignore_index") if context.has_attribute("ignore_index") else None
    reduction = context.text("reduction", "mean")
    return lambda x, labels, weight=None: weighted_nll(x, labels, weight, ignored, reduction)


@operator("SoftmaxCrossEntropyLoss", grad_inputs=(0,))
def _softmax_cross_entropy(context: NodeContext) -> Run:
    ignored = context.integer("ignore_index") if context.has_attribute("ignore_index") else None
    reduction, many = context.text("reduction", "mean"), len(context.node.outputs) > 1

    def run(x: Tensor, labels: Tensor, weight: Tensor = None) -> Any:
        logs = torch.log_softmax(x, 1)
        loss = weighted_nll(logs, labels, weight, ignored, reduction)
        return (loss, logs) if many else loss

    return run
