"""Sparse initializers: read as dense ones, by flat positions and by coordinates, in files and in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.model import read
from onnxpress.model.source import open_model
from onnxpress.runtime.session import open_session, run

pytestmark = pytest.mark.unit


def sparse_model(weight: np.ndarray, flat: bool) -> onnx.ModelProto:
    places = np.flatnonzero(weight) if flat else np.argwhere(weight)
    values = numpy_helper.from_array(weight[weight != 0], "w")
    sparse = helper.make_sparse_tensor(
        values, numpy_helper.from_array(places.astype(np.int64), "w_places"), weight.shape
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["N", weight.shape[0]])],
        [info("y", TensorProto.FLOAT, ["N", weight.shape[1]])],
        sparse_initializer=[sparse],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("flat", [True, False])
def test_a_sparse_weight_is_read_as_a_dense_one(flat: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((6, 4)) < 0.6, 0, rng.standard_normal((6, 4))).astype(np.float32)
    proto = sparse_model(weight, flat)
    onnx.save(proto, tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", proto, proto.SerializeToString()):
        model = open_model(source)
        found = read.constant(next(iter(model.graph)).inputs[1])
        np.testing.assert_array_equal(found, weight)
        x = rng.standard_normal((2, 6)).astype(np.float32)
        np.testing.assert_allclose(run(open_session(model), {"x": x})[0], x @ weight, rtol=1e-5, atol=1e-6)
    assert proto.graph.sparse_initializer, "the caller's model stays as it is"
