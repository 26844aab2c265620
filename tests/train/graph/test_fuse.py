"""Parts that torch computes in one kernel: found in every spelling, equal in numbers and gradients, absent where
cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from onnxpress.runtime.session import SessionSettings, open_session  # noqa: E402
from onnxpress.train.graph import fuse  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402

pytestmark = pytest.mark.unit

Node = tuple[str, str, str, dict[str, Any]]
NUMBERS = {
    "two": np.array(2, np.float32),
    "eps": np.array(1e-5, np.float32),
    "root": np.array(2**0.5, np.float32),
    "unroot": np.array([0.5**0.5], np.float32),
    "one": np.array(1, np.float32),
    "half": np.array(0.5, np.float32),
    "third": np.array(3, np.float32),
    "gamma": np.linspace(0.5, 1.5, 6, dtype=np.float32),
    "beta": np.linspace(-1, 1, 6, dtype=np.float32),
    "mask": np.where(np.tri(4) > 0, 0, -1e9).astype(np.float32),
}
CENTRED: list[Node] = [("ReduceMean", "x", "m", {"axes": [-1]}), ("Sub", "x m", "d", {})]
ROOT: list[Node] = [
    ("ReduceMean", "q", "v", {"axes": [-1]}),
    ("Add", "v eps", "ve", {}),
    ("Sqrt", "ve", "s", {}),
    ("Div", "d s", "n", {}),
]
SPELLINGS: dict[str, list[Node]] = {
    "norm by Pow": [
        *CENTRED,
        ("Pow", "d two", "q", {}),
        *ROOT,
        ("Mul", "n gamma", "g", {}),
        ("Add", "g beta", "y", {}),
    ],
    "norm by Mul": [*CENTRED, ("Mul", "d d", "q", {}), *ROOT, ("Mul", "gamma n", "g", {}), ("Add", "beta g", "y", {})],
    "gelu by Div": [
        ("Div", "x root", "a", {}),
        ("Erf", "a", "e", {}),
        ("Add", "e one", "g", {}),
        ("Mul", "x g", "p", {}),
        ("Mul", "p half", "y", {}),
    ],
    "gelu by Mul": [
        ("Mul", "x unroot", "a", {}),
        ("Erf", "a", "e", {}),
        ("Add", "one e", "g", {}),
        ("Mul", "x half", "h", {}),
        ("Mul", "h g", "y", {}),
    ],
    "attention": [
        ("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "x t", "a", {}),
        ("Div", "a third", "b", {}),
        ("Add", "mask b", "c", {}),
        ("Softmax", "c", "p", {"axis": -1}),
        ("MatMul", "p x", "y", {}),
    ],
    "attention without a mask": [
        ("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "x t", "a", {}),
        ("Softmax", "a", "p", {"axis": -1}),
        ("MatMul", "p x", "y", {}),
    ],
}


def graph(nodes: list[Node]) -> ir.Model:
    used = {name for _, i, _, _ in nodes for name in i.split()}
    proto = helper.make_graph(
        [helper.make_node(op, i.split(), o.split(), name=f"n_{o}", **a) for op, i, o, a in nodes],
        "part",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 4, 6])],
        [numpy_helper.from_array(a, n) for n, a in NUMBERS.items() if n in used],
    )
    return ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def value() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 2, 4, 6)).astype(np.float32)


def gradients(program: Program) -> tuple[Any, list[Any]]:
    x = torch.from_numpy(value()).requires_grad_()
    y = program({"x": x})["y"]
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in program.parameters())]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_part_is_found_and_means_the_same(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(SPELLINGS[spelling])
    trained = [n for n in ("gamma", "beta") if n in model.graph.initializers]
    nodes = list(model.graph)
    held = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None}
    assert list(fuse.fuse_patterns(nodes, ["x"], held, trained)) == [id(nodes[-1])]
    fused, found = gradients(Program(model, trainable=trained))
    np.testing.assert_allclose(
        fused.numpy(),
        open_session(model, SessionSettings(level="none")).run(None, {"x": value()})[0],
        rtol=1e-4,
        atol=1e-5,
    )
    monkeypatch.setattr(fuse, "fuse_patterns", lambda *_: {})
    plain, expected = gradients(Program(model, trainable=trained))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_inner_values_of_a_part_can_still_be_read() -> None:
    program = Program(graph(SPELLINGS["attention"]))
    shares = program({"x": torch.from_numpy(value())}, extra_outputs=["p"])["p"]
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 2, 4))


def test_a_region_that_begins_inside_a_part_uses_what_it_is_given() -> None:
    program = Program(graph(SPELLINGS["attention"]), inputs=["x", "b"], outputs=["y"])
    x = torch.from_numpy(value())
    even = program({"x": x, "b": torch.zeros(3, 2, 4, 4)})["y"]
    torch.testing.assert_close(even[:, :, 3], x.mean(2))


@pytest.mark.parametrize(
    ("spelling", "name"), [("norm by Pow", "two"), ("gelu by Div", "half"), ("gelu by Div", "root")]
)
def test_other_numbers_are_other_functions(spelling: str, name: str) -> None:
    model = graph(SPELLINGS[spelling])
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(np.array(0.7, np.float32), name=name)
    held = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None}
    assert fuse.fuse_patterns(list(model.graph), ["x"], held, []) == {}


def test_a_trained_number_is_not_taken_for_fixed() -> None:
    model = graph(SPELLINGS["gelu by Mul"])
    program = Program(model, trainable=["unroot"])
    program({"x": torch.from_numpy(value())})["y"].sum().backward()
    assert program.parameter("unroot").grad.abs().sum() > 0


def test_what_only_matmul_broadcasts_is_computed_plainly() -> None:
    nodes: list[Node] = [
        ("ReduceMean", "x", "k", {"axes": [1], "keepdims": 1}),
        ("Transpose", "k", "t", {"perm": [0, 1, 3, 2]}),
    ]
    nodes += [("MatMul", "x t", "a", {}), ("Softmax", "a", "p", {"axis": -1}), ("MatMul", "p x", "y", {})]
    model = graph(nodes)
    expected = open_session(model, SessionSettings(level="none")).run(None, {"x": value()})[0]
    got = Program(model)({"x": torch.from_numpy(value())})["y"]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
