"""Batch normalization of untrained networks: batch statistics in training, running statistics in the result.

A trained network keeps its stored statistics in training (operators/normalize.py); those of an untrained one are of no
use.  Ioffe and Szegedy 2015; the running variance is the unbiased one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from torch.nn import functional

from onnxpress.model import read
from onnxpress.train.graph.compile import Override
from onnxpress.train.graph.registry import Builder, NodeContext, Run
from onnxpress.train.graph.tensors import Tensor, to_torch

_MOMENTUM = 0.05  # weight of a batch in the running statistics


@dataclass
class BatchNormPlan:
    """Batch normalizations of a graph.

    running: running statistics by initializer name, updated as the program runs.
    overrides: by node id.
    """

    running: dict[str, Tensor] = field(default_factory=dict)
    overrides: dict[int, Override] = field(default_factory=dict)


def plan_batch_norm(nodes: Sequence[ir.Node], tensors: Mapping[str, ir.TensorProtocol]) -> BatchNormPlan:
    """The normalizations whose statistics are stored in the graph.  tensors: stored tensors by name."""
    found = BatchNormPlan()
    for node in nodes:
        if (
            node.op_type != "BatchNormalization"
            or not read.standard(node)
            or read.int_attribute(node, "training_mode", 0)
        ):
            continue
        names = [v.name or "" if v is not None else "" for v in node.inputs]
        if len(names) < 5 or not {names[3], names[4]} <= set(tensors):
            continue
        for name in names[3:5]:
            if name not in found.running:
                found.running[name] = to_torch(tensors[name].numpy()).clone()
        found.overrides[id(node)] = Override(_builder(found.running, names[3], names[4]), tuple(names[:3]))
    return found


def _builder(running: Mapping[str, Tensor], mean: str, var: str) -> Builder:
    def build(context: NodeContext) -> Run:
        epsilon = context.number("epsilon", 1e-5)

        def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            if x.numel() == x.shape[1]:  # one value per channel has no variance: use the running statistics
                return functional.batch_norm(x, running[mean], running[var], scale, bias, False, 0.0, epsilon)
            return functional.batch_norm(x, running[mean], running[var], scale, bias, True, _MOMENTUM, epsilon)

        return run

    return build
