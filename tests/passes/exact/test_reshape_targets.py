"""Computed Reshape targets: which are folded, and that every size of the free axes still works."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.model.files import to_bytes
from onnxpress.passes.exact.reshape_targets import fold_reshape_targets
from onnxpress.runtime.session import open_session, run

pytestmark = pytest.mark.unit


def heads(free: list[object], swapped: bool = False) -> ir.Model:
    """[N, L, 8] to [N, L, 2, 4] and back with sizes from Shape, as exporters write it; swapped: to [L, N, 2, 4]."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"])]
    for place, name in enumerate("nl"):
        nodes.append(helper.make_node("Gather", ["shape", f"at{place}"], [name]))
        nodes.append(helper.make_node("Unsqueeze", [name, "zero"], [f"{name}1"]))
    order = ["l1", "n1"] if swapped else ["n1", "l1"]
    nodes += [
        helper.make_node("Concat", [*order, "two", "four"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["split"], name="split"),
        helper.make_node("Relu", ["split"], ["active"]),
        helper.make_node("Concat", [*order, "eight"], ["back"], axis=0),
        helper.make_node("Reshape", ["active", "back"], ["y"], name="join"),
    ]
    constants = {
        "at0": np.int64(0),
        "at1": np.int64(1),
        **{k: np.array([v]) for k, v in (("zero", 0), ("two", 2), ("four", 4), ("eight", 8))},
    }
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("free", [["N", "L", 8], [None, None, 8], [1, "L", 8], ["N", "N", 8]])
def test_known_targets_are_folded(free: list[object]) -> None:
    model = heads(free)
    before = to_bytes(model)
    assert fold_reshape_targets(model) == 2
    assert [n.op_type for n in model.graph] == ["Reshape", "Relu", "Reshape"]
    for count, length in (
        ((1, 1), (1, 5), (1, 7)) if free[0] == 1 else ((3, 3), (1, 1)) if free[1] == "N" else ((1, 5), (3, 2), (2, 1))
    ):
        feeds = {"x": np.random.default_rng(0).standard_normal((count, length, 8)).astype(np.float32)}
        old, new = (
            run(open_session(m), feeds)[0] for m in (onnx.load_from_string(before).SerializeToString(), to_bytes(model))
        )
        np.testing.assert_array_equal(old, new)


def test_targets_of_swapped_axes_stay_computed() -> None:
    model = heads(["N", "L", 8], swapped=True)
    assert fold_reshape_targets(model) == 1, "the way back keeps both where they are"
    assert [n.op_type for n in model.graph].count("Shape") == 1
    feeds = {"x": np.ones((2, 3, 8), np.float32)}
    assert run(open_session(model), feeds)[0].shape == (3, 2, 8)


def test_declared_shapes_of_inner_values_are_ignored() -> None:
    """Exporters declare the sizes of the sample they traced."""
    model = heads(["N", "L", 8])
    for node in model.graph:
        for value in node.outputs:
            if value.name == "split":
                value.shape = ir.Shape([1, 5, 2, 4])
    assert fold_reshape_targets(model) == 2
    feeds = {"x": np.zeros((2, 3, 8), np.float32)}
    assert run(open_session(model), feeds)[0].shape == (2, 3, 8)
