"""The checker takes operators of onnxruntime in the standard domain, and still finds what is wrong beside them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxpress
from onnxpress.model.checker import check_graph
from onnxpress.model.signature import signature
from onnxpress.model.source import open_model

pytestmark = pytest.mark.unit


def normalized(last: str = "b") -> onnx.ModelProto:
    scale = numpy_helper.from_array(np.ones(8, np.float32), "scale")
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m"),
        helper.make_node("SimplifiedLayerNormalization", ["a", "scale"], ["b"], name="n", axis=-1, epsilon=1e-5),
        helper.make_node("Relu", [last], ["y"], name="r"),
    ]
    ends = [[helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 8])] for n in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, [scale, weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_operators_of_the_runtime_are_taken() -> None:
    check_graph(normalized())
    check_graph(normalized().SerializeToString())
    with pytest.raises(onnx.checker.ValidationError):
        check_graph(normalized("absent"))
    done = onnxpress.simplify(normalized())
    assert "SimplifiedLayerNormalization" in [n.op_type for n in done.model.graph]


def test_inputs_with_defaults_stay_inputs() -> None:
    gain = numpy_helper.from_array(np.array(2.0, np.float32), "gain")
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="m"), helper.make_node("Mul", ["a", "gain"], ["y"])]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 16]) for n in "xy"]
    named = [helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [])]
    listed = [helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [16, 16])]
    for more, kept in ((named, ["gain"]), ([*named, *listed], [])):
        graph = helper.make_graph(nodes, "g", [ends[0], *more], ends[1:], [gain, weight])
        model = open_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        assert [s.name for s in signature(model).defaults] == kept
        done = onnxpress.half(model)
        assert [s.name for s in signature(done.model).defaults] == kept
