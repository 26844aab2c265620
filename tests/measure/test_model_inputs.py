"""Synthetic samples: sizes and ids that a model runs on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.errors import InputProblem
from onnxpress.measure import model_inputs
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.model_inputs import remember_shapes, synthetic_samples
from onnxpress.runtime.session import open_session, run
from tests import nets

pytestmark = pytest.mark.unit


def sound(channels: int, kernels: tuple[tuple[int, int], ...]) -> ir.Model:
    """Convolutions (size, stride) over a free length, of a free number of channels that has to be one number."""
    net = nets.Net()
    net.widths["x"] = channels
    value = "x"
    for size, stride in kernels:
        weight = net.constant(np.ones((4, net.widths[value], size), np.float32))
        value = net.op("Conv", [value, weight], 4, strides=[stride])
    return net.model(value, {"x": ["N", "C", "T"]}, ["N", 4, "t"])


def assert_runs(model: ir.Model, count: int = 2) -> None:
    session = open_session(model)
    for batch in synthetic_samples(model, count).batches(1):
        assert run(session, batch.inputs)
    assert evidence_for(model, None).trace.shapes


def test_a_length_is_long_enough_for_strided_convolutions() -> None:
    assert_runs(sound(3, ((10, 5), (3, 2), (3, 2))))


def test_a_free_axis_that_must_be_one_beside_one_that_must_be_long() -> None:
    assert_runs(sound(1, ((9, 4), (9, 2))))


def test_ids_lie_within_a_small_table() -> None:
    table = numpy_helper.from_array(np.ones((5, 4), np.float32), "table")
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "L"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L", 4])
    proto = helper.make_model(
        helper.make_graph([node], "g", [ids], [out], [table]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert_runs(ir.from_proto(proto))


def test_where_nothing_runs_the_usual_sizes_are_given() -> None:
    model = sound(7, ((3, 1),))  # not among the sizes that are tried
    assert next(iter(synthetic_samples(model, 1).batches(1))).inputs["x"].shape[0] == 1


def test_shapes_that_a_user_names_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_inputs, "_FOUND", {})
    model = sound(7, ((3, 1),))
    with pytest.raises(InputProblem, match="x=1,7"):
        remember_shapes(model, {"x": (1, 7)})
    with pytest.raises(InputProblem):
        remember_shapes(model, {"x": (1, 5, 20)})  # does not run
    remember_shapes(model, {"x": (2, 7, 20)})
    assert next(iter(synthetic_samples(model, 1).batches(1))).inputs["x"].shape == (1, 7, 20)
    assert_runs(model)
