"""What a Program promises beyond single operators: weights and their way back, regions, sub-graphs, shapes, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

torch = pytest.importorskip("torch")

from onnxpress.errors import InputProblem  # noqa: E402
from onnxpress.model import submodels  # noqa: E402
from onnxpress.runtime.session import SessionSettings, open_session  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402
from tests import nets  # noqa: E402
from tests.train.graphs import body, chain  # noqa: E402

pytestmark = pytest.mark.unit


def images(batch: int = 2) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)}


def torched(feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: torch.from_numpy(v) for k, v in feeds.items()}


def reference(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(open_session(model, SessionSettings(level="none")).run(None, feeds)[0])


def first(program: Program, feeds: dict[str, np.ndarray]) -> Any:
    return next(iter(program(torched(feeds)).values()))


def shaken(program: Program) -> None:
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def network(
    nodes: list[tuple[str, str, str, dict[str, Any]]], tensors: dict[str, np.ndarray], shape: list[Any], opset: int = 17
) -> ir.Model:
    """A float graph from x to y."""
    graph = helper.make_graph(
        [helper.make_node(op, i.split(), o.split(), name=f"n_{o.split()[0]}", **a) for op, i, o, a in nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(a, n) for n, a in tensors.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9))


@pytest.mark.parametrize("build", [nets.residual, nets.mobile, lambda: nets.residual(norm=True)])
def test_changed_weights_are_written_back(build: Any) -> None:
    model = build()
    before = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    program = Program(model)
    shaken(program)
    written = program.to_model()
    expected = first(program, images()).detach().numpy()
    np.testing.assert_allclose(reference(written, images()), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - reference(model, images())).max() > 1e-2
    assert [n.op_type for n in written.graph] == [n.op_type for n in model.graph]
    for name, array in before.items():
        assert np.array_equal(model.graph.initializers[name].const_value.numpy(), array), "the given model is untouched"


def test_every_weight_and_nothing_else_is_trained() -> None:
    model = nets.residual(norm=True)
    program = Program(model)
    first(program, images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in program.parameters())
    norms = [n for n in model.graph if n.op_type == "BatchNormalization"]
    statistics = {v.name for n in norms for v in n.inputs[3:] if v is not None}
    assert len(statistics) == 2 * len(norms) > 0
    assert set(program.names) == set(model.graph.initializers) - statistics


def test_settings_are_not_weights() -> None:
    numbers = {
        "w": np.ones((4, 4), np.float32),
        "eps": np.array(1e-5, np.float32),
        "scales": np.array([1, 2], np.float32),
        "mask": np.array([0, 0, -np.inf, 0], np.float32),
    }
    nodes = [
        ("MatMul", "x w", "a", {}),
        ("Add", "a eps", "b", {}),
        ("Add", "b mask", "c", {}),
        ("Softmax", "c", "d", {}),
        ("Resize", "d  scales", "y", {}),
    ]
    model = network(nodes, numbers, ["N", 4])
    model.graph.node("n_y").resize_inputs(3)
    resize = model.graph.node("n_y")
    resize.replace_input_with(2, resize.inputs[1])
    resize.replace_input_with(1, None)
    assert Program(model).names == ["w"]


def test_a_shared_initializer_is_one_parameter() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = network(
        [("MatMul", "x w", "a", {}), ("Tanh", "a", "b", {}), ("MatMul", "b w", "y", {})], {"w": weight}, ["N", 4]
    )
    program = Program(model)
    assert program.names == ["w"]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    next(iter(program({"x": x}).values())).sum().backward()
    by_hand = torch.from_numpy(weight.copy()).requires_grad_()
    (torch.tanh(x @ by_hand) @ by_hand).sum().backward()
    torch.testing.assert_close(program.parameter("w").grad, by_hand.grad)


def test_constant_nodes_are_trained_and_written() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    model = network(
        [("Constant", "", "w", {"value": numpy_helper.from_array(weight)}), ("MatMul", "x w", "y", {})], {}, ["N", 4]
    )
    program = Program(model)
    assert program.names == ["w"]
    shaken(program)
    feeds = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(reference(program.to_model(), feeds), first(program, feeds).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types_keep_theirs(kind: type[np.floating]) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2)).astype(kind)
    nodes = [
        ("Cast", "x", "a", {"to": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}),
        ("MatMul", "a w", "b", {}),
        ("Cast", "b", "y", {"to": 1}),
    ]
    model = network(nodes, {"w": weight}, ["N", 4])
    program = Program(model)
    assert program.names == ["w"]
    shaken(program)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}
    written = program.to_model()
    assert written.graph.initializers["w"].const_value.numpy().dtype == kind
    np.testing.assert_allclose(reference(written, feeds), first(program, feeds).detach().numpy(), rtol=5e-3, atol=5e-3)


def test_only_the_named_weights_are_trained() -> None:
    model = nets.residual()
    name = next(iter(model.graph.initializers))
    program = Program(model, trainable=[name])
    assert program.names == [name]
    assert len(list(program.parameters())) == 1
    np.testing.assert_allclose(
        first(program, images()).detach().numpy(), reference(model, images()), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(InputProblem, match="cannot train a value \\(nowhere\\)"):
        Program(model, trainable=["nowhere"])


def test_taps_give_inner_values_and_change_nothing() -> None:
    model = nets.residual()
    program = Program(model)
    relus = [n.outputs[0].name or "" for n in model.graph if n.op_type == "Relu"]
    plain = first(program, images())
    tapped = program(torched(images()), extra_outputs=relus)
    torch.testing.assert_close(tapped[program.outputs[0]], plain)
    inner = open_session(submodels.outputs_only(model, relus), SessionSettings(level="none")).run(None, images())
    for name, want in zip(relus, inner, strict=True):
        np.testing.assert_allclose(tapped[name].detach().numpy(), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputProblem, match="a value is not computed \\(nowhere\\)"):
        program(torched(images()), extra_outputs=["nowhere"])


def test_a_region_holds_only_what_lies_between() -> None:
    """Operators outside a region may be unknown; its weights are only its own."""
    w = {"w": np.eye(4, dtype=np.float32) * 2, "v": np.eye(4, dtype=np.float32)}
    nodes = [
        ("MatMul", "x v", "a", {}),
        ("Strange", "a", "b", {"domain": "far.away"}),
        ("MatMul", "b w", "c", {}),
        ("Strange", "c", "y", {"domain": "far.away"}),
    ]
    model = network(nodes, w, ["N", 4])
    program = Program(model, inputs=["b"], outputs=["c"])
    assert program.names == ["w"]
    torch.testing.assert_close(program({"b": torch.ones(1, 4)})["c"], torch.full((1, 4), 2.0))
    with pytest.raises(InputProblem) as caught:
        Program(model)
    assert caught.value.line().startswith("cannot train through Strange (node n_b, domain far.away): Strange version 1")
    assert "\n" not in caught.value.line()
    with pytest.raises(InputProblem, match="a value is not given \\(x\\): n_a needs it"):
        Program(model, inputs=["b"], outputs=["a"])


def test_sizes_follow_the_input() -> None:
    """A Reshape whose target is computed from Shape, at several batch sizes and lengths."""
    weight = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    nodes = [
        ("Shape", "x", "s", {}),
        ("Slice", "s zero two", "lead", {}),
        ("Concat", "lead last", "target", {"axis": 0}),
        ("Reshape", "x target", "a", {}),
        ("MatMul", "a w", "y", {}),
    ]
    ints = {"zero": np.array([0]), "two": np.array([2]), "last": np.array([12])}
    model = network(nodes, {"w": weight, **ints}, ["N", "L", 3, 4])
    program = Program(model)
    for shape in ((1, 2, 3, 4), (3, 1, 3, 4), (2, 5, 3, 4)):
        feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        np.testing.assert_allclose(
            first(program, feeds).detach().numpy(), reference(model, feeds), rtol=1e-4, atol=1e-5
        )


def test_weights_inside_branches_are_trained_and_written() -> None:
    yes, no = (body([], ["r"], ("Mul", "x u", "r")) for _ in range(2))
    for graph, number in ((yes, 2.0), (no, 3.0)):
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        graph.node[0].input[1] = f"u{number:.0f}"
        graph.initializer.append(numpy_helper.from_array(np.full(4, number, np.float32), f"u{number:.0f}"))
    nodes = [
        ("ReduceSum", "x", "s", {"keepdims": 0}),
        ("Greater", "s zero", "c", {}),
        ("If", "c", "y", {"then_branch": yes, "else_branch": no}),
    ]
    model = network(nodes, {"zero": np.array(0, np.float32)}, ["N", 4])
    program = Program(model)
    assert set(program.names) == {"u2", "u3"}
    shaken(program)
    for sign in (1.0, -1.0):
        feeds = {"x": np.full((1, 4), sign, np.float32)}
        np.testing.assert_allclose(
            first(program, feeds).detach().numpy(), reference(program.to_model(), feeds), rtol=1e-5
        )


def test_functions_of_the_model_are_inlined() -> None:
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 17, "own": 1]>
        net (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1,2,3,4,5,6,7,8}> { y = own.half (x, w) }
        <domain: "own", opset_import: ["": 17]>
        half (a, b) => (c) { d = MatMul (a, b) e = Constant <value_float = 0.5> () c = Mul (d, e) }"""
    )
    model = ir.from_proto(proto)
    program = Program(model)
    assert program.names == ["w"]
    shaken(program)
    feeds = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(reference(program.to_model(), feeds), first(program, feeds).detach().numpy(), rtol=1e-5)


def test_operators_without_an_entry_use_their_function_body() -> None:
    windows = chain({"n": np.array(8)}, ("HannWindow", "n", "w", {"output_datatype": 11}), opset=17)
    result = first(Program(windows.model()), windows.feeds)
    torch.testing.assert_close(result, torch.hann_window(8, dtype=torch.float64))


def test_a_missing_input_and_wrong_shapes_are_one_line() -> None:
    program = Program(nets.mlp())
    with pytest.raises(InputProblem, match="an input is missing \\(tokens\\)"):
        program({})
    with pytest.raises(InputProblem, match="cannot train through MatMul") as caught:
        program({"tokens": torch.zeros(1, 5, 3)})
    assert "\n" not in caught.value.line()


def test_broadcasting_of_old_operator_sets_is_refused() -> None:
    model = network(
        [("Add", "x w", "y", {"broadcast": 1, "axis": 1})], {"w": np.ones(4, np.float32)}, ["N", 4, 2], opset=6
    )
    with pytest.raises(InputProblem, match="broadcasting of version 6"):
        Program(model)
