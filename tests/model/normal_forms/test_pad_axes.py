"""Pad with axes: rewritten to the older form with the same values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.runtime.session import open_session, run

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1]])
def test_amounts_are_given_for_all_axes(axes: list[int]) -> None:
    pads = list(range(1, 2 * len(axes) + 1))
    constants = [
        numpy_helper.from_array(np.array(pads, np.int64), "pads"),
        numpy_helper.from_array(np.array(axes, np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Pad", ["r", "pads", "", "axes"], ["y"], name="pad"),
    ]
    ends = [
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8] if n == "x" else None)] for n in "xy"
    ]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    done = canonical(model)
    (pad,) = [n for n in done.graph if n.op_type == "Pad"]
    assert len([v for v in pad.inputs if v is not None]) == 2
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(open_session(model), feeds)[0], run(open_session(done), feeds)[0])
