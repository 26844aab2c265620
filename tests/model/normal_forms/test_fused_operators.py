"""Operators that onnxruntime fused are written out again, with the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.files import load
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.runtime.session import open_session, run
from onnxpress.testing.networks import Net

MS = "com.microsoft"
_WIDTH = 6


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _graph(
    kind: str, inputs: list[np.ndarray | None], outputs: int = 1, opset: int = 20, **attributes: object
) -> onnx.ModelProto:
    """One fused operator between two Relus; its first input is the model's, the others are stored."""
    first = inputs[0]
    assert first is not None
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(inputs)]
    results = ["y", "", "", "sum"][:outputs]
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["i0"]),
        onnx.helper.make_node(kind, names, results, domain=MS, name="fused", **attributes),
        onnx.helper.make_node("Neg", ["y"], ["z"]),
    ]
    ends = ["z", *(["sum"] if outputs > 1 else [])]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, first.shape)],
        [onnx.helper.make_tensor_value_info(n, 1, None) for n in ends],
        [onnx.numpy_helper.from_array(v, n) for v, n in zip(inputs[1:], names[1:], strict=True) if v is not None],
    )
    versions = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MS, 1)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("i0", 1, first.shape))
    return model


def _cases() -> Iterator[tuple[str, onnx.ModelProto, list[str]]]:
    maps, kernel = _numbers(2, 3, 8, 8), _numbers(_WIDTH, 3, 3, 3)
    for kind, numbers in (
        ("Relu", []),
        ("Sigmoid", []),
        ("Tanh", []),
        ("LeakyRelu", [0.3]),
        ("Clip", [-0.5, 0.5]),
        ("HardSigmoid", [0.2, 0.5]),
    ):
        attributes: dict[str, object] = {"activation": kind, "strides": [2, 2], "pads": [1] * 4}
        if numbers:
            attributes["activation_params"] = numbers
        yield f"conv {kind}", _graph("FusedConv", [maps, kernel, _numbers(_WIDTH)], **attributes), ["Conv", kind]
    older = _graph("FusedConv", [maps, kernel], activation="Clip", activation_params=[0.0, 6.0], opset=10)
    yield "conv Clip 10", older, ["Conv", "Clip"]
    summed = _graph("FusedConv", [maps, kernel, _numbers(_WIDTH), _numbers(2, _WIDTH, 6, 6)], activation="Relu")
    yield "conv sum", summed, ["Conv", "Add", "Relu"]
    rows, matrix = _numbers(4, 5), _numbers(_WIDTH, 5)
    gemm = _graph("FusedGemm", [rows, matrix, _numbers(_WIDTH)], transB=1, activation="Tanh", alpha=0.5)
    yield "gemm", gemm, ["Gemm", "Tanh"]
    leaky = _graph("FusedGemm", [rows, matrix], transB=1, activation="LeakyRelu", activation_alpha=0.2)
    yield "gemm leaky", leaky, ["Gemm", "LeakyRelu"]
    heads, keys = _numbers(2, 3, 5, 4), _numbers(2, 3, 7, 4)
    product = _graph("FusedMatMul", [heads, keys], transB=1, alpha=0.5)
    yield "matmul", product, ["Transpose", "MatMul", "Mul"]
    turned = _graph("FusedMatMul", [heads, _numbers(2, 3, 5, 7)], transA=1)
    yield "matmul turned", turned, ["Transpose", "MatMul"]
    words = _numbers(2, 5, 8)
    params: list[np.ndarray | None] = [_numbers(8), _numbers(8), _numbers(8)]
    skip = _graph("SkipLayerNormalization", [words, words[::-1].copy(), *params], epsilon=1e-6)
    yield "norm", skip, ["Add", "Add", "LayerNormalization"]
    total = _graph("SkipLayerNormalization", [words, words, params[0], params[1]], outputs=4, epsilon=1e-6)
    yield "norm and sum", total, ["Add", "LayerNormalization"]
    simple = _graph("SkipSimplifiedLayerNormalization", [words, words, params[0], params[1]], epsilon=1e-6)
    yield "simplified norm", simple, ["Add", "Add", "SimplifiedLayerNormalization"]


_CASES = {name: (model, wanted) for name, model, wanted in _cases()}


@pytest.mark.parametrize("name", _CASES)
def test_the_operator_is_written_out_with_its_values(name: str) -> None:
    proto, wanted = _CASES[name]
    model = ir.from_proto(proto)
    shape = [int(d) for d in model.graph.inputs[0].shape or ()]
    feed = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}

    plain = canonical(model)

    middle = [n.op_type for n in plain.graph][1:-1]
    assert [k for k in middle if k not in ("Relu", "Neg", "Identity")] == [k for k in wanted if k != "Relu"]
    assert not any(n.domain for n in plain.graph)
    for a, b in zip(run(open_session(model), feed), run(open_session(plain), feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "attributes", [{"transBatchA": 1}, {"activation": "Softplus"}], ids=["batches turned", "unknown activation"]
)
def test_what_has_no_short_form_stays(attributes: dict[str, object]) -> None:
    conv = "activation" in attributes
    inputs = [_numbers(2, 3, 8, 8), _numbers(4, 3, 3, 3)] if conv else [_numbers(2, 3, 5, 4), _numbers(3, 2, 4, 7)]
    model = ir.from_proto(_graph("FusedConv" if conv else "FusedMatMul", inputs, **attributes))

    assert any(n.domain == MS for n in canonical(model).graph)


def test_a_file_that_the_runtime_saved_is_a_file_like_its_original(tmp_path: Path) -> None:
    """At operator set 13 it writes normalizations, which the standard has from 17 on."""
    original = _feed_forward()
    onnx.save(ir.to_proto(original), tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])

    saved = load(tmp_path / "saved.onnx")

    assert {"SkipLayerNormalization", "BiasGelu"} <= {n.op_type for n in saved.graph}
    hidden = [[g.size for g in evidence_for(m, None).channels.groups] for m in (original, saved)]
    assert hidden == [[32], [32]]


def _feed_forward() -> ir.Model:
    """Linear, GELU, Linear, shortcut and a normalization, spelled out as exporters did."""
    net = Net(opset=13)

    def stored(*shape: int) -> str:
        return net.constant(_numbers(*shape) / 4)

    root, one, half, square, small = (net.constant(np.array(n, np.float32)) for n in (2**0.5, 1.0, 0.5, 2.0, 1e-5))
    wide = net.op("Add", [net.op("MatMul", ["x", stored(16, 32)], 32), stored(32)], 32)
    erf = net.op("Erf", [net.op("Div", [wide, root], 32)], 32)
    gelu = net.op("Mul", [net.op("Mul", [wide, net.op("Add", [erf, one], 32)], 32), half], 32)
    thin = net.op("Add", [net.op("MatMul", [gelu, stored(32, 16)], 16), stored(16)], 16)
    y = net.op("Add", [thin, "x"], 16)
    centred = net.op("Sub", [y, net.op("ReduceMean", [y], 1, axes=[-1])], 16)
    variance = net.op("ReduceMean", [net.op("Pow", [centred, square], 16)], 1, axes=[-1])
    unit = net.op("Div", [centred, net.op("Sqrt", [net.op("Add", [variance, small], 1)], 1)], 16)
    end = net.op("Add", [net.op("Mul", [unit, stored(16)], 16), stored(16)], 16)
    return net.model(end, {"x": ["N", 5, 16]}, ["N", 5, 16])
