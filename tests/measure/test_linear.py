"""Layers as matrices: the product of rows and weights is the output of the layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.linear import input_rows, linear, output_rows
from tests import nets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("model", [nets.residual(), nets.mobile(), nets.mlp()], ids=["residual", "mobile", "mlp"])
def test_layers_equal_their_matrices(model: ir.Model) -> None:
    data = nets.samples(model, 3)
    evidence = evidence_for(model, data)
    layers = [(n, layer) for n in evidence.model.graph if (layer := linear(n)) is not None]
    assert layers
    names = sorted({v for _, layer in layers for v in (layer.source, layer.output)})
    for values in evidence.stream(names):
        for node, layer in layers:
            kernel = tuple(node.inputs[1].const_value.shape[2:]) if node.op_type == "Conv" else ()
            x = input_rows(node, values[layer.source], kernel, None)
            wanted = output_rows(node, values[layer.output], None)
            bias = 0 if layer.bias is None else layer.bias
            np.testing.assert_allclose(x @ layer.weight.T + bias, wanted, rtol=1e-3, atol=1e-3)
