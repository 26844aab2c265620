"""Batch normalization as training from scratch needs it: by the batch's own statistics, whose running means are kept.

A trained file is trained on with the statistics it stores (operators/normalize.py); a network that was never trained has
none worth keeping.  Ioffe and Szegedy 2015; the running variance is the unbiased one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from torch.nn import functional

from onnxpress.model import read
from onnxpress.train.graph.compile import Override
from onnxpress.train.graph.registry import Builder, Run, Site
from onnxpress.train.graph.tensors import Tensor, to_torch

_MOMENTUM = 0.05  # of a batch in the running statistics


@dataclass
class Statistics:
    """running: the statistics by initializer name, which change as the program runs; overrides: by node id."""

    running: dict[str, Tensor] = field(default_factory=dict)
    overrides: dict[int, Override] = field(default_factory=dict)


def plan(nodes: Sequence[ir.Node], held: Mapping[str, ir.TensorProtocol]) -> Statistics:
    """The normalizations whose statistics are stored in the graph."""
    found = Statistics()
    for node in nodes:
        if (
            node.op_type != "BatchNormalization"
            or not read.standard(node)
            or read.int_attribute(node, "training_mode", 0)
        ):
            continue
        names = [v.name or "" if v is not None else "" for v in node.inputs]
        if len(names) < 5 or not {names[3], names[4]} <= set(held):
            continue
        for name in names[3:5]:
            if name not in found.running:
                found.running[name] = to_torch(held[name].numpy()).clone()
        found.overrides[id(node)] = Override(_built(found.running, names[3], names[4]), tuple(names[:3]))
    return found


def _built(running: Mapping[str, Tensor], mean: str, var: str) -> Builder:
    def build(site: Site) -> Run:
        epsilon = site.number("epsilon", 1e-5)

        def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            if x.numel() == x.shape[1]:  # one number a channel has no spread: the running statistics serve
                return functional.batch_norm(x, running[mean], running[var], scale, bias, False, 0.0, epsilon)
            return functional.batch_norm(x, running[mean], running[var], scale, bias, True, _MOMENTUM, epsilon)

        return run

    return build
