"""Weights inside If and Loop: int8 by quantize, fewer bits by share and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress import quantize, weights
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.int8.quantize import QUANTIZE
from onnxpress.passes.int8.subgraph_weights import quantizable_subgraph_weights
from onnxpress.passes.weights.weights import WeightsOptions
from onnxpress.plan.plan import apply_plan
from tests import nets

WIDTH = 32


def branching(constant: bool = False) -> ir.Model:
    """A layer, then one of two layers, depending on the sum of the input; both branches use the same weight name.

    constant: weights are Constant nodes of the branches, as written by torch.
    """
    rng = np.random.default_rng(0)

    def body(name: str, op: str) -> onnx.GraphProto:
        held = numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 6).astype(np.float32), "w")
        made = [helper.make_node("Constant", [], ["w"], value=held)] if constant else []
        nodes = [
            *made,
            helper.make_node("MatMul", ["h", "w"], [f"{name}_y"]),
            helper.make_node(op, [f"{name}_y"], [f"{name}_z"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_z", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], [] if constant else [held])

    first = numpy_helper.from_array((rng.standard_normal((8, WIDTH)) / 3).astype(np.float32), "first")
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="front"),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["more"]),
        helper.make_node(
            "If", ["more"], ["y"], name="choice", then_branch=body("a", "Relu"), else_branch=body("b", "Tanh")
        ),
    ]
    return _model(nodes, [first, numpy_helper.from_array(np.float32(0), "zero")])


def looping() -> ir.Model:
    """Three iterations of x <- tanh(x w) in a Loop; the number is computed, so that the loop cannot be unrolled."""
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 6).astype(np.float32), "w")
    first = numpy_helper.from_array((rng.standard_normal((8, WIDTH)) / 3).astype(np.float32), "first")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["s_w"]),
            helper.make_node("Tanh", ["s_w"], ["s_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("s", TensorProto.FLOAT, ["N", WIDTH]),
        ],
        [info("go_out", TensorProto.BOOL, []), info("s_out", TensorProto.FLOAT, ["N", WIDTH])],
        [w],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="front"),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "three"], ["number"]),
        helper.make_node("Cast", ["number"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "h"], ["y"], name="loop", body=body),
    ]
    return _model(
        nodes, [first, *(numpy_helper.from_array(np.float32(n), name) for n, name in ((0, "zero"), (3, "three")))]
    )


def _model(nodes: list[onnx.NodeProto], held: list[onnx.TensorProto]) -> ir.Model:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [info("x", TensorProto.FLOAT, ["N", 8])], [info("y", TensorProto.FLOAT, ["N", WIDTH])], held
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


MODELS = {"if": branching(), "if-constants": branching(constant=True), "loop": looping()}


@pytest.mark.parametrize("name", MODELS)
def test_subgraph_weights_are_int8_and_outputs_are_kept(name: str) -> None:
    model = MODELS[name]
    data = nets.samples(model, 32)
    done = quantize(model, data)
    onnx.checker.check_model(to_bytes(done.model), full_check=True)
    floats = [
        v
        for v in done.model.graph.initializers.values()
        if v.dtype == ir.DataType.FLOAT and v.const_value.size >= WIDTH * 8
    ]
    assert not floats, "neither bodies nor the layer in front keep float weights"
    bodies = [v for g in done.model.graph.subgraphs() for v in g.initializers.values()]
    assert all(v.const_value.size < WIDTH for v in bodies)
    wanted, found = nets.outputs(model, data), nets.outputs(done.model, data)
    assert ((found - wanted) ** 2).mean() < 1e-3 * (wanted**2).mean()
    assert to_bytes(apply_plan(done.plan, model, data).model) == to_bytes(done.model)


def test_weights_of_equal_names_are_kept_apart() -> None:
    """The branches' weights of equal names must not be confused in the outer graph."""
    model = MODELS["if"]
    data = nets.samples(model, 32)
    lifted = canonical(model)
    assert len(quantizable_subgraph_weights(lifted)) == 2
    np.testing.assert_array_equal(nets.outputs(lifted, data), nets.outputs(model, data))


def test_low_bit_weights_include_subgraphs() -> None:
    model = MODELS["loop"]
    data = nets.samples(model, 32)
    done = weights(model, data, options=WeightsOptions(bits=8))
    assert not [
        v
        for v in done.model.graph.initializers.values()
        if v.dtype == ir.DataType.FLOAT and v.const_value.size >= WIDTH * 8
    ]
    wanted, found = nets.outputs(model, data), nets.outputs(done.model, data)
    assert ((found - wanted) ** 2).mean() < 1e-3 * (wanted**2).mean()


def test_only_subgraph_weights_where_nothing_else_can_be_int8() -> None:
    model = MODELS["loop"]
    done = quantize(model, nets.samples(model, 8), exclude=("front",))
    assert any("weights of sub-graphs" in note for note in done.notes)


def test_a_plan_for_another_model_is_one_line() -> None:
    evidence = evidence_for(nets.mlp(), nets.samples(nets.mlp(), 8))
    with pytest.raises(InputProblem, match="no sub-graph of the model reads"):
        QUANTIZE.apply(evidence, [{"inner": ["w"]}])


def test_files_are_smaller(tmp_path: Path) -> None:
    model = MODELS["loop"]
    done = quantize(model, nets.samples(model, 8), output=tmp_path / "small.onnx")
    assert done.bytes_after < 0.65 * done.bytes_before
