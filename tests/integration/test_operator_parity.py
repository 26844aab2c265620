"""Forward parity with the ONNX backend node tests, and with onnxruntime on graphs that hypothesis draws."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from benchmarks import backend_tests  # noqa: E402
from onnxpress.runtime.session import SessionSettings, open_session  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402
from tests import nets  # noqa: E402

# What differs from the standard's numbers, and why; a case that begins to agree must leave this list.
DIFFERENT = {
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime aligns to the whole size, and so does this",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime aligns to the whole size, and so does this",
    "test_cast_FLOAT_to_FLOAT4E2M1": "a NaN has no 4-bit float",
    "test_cast_FLOAT16_to_FLOAT4E2M1": "a NaN has no 4-bit float",
    "test_castlike_FLOAT_to_FLOAT4E2M1": "a NaN has no 4-bit float",
    "test_castlike_FLOAT_to_FLOAT4E2M1_expanded": "a NaN has no 4-bit float",
    "test_castlike_FLOAT16_to_FLOAT4E2M1": "a NaN has no 4-bit float",
    "test_castlike_FLOAT16_to_FLOAT4E2M1_expanded": "a NaN has no 4-bit float",
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": "exponents alone are not a type of torch that computes",
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": "exponents alone are not a type of torch that computes",
}


SMALL_INTEGERS = re.compile(r"test_cast(like)?_FLOAT(16)?_to_U?INT[24](_expanded)?")


def test_backend_node_tests() -> None:
    cases = backend_tests.cases()
    assert len(cases) > 1000
    known = {c.name for c in cases}
    verdicts = {c.name: backend_tests.verdict(backend_tests.by_program, c) for c in cases}
    wrong = {name: why for name, why in verdicts.items() if why}
    different = DIFFERENT.keys() & known
    if not small_integers_wrap():
        different |= {name for name in known if SMALL_INTEGERS.fullmatch(name)}
    assert wrong.keys() == different, wrong


def small_integers_wrap() -> bool:
    """Whether numbers out of range wrap around in the types that the node tests are made with, as the standard's stored
    results do: ml_dtypes 0.7 gives 0 for them."""
    with np.errstate(invalid="ignore"):
        return bool(np.array([8.0], np.float32).astype(ml_dtypes.int4).astype(np.int64)[0] == -8)


def compare(model: ir.Model, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Program and onnxruntime give the same numbers, relative to the largest."""
    expected = open_session(model, SessionSettings(level="none")).run(None, feeds)
    with torch.no_grad():
        results = Program(model)({k: torch.from_numpy(v) for k, v in feeds.items()})
    for want, got in zip(expected, results.values(), strict=True):
        assert want.shape == tuple(got.shape)
        np.testing.assert_allclose(
            got.numpy(), want, rtol=0, atol=tolerance * max(float(np.abs(want).max(initial=0)), 1)
        )


@settings(max_examples=25, deadline=None)
@given(nets.random_nets(), st.integers(1, 3))
def test_random_convolution_nets(model: ir.Model, batch: int) -> None:
    compare(model, {"image": np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)})


UNARY = "Relu Sigmoid Tanh Abs Neg Sin Erf Softplus HardSwish Elu Floor Exp Selu Softsign".split()
BINARY = "Add Sub Mul Max Min".split()


class Drawn:
    """A graph grown from one input by random operators; shapes are followed, so that every graph is valid."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.values: list[tuple[str, tuple[int, ...]]] = [("x", (2, 3, 4))]

    def constant(self, array: Any) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.values.append((name, shape))

    def grow(self) -> None:
        name, shape = self.draw(st.sampled_from(self.values))
        kind = self.draw(
            st.sampled_from(
                ["unary", "binary", "reduce", "transpose", "reshape", "slice", "concat", "matmul", "softmax"]
            )
        )
        axis = self.draw(st.integers(0, len(shape) - 1))
        if kind == "unary":
            self.add(self.draw(st.sampled_from(UNARY)), [name], shape)
        elif kind == "binary":
            other = self.draw(st.sampled_from([v for v, s in self.values if s == shape]))
            self.add(self.draw(st.sampled_from(BINARY)), [name, other], shape)
        elif kind == "reduce":
            op = self.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"]))
            kept = tuple(1 if i == axis else s for i, s in enumerate(shape))
            self.add(op, [name, self.constant(np.array([axis - len(shape)]))], kept, keepdims=1)
        elif kind == "transpose":
            order = self.draw(st.permutations(range(len(shape))))
            self.add("Transpose", [name], tuple(shape[i] for i in order), perm=order)
        elif kind == "reshape":
            flat = (shape[0], int(np.prod(shape[1:])))
            self.add("Reshape", [name, self.constant(np.array([0, -1]))], flat)
        elif kind == "slice":
            step = self.draw(st.sampled_from([1, 2, -1]))
            size = len(range(shape[axis])[::step])
            bounds = (-1, -shape[axis] - 1) if step < 0 else (0, shape[axis])
            parts = [self.constant(np.array([n])) for n in (*bounds, axis, step)]
            self.add("Slice", [name, *parts], tuple(size if i == axis else s for i, s in enumerate(shape)))
        elif kind == "concat":
            self.add("Concat", [name, name], tuple(2 * s if i == axis else s for i, s in enumerate(shape)), axis=axis)
        elif kind == "matmul":
            weight = np.random.default_rng(len(self.nodes)).standard_normal((shape[-1], 3)).astype(np.float32)
            self.add("MatMul", [name, self.constant(weight)], (*shape[:-1], 3))
        else:
            self.add("Softmax", [name], shape, axis=axis)

    def model(self) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4])],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(s))
                for n, s in self.values[-2:]
                if n != "x"
            ],
            self.tensors,
        )
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


@st.composite
def drawn_graphs(draw: st.DrawFn) -> ir.Model:
    drawn = Drawn(draw)
    for _ in range(draw(st.integers(2, 9))):
        drawn.grow()
    return drawn.model()


@settings(max_examples=60, deadline=None)
@given(drawn_graphs(), st.integers(0, 1000))
def test_random_graphs(model: ir.Model, seed: int) -> None:
    compare(model, {"x": np.random.default_rng(seed).standard_normal((2, 3, 4)).astype(np.float32)})
