"""Helpers of the tests of exact reductions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import evidence_for
from onnxpress.model import edit, read
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.exact.reduce import REDUCTIONS
from onnxpress.passes.exact.simplify import SIMPLIFY
from tests import nets

Change = Callable[[np.ndarray, np.ndarray], None]


def reduced(model: ir.Model) -> tuple[ir.Model, list[str]]:
    evidence = evidence_for(model, nets.samples(model, 2))
    done = SIMPLIFY.apply(evidence, REDUCTIONS)
    return done.model, done.notes


def assert_same(a: ir.Model, b: ir.Model) -> None:
    data = nets.samples(a, 6)
    np.testing.assert_allclose(nets.outputs(a, data), nets.outputs(b, data), rtol=1e-5, atol=1e-5)


def changed(model: ir.Model, number: int, change: Change) -> ir.Model:
    """A clone with another weight and bias in weighted layer `number`; `change` modifies copies of them in place."""
    clone = canonical(model)
    node = [n for n in clone.graph if n.op_type in read.WEIGHTED][number]
    arrays = [np.array(read.constant(v)) for v in node.inputs[1:3]]
    change(*arrays)
    for index, array in enumerate(arrays, 1):
        edit.set_input(clone, node, index, array, f"changed{index}")
    return clone


def chain(act: str = "Relu") -> ir.Model:
    net = nets.image_net()
    x = net.op(act, [net.conv("image", 32)], 32)
    return net.model(net.head(net.relu(net.conv(x, 16))), nets.IMAGE, ["N", 10])
