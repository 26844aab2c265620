"""Quantized files as programs: the numbers of onnxruntime, gradients by LSQ, integers and scales written back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from onnxpress.measure.evidence import evidence_for  # noqa: E402
from onnxpress.passes.int8.qdq import placement  # noqa: E402
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe  # noqa: E402
from onnxpress.passes.int8.quantize import quantize  # noqa: E402
from onnxpress.runtime.session import SessionSettings, open_session  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402
from tests import nets  # noqa: E402

pytestmark = pytest.mark.unit


def int8(model: ir.Model) -> ir.Model:
    evidence = evidence_for(model, nets.samples(model, 24))
    return quantize(
        evidence, placement.default_nodes(evidence.model, evidence.trace), QuantizationRecipe(), True, True
    ).model


def feeds_for(model: ir.Model) -> dict[str, np.ndarray]:
    return dict(next(iter(nets.samples(model, 8).batches(8))).inputs)


def answers(program: Program, feeds: dict[str, np.ndarray]) -> Any:
    return next(iter(program({k: torch.from_numpy(v) for k, v in feeds.items()}).values()))


def close(model: ir.Model, feeds: dict[str, np.ndarray], given: Any, flips: float) -> None:
    """Equal to onnxruntime but for single codes that fall to the other side of a tie; flips: the mean of those."""
    expected = open_session(model, SessionSettings(level="none")).run(None, feeds)[0]
    assert np.abs(expected - given.detach().numpy()).mean() <= flips * np.abs(expected).max()


@pytest.mark.parametrize("build", [nets.residual, nets.mobile, nets.mlp, lambda: nets.residual(norm=True)])
def test_trained_integers_and_scales_are_what_onnxruntime_runs(build: Any) -> None:
    model = build()
    done, feeds = int8(model), feeds_for(model)
    program = Program(done)
    close(done, feeds, answers(program, feeds), 2e-3)
    for name, array in program.weights().items():
        assert np.array_equal(array, done.graph.initializers[name].const_value.numpy()), f"{name} before any step"
    optimizer = torch.optim.Adam(program.parameters(), 1e-3)
    target = torch.randn(answers(program, feeds).shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        loss = (answers(program, feeds) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in program.parameters())
    written = program.to_model()
    close(written, feeds, answers(program, feeds), 2e-3)
    changed = {
        n for n, a in program.weights().items() if not np.array_equal(a, done.graph.initializers[n].const_value.numpy())
    }
    assert any(n in changed for n in program.scales)
    assert any(done.graph.initializers[n].const_value.dtype == ir.DataType.INT8 for n in changed)
    for name, value in written.graph.initializers.items():
        old = done.graph.initializers[name].const_value
        assert (value.const_value.dtype, value.const_value.shape) == (old.dtype, old.shape)


def test_biases_keep_the_scale_of_their_products() -> None:
    done = int8(nets.residual())
    program = Program(done)
    with torch.no_grad():
        for name in program.scales:
            program.parameter(name).mul_(1.25)
    weights = program.weights()
    conv = next(n for n in done.graph if n.op_type == "Conv")
    x, w, b = (v.producer() for v in conv.inputs if v is not None)
    names = [n.inputs[1].name for n in (x, w, b) if n is not None and n.inputs[1] is not None]
    scales = [weights[n].astype(np.float64) for n in names]
    np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)


def test_float_masters_are_taken_over() -> None:
    done = int8(nets.mlp())
    program = Program(done)
    name = next(n for n in program.names if done.graph.initializers[n].const_value.dtype == ir.DataType.INT8)
    original = program.parameter(name).detach().numpy() * 1.001
    other = Program(done, masters={name: original})
    np.testing.assert_array_equal(other.parameter(name).detach().numpy(), original)


def pair(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, between: str = "") -> ir.Model:
    """x -> Q -> (an operator on integers) -> DQ."""
    q = "p" if between else "q"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", [q, "s", "z"], ["y"], axis=0),
    ]
    if between:
        nodes.insert(1, helper.make_node(between, ["q"], ["p"]))
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))


@pytest.mark.parametrize("between", ["", "Identity"])
def test_gradients_are_those_of_lsq(between: str) -> None:
    """Inside the range: x passes and the scale sees q - x / s; outside: nothing passes and the scale sees q."""
    x = np.array([[0.26, -0.41, 40.0, -40.0]], np.float32)
    scale, zero = np.array(0.1, np.float32), np.array(3, np.int8)
    program = Program(pair(x, scale, zero, between))
    assert program.names == ["s"]
    value = torch.from_numpy(x).requires_grad_()
    result = program({"x": value})["y"]
    torch.testing.assert_close(result, torch.tensor([[0.3, -0.4, 12.4, -13.1]]))
    result.sum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([[1.0, 1, 0, 0]]))
    inside = (3 - 2.6) + (-4 + 4.1)
    slope = (inside + 124 - 131) / np.sqrt(4 * 127)
    torch.testing.assert_close(
        program.parameter("s").grad, torch.tensor(slope, dtype=torch.float32), rtol=1e-4, atol=1e-4
    )


def test_a_scale_stays_positive() -> None:
    x = np.array([[0.26, -0.41]], np.float32)
    program = Program(pair(x, np.array(0.1, np.float32), np.array(0, np.int8)))
    with torch.no_grad():
        program.parameter("s").fill_(-0.05)
    assert program.weights()["s"] == np.float32(0.05)
    torch.testing.assert_close(program({"x": torch.from_numpy(x)})["y"], torch.tensor([[0.25, -0.4]]))


@pytest.mark.parametrize("kind", ["int4", "uint8", "int16"])
def test_weights_of_other_widths_go_back_as_their_type(kind: str) -> None:
    """Blocked, with a zero point: codes stay in the type's range and are what onnxruntime reads."""
    dtype = np.dtype(getattr(ml_dtypes, kind, None) or kind)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 7, (8, 3)).astype(np.int64).astype(dtype)
    scale, zero = rng.uniform(0.1, 0.2, (2, 3)).astype(np.float32), np.full((2, 3), 3).astype(dtype)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=0, block_size=4),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ],
        "blocked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [ir.to_proto(ir.tensor(a, name=n)) for n, a in (("w", codes), ("s", scale), ("z", zero))],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    program = Program(model)
    assert program.names == ["w", "s"]
    feeds = {"x": rng.standard_normal((4, 8)).astype(np.float32)}
    close(model, feeds, answers(program, feeds), 1e-6)
    with torch.no_grad():
        program.parameter("w").mul_(3.0)
        program.parameter("s").mul_(1.1)
    written = program.to_model()
    assert written.graph.initializers["w"].const_value.dtype == model.graph.initializers["w"].const_value.dtype
    close(written, feeds, answers(program, feeds), 1e-6)


@pytest.mark.parametrize(
    ("scales", "codes", "wanted"),
    [
        (3, [[64, -20, 100], [5, 127, 20], [-64, -3, 0]], [[64, -60, 104], [15, 127, 24], [-64, -9, 0]]),
        (1, [[64, -20, 100], [5, 127, 20], [-64, -3, 0]], [[127, -60, 127], [15, 127, 60], [-128, -9, 0]]),
        (1, [[64, -20, 10], [5, 27, 20], [-64, -3, 0]], [[64, -60, 30], [15, 64, 60], [-64, -9, 0]]),
    ],
)
def test_codes_that_are_held_back_stay_so(scales: int, codes: list[list[int]], wanted: list[list[int]]) -> None:
    """Channels of fewer levels are there for machines whose 16-bit sums would overflow; what shares one scale is
    small by itself.
    """
    step = np.full(scales, 0.1, np.float32) if scales > 1 else np.array(0.1, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=1),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ],
        "narrow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array(codes, np.int8), "w"), numpy_helper.from_array(step, "s")],
    )
    program = Program(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    with torch.no_grad():
        program.parameter("w").mul_(3.0)
    assert program.weights()["w"].tolist() == wanted


def test_without_fake_quantization_integers_are_exact_and_fixed() -> None:
    done = int8(nets.mlp())
    feeds = feeds_for(nets.mlp())
    program = Program(done, fake_quant=False)
    assert not set(program.names) & set(Program(done).names)
    close(done, feeds, answers(program, feeds), 2e-3)
