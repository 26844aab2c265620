"""One operator on given arrays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.exact.evaluation import evaluate

pytestmark = pytest.mark.unit


def test_constants_and_given_arrays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y)
    <float low = {-1.0}, float high = {2.0}, bool[2] m = {1, 0}>
    { c = Clip(x, low, high)  y = Where(m, c, low) }"""
    model = canonical(ir.from_proto(onnx.parser.parse_model(text)))
    clip, where = model.graph
    array = np.array([[-3, 0.5], [9, -9]], np.float32)
    np.testing.assert_array_equal(evaluate(model, clip, {"x": array}), [[-1, 0.5], [2, -1]])
    np.testing.assert_array_equal(evaluate(model, where, {"c": array}), [[-3, -1], [9, -1]])
