"""Changes of graphs: Identity nodes, and stated shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.model import edit
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.runtime.session import open_session, run

pytestmark = pytest.mark.unit

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def built(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> ir.Model:
    graph = helper.make_graph(nodes, "g", inputs, [info(o, ["N", 4]) for o in outputs])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def assert_same(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    done = canonical(model)
    onnx.checker.check_model(to_bytes(done), full_check=True)
    for wanted, found in zip(run(open_session(model), feeds), run(open_session(done), feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
    return done


def identities(model: ir.Model) -> int:
    return sum(n.op_type == "Identity" for n in model.graph.all_nodes())


X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def test_an_inner_identity_goes_and_an_output_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    done = assert_same(built(nodes, [info("x", ["N", 4])], ["y"]), X)
    assert identities(done) == 0
    assert done.graph.outputs[0].name == "y"


def test_one_value_under_two_names_keeps_both() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
    done = assert_same(built(nodes, [info("x", ["N", 4])], ["y", "z"]), X)
    assert [o.name for o in done.graph.outputs] == ["y", "z"]


def test_a_branch_that_returns_an_outer_value_keeps_its_identity() -> None:
    one = helper.make_graph([helper.make_node("Neg", ["h"], ["n"])], "then", [], [info("n")])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["same"])], "else", [], [info("same")])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=one, else_branch=other),
    ]
    model = built(nodes, [info("x", ["N", 4]), info("c", [], TensorProto.BOOL)], ["y"])
    for choice in (True, False):
        assert identities(assert_same(model, {**X, "c": np.array(choice)})) == 1


def test_a_loop_that_returns_its_state_twice_returns_it_twice() -> None:
    step = helper.make_node("Add", ["state", "row"], ["next"])
    body = helper.make_graph(
        [step, helper.make_node("Identity", ["next"], ["out"])],
        "body",
        [info("state", [4]), info("row", [4])],
        [info("next", [4]), info("out", [4])],
    )
    start = helper.make_node("Constant", [], ["s0"], value=numpy_helper.from_array(np.zeros(4, np.float32)))
    scan = helper.make_node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    shaped = helper.make_node("Reshape", ["last", "shape"], ["z"])
    shape = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 4], np.int64)))
    model = built([start, shape, scan, shaped], [info("x", ["N", 4])], ["y", "z"])
    assert_same(model, X)


def test_of_a_resize_the_name_of_the_first_size_stays() -> None:
    """Nothing infers it again; other sizes do not stay."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,3,16,16] z)
    <float[4] s = {1,1,2,2}> { y=Relu(x)  r=Resize<mode="nearest">(y,,s)  z=Relu(r) }"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    values = {v.name: v for n in model.graph for v in n.outputs}
    values["r"].shape = ir.Shape(["N", 3, 16, 16])
    edit.forget_shapes(model)
    assert values["y"].shape is None
    assert values["r"].shape == ir.Shape(["N", None, None, None])
    values["r"].shape = ir.Shape([2, 3, 16, 16])
    edit.forget_shapes(model)
    assert values["r"].shape is None
